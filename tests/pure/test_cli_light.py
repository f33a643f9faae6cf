"""The commands that need no torch: they answer at once, and say what is wrong with a plan file or a word."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

import autosplit
from autosplit import __version__
from autosplit.cli import main
from autosplit.cli.inputs import InputSpec, form_of, parse_inputs
from autosplit.cli.shell import complete_devices
from autosplit.device import parse_cluster
from autosplit.placement import DevicePrediction, Plan, Prediction, Transfer
from autosplit.report import DOCUMENTS

TORCHLESS = """
import sys
from autosplit.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported"
assert "networkx" not in sys.modules, "networkx was imported"
sys.exit(code)
"""


def a_plan(needs_bytes=2**30):
    used = DevicePrediction(peak_bytes=needs_bytes, reserved_bytes=needs_bytes, weight_bytes=10, busy_ns=5)
    return Plan(
        strategy="single",
        mode="infer",
        cluster=parse_cluster("1x16GiB"),
        io_device="host",
        placement={"m.a/mm": "gpu:0"},
        weights={},
        transfers=(),
        objective="latency",
        value=10,
        bound=10,
        prediction=Prediction(devices={"gpu:0": used}, step_ns=10, transfer_ns=5),
        reason="fits one device",
    )


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "plan.json"
    a_plan().save(path)
    return str(path)


def torchless(*words, data=b""):
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", TORCHLESS, *words], input=data, capture_output=True, check=False)
    print(f"autosplit {words[0]}: {time.perf_counter() - started:.2f} s")
    return done


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["plan", "--help"], ["show", "--help"], ["demo", "--help"], ["run", "--help"]]
)
def test_help_does_not_import_torch(words):
    done = torchless(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"Usage: autosplit")


@pytest.mark.parametrize(
    "words",
    [
        ["diff", "FILE", "FILE"],
        ["diff", "FILE", "FILE", "--json"],
        ["check", "FILE"],
        ["check", "FILE", "--json"],
        ["show", "FILE", "--json"],
        ["completion", "zsh"],
        ["schema", "plan"],
    ],
)
def test_what_needs_no_model_does_not_import_torch(stored, words):
    done = torchless(*(stored if word == "FILE" else word for word in words))
    assert (done.returncode, done.stderr) == (0, b"")


def test_show_does_not_import_torch(stored):
    done = torchless("show", stored)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"SINGLE for inference  fits one device")


def test_show_reads_stdin():
    done = torchless("show", "-", "--json", data=a_plan().to_json())
    assert (done.returncode, done.stderr) == (0, b"")
    assert Plan.from_json(done.stdout) == a_plan()


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "autosplit", "--version"], capture_output=True, check=False)
    assert done.stdout.decode().split() == ["autosplit,", "version", __version__]


def test_show_json_is_the_plan(stored, capsys):
    assert main(["show", stored, "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert Plan.from_json(said.out) == a_plan()


def run(capsys, *words):
    """Exit code, the one document on stdout, and stderr."""
    code = main([*words, "--json"])
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert document["error"]["exit_code"] == code
    return code, document["error"], said.err


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, a_plan().to_json().replace(b'"format": 4', b'"format": 3')]
)
def test_a_file_that_is_no_plan(tmp_path, capsys, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    code, error, shown = run(capsys, "show", str(path))
    assert (code, error["kind"]) == (5, "plan")
    assert shown.startswith("error[plan]: ")


def test_a_missing_file_and_a_folder(tmp_path, capsys):
    assert main(["show", str(tmp_path / "no.json")]) == 2
    assert "does not exist" in capsys.readouterr().err
    code, error, _ = run(capsys, "show", str(tmp_path))
    assert (code, error["kind"]) == (2, "usage")


def test_a_plan_that_is_over_its_capacity(tmp_path, capsys):
    path = tmp_path / "plan.json"
    a_plan(needs_bytes=17 * 2**30).save(path)
    code, error, shown = run(capsys, "show", str(path))
    assert code == 3
    assert error["short_bytes"] == {"gpu:0": 2**30}
    assert "gpu:0   17.0 GiB  16.0 GiB  1.0 GiB  1073741824" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["plam"], "No such command 'plam'"),
        (["show"], "Missing argument 'FILE'"),
        (["show", "x", "--jsn"], "--json"),
        (["plan", "m:M"], "Missing option '--devices'"),
        (["plan", "m:M", "--devices", "1x1GiB", "--for", "inference"], "'infer', 'train'"),
        (["plan", "m:M", "--devices", "1x1GiB", "--optimizer", "sgd"], "--for train"),
        (["plan", "m:M", "--devices", "1x1GiB", "--input", "x"], "expected NAME=TYPE:SIZES"),
    ],
)
def test_usage_errors_exit_2(capsys, words, says):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert "Usage: autosplit" in said.err


def test_a_usage_error_is_a_document_too(capsys):
    code, error, _ = run(capsys, "plan", "m:M", "--devices", "1x1GiB", "--input", "x=i64")
    assert (code, error["kind"]) == (2, "usage")


def test_input_forms():
    words = ["ids=i64:4x2048", "x = f32 : 2x3", "t=i64:", "mask=bool:7", "h=bfloat16:1", "z=c64:2"]
    assert parse_inputs(words) == {
        "ids": InputSpec("int64", (4, 2048)),
        "x": InputSpec("float32", (2, 3)),
        "t": InputSpec("int64", ()),
        "mask": InputSpec("bool", (7,)),
        "h": InputSpec("bfloat16", (1,)),
        "z": InputSpec("complex64", (2,)),
    }


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("ids", "expected NAME=TYPE:SIZES"),
        ("=i64:1", "expected NAME=TYPE:SIZES"),
        ("a.b=i64:1", "expected NAME=TYPE:SIZES"),
        ("ids=2x3", "write ids=f32:2x3"),
        ("ids=:2x3", "unknown element type ''"),
        ("ids=int46:2", "did you mean 'int64'?"),
        ("ids=fp32:2", "did you mean 'f32'?"),
        ("ids=int:2", "did you mean 'i64' or 'i32'?"),
        ("ids=long:2", "did you mean 'i64'?"),
        ("ids=float:2", "did you mean 'f32'?"),
        ("ids=i64:2,3", "joined by 'x'"),
        ("ids=i64:2x", "joined by 'x'"),
        ("ids=i64:-2", "joined by 'x'"),
        ("ids=i64:٣", "joined by 'x'"),
        ("ids=i64:2x0", "0 elements"),
        ("ids=i64:999999x999999x999999", "elements; expected 1 to"),
    ],
)
def test_input_forms_that_are_refused(capsys, word, says):
    assert main(["plan", "m:M", "--devices", "1x1GiB", "--input", word]) == 2
    assert says in capsys.readouterr().err


def test_an_input_given_twice(capsys):
    assert main(["plan", "m:M", "--devices", "1x1GiB", "--input", "x=f32:1", "--input", "x=f32:2"]) == 2
    assert "x is given twice" in capsys.readouterr().err


def test_a_reader_that_leaves_early(stored):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "autosplit", "show", stored, "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_input_ranges_are_taken_at_their_largest():
    assert parse_inputs(["ids=i64:1..8x2048"]) == {"ids": InputSpec("int64", (8, 2048), "1..8x2048")}


@pytest.mark.parametrize("sizes", ["8..1", "1..", "..8", "1...8", "1..2..3", "9" * 5000])
def test_ranges_that_are_refused(capsys, sizes):
    assert main(["plan", "m:M", "--devices", "1x1GiB", "--input", f"x=f32:{sizes}"]) == 2
    assert "--input" in capsys.readouterr().err


# ---------------------------------------------------------------- diff


@pytest.fixture
def other(tmp_path):
    """The same model on another device, slower and larger, and under another assumption."""
    path = tmp_path / "other.json"
    before = a_plan()
    used = msgspec.structs.replace(before.prediction.devices["gpu:0"], reserved_bytes=2**31, peak_bytes=2**31)
    cluster = parse_cluster("2x16GiB")
    prediction = Prediction(devices={"gpu:1": used}, step_ns=20, transfer_ns=5)
    msgspec.structs.replace(
        before,
        cluster=cluster,
        placement={"m.a/mm": "gpu:1"},
        prediction=prediction,
        value=20,
        transfers=(Transfer(tensor="m.a/mm", src="gpu:1", dst="host", size_bytes=2048),),
        assumptions=("guessed",),
    ).save(path)
    return str(path)


def test_equal_plans(stored, capsys):
    assert main(["diff", stored, stored, "--exit-code"]) == 0
    assert capsys.readouterr().out == "no difference\n"


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--exit-code"], 1)])
def test_different_plans(stored, other, capsys, words, code):
    assert main(["diff", stored, other, *words]) == code
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["value", "10", "ns", "20", "ns"],
        ["step", "10", "ns", "20", "ns"],
        ["runs", "on", "gpu:0", "the", "whole", "model", "-"],
        ["runs", "on", "gpu:1", "-", "the", "whole", "model"],
        ["nodes", "1", "1:", "1", "moved"],
        ["transfers", "0,", "0", "B", "1,", "2.0", "KiB;", "1", "that", "were", "not", "there"],
        ["peak", "gpu:1", "-", "2.0", "GiB"],
        ["assumed", "-", "guessed"],
    ):
        assert row in rows


def test_differences_as_json(stored, other, capsys):
    assert main(["diff", stored, other, "--json"]) == 0
    said = capsys.readouterr()
    found = msgspec.json.decode(said.out, type=DOCUMENTS["diff"])
    assert (found.equal, said.err) == (False, "")
    assert {"what": "value", "before": "10 ns", "after": "20 ns"} in json.loads(said.out)["differences"]
    assert main(["diff", stored, stored, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"equal": True, "differences": []}


def test_a_difference_that_no_row_tells_is_a_difference(tmp_path, stored, capsys):
    path = tmp_path / "x.json"
    cluster = msgspec.structs.replace(a_plan().cluster, default_latency_ns=7)
    msgspec.structs.replace(a_plan(), cluster=cluster).save(path)
    assert main(["diff", stored, str(path), "--exit-code"]) == 1
    assert "no difference" not in capsys.readouterr().out


def test_what_differs_is_told_in_words_that_differ(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for path, value in zip(paths, (1_600_001, 1_600_002), strict=True):
        msgspec.structs.replace(a_plan(), value=value, bound=1).save(path)
    assert main(["diff", *paths]) == 0
    assert ["value", "1600001", "1600002"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_diff_of_stdin_twice_and_of_no_plan(tmp_path, capsys, stored):
    assert main(["diff", "-", "-"]) == 2
    path = tmp_path / "x"
    path.write_text("{}")
    assert main(["diff", stored, str(path)]) == 5
    assert "error[plan]: not a plan" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--html", "--trace", "--model-explorer"])
def test_show_of_what_show_wrote_says_what_it_is(tmp_path, capsys, stored, option):
    path = tmp_path / "picture"
    assert main(["show", stored, option, str(path)]) == 0
    assert main(["show", str(path)]) == 5
    said = capsys.readouterr().err
    assert f"such as {option} writes" in said or f"as {option} writes it" in said
    assert "a plan is what autosplit plan --out FILE writes" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\n[[devices]]\nname='a'\n", "a cluster file: give it to --devices"),
        (b"PK\x03\x04rest", "a zip archive, such as a .pt2 file"),
        (b"\x00\x01\x02", "no text"),
        (b'{"error":{"kind":"usage"}}', "what --json prints of an error"),
        (b'{"architectures": []}', "unknown field `architectures`"),
        (b"hello", "JSON is malformed"),
    ],
)
def test_show_of_another_file_says_what_it_is(tmp_path, capsys, content, said):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert main(["show", str(path)]) == 5
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------- check


def test_check_of_a_file_alone(stored, capsys):
    assert main(["check", stored, "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=DOCUMENTS["check"])
    assert (found.strategy, found.nodes, found.is_edited) == ("single", 1, False)
    assert (found.needs_bytes, found.has_bytes) == ({"gpu:0": 2**30}, {"gpu:0": 16 * 2**30})
    assert found.not_checked == ("model: none was given",)
    assert main(["check", stored]) == 0
    assert capsys.readouterr().out.startswith("OK  single, 1 nodes\n")


def test_an_edited_file_does_not_pass_alone(stored, capsys):
    path = Path(stored)
    path.write_text(path.read_text().replace('"step_ns": 10', '"step_ns": 9'))
    code, error, _ = run(capsys, "check", stored)
    assert (code, error["kind"]) == (5, "plan")
    assert "not as it was written" in error["message"]
    assert main(["show", stored]) == 0  # it is told, not trusted
    assert "edited since it was written" in capsys.readouterr().err


def test_an_edit_is_not_forgotten_by_writing_it_again(stored, tmp_path):
    path = Path(stored)
    path.write_text(path.read_text().replace('"step_ns": 10', '"step_ns": 9'))
    Plan.load(path).save(tmp_path / "again.json")
    assert Plan.load(tmp_path / "again.json").is_edited


def test_reformatting_a_file_is_no_edit(stored):
    path = Path(stored)
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert not Plan.load(path).is_edited


def test_check_wants_a_model_for_inputs(stored, capsys):
    assert main(["check", stored, "--input", "x=f32:1"]) == 2
    assert "give one after FILE" in capsys.readouterr().err


# ---------------------------------------------------------------- shells, programs, terminals


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell, capsys):
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert "_AUTOSPLIT_COMPLETE" in said
    assert "autosplit" in said
    assert ("-o default" in said) == (shell == "bash")


def test_what_is_completed():
    words = {"_AUTOSPLIT_COMPLETE": "zsh_complete", "COMP_WORDS": "autosplit plan --strat", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from autosplit.cli import main; main([])"],
        env={**os.environ, **words},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--strategy" in done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "some"),
    [("4xa100", "4xA100-80GB"), ("2xT4,1xl", "2xT4,1xL4"), ("cl", "cluster.toml"), ("rtx3", "RTX3090"), ("9zz", "")],
)
def test_names_of_devices_are_completed(typed, some):
    found = [item.value for item in complete_devices(None, None, typed)]
    assert some in found if some else found == []
    assert all(name.lower().startswith(typed.lower()) for name in found)


def test_each_command_says_what_it_does_in_one_line(capsys):
    assert main(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_an_unknown_shell(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize("name", DOCUMENTS)
def test_schemas_are_of_what_is_printed(name, capsys):
    assert main(["schema", name]) == 0
    made = json.loads(capsys.readouterr().out)
    record = made["$defs"][made["$ref"].rpartition("/")[2]]
    assert set(record["properties"]) == {field.encode_name for field in msgspec.structs.fields(DOCUMENTS[name])}


def test_errors_devices_and_catalogue_are_of_their_schemas(tmp_path, capsys):
    path = tmp_path / "plan.json"
    a_plan(needs_bytes=17 * 2**30).save(path)
    for words, name in (
        (["show", str(path)], "error"),
        (["show"], "error"),
        (["devices", "2x24GiB"], "devices"),
        (["devices", "--catalogue"], "catalogue"),
    ):
        main([*words, "--json"])
        assert msgspec.json.decode(capsys.readouterr().out, type=DOCUMENTS[name], strict=True)


@pytest.mark.parametrize(
    "words", [["show", "FILE"], ["check", "FILE"], ["diff", "FILE", "OTHER"], ["devices", "2x24GiB"]]
)
def test_forty_columns_cut_nothing(stored, other, capsys, monkeypatch, words):
    files = {"FILE": stored, "OTHER": other}
    said = {}
    for columns in ("40", "400"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main([files.get(word, word) for word in words]) == 0
        said[columns] = capsys.readouterr().out
    assert max(map(len, said["40"].splitlines())) <= 40
    narrow = "".join(said["40"].split())
    for word in said["400"].split():
        assert word in narrow, f"{word!r} is not shown in 40 columns"


def test_no_colour_when_asked(stored):
    done = subprocess.run(
        [sys.executable, "-m", "autosplit", "show", stored],
        env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": "1"},
        capture_output=True,
        check=True,
    )
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize(
    "text", ["", "int64", "hub[1]", "__import__[1]", "int64[x]", f"int64[{'9' * 5000}]", "int64[1,2]"]
)
def test_forms_in_a_file_that_are_none(text):
    assert form_of(text) is None


def test_forms_in_a_file():
    assert form_of("int64[]") == InputSpec("int64", ())
    assert form_of("float8_e4m3fn[1]") is None  # no --input says it either
    assert form_of("bool[0, 3]") == InputSpec("bool", (0, 3))


def test_the_package_shows_its_public_names_alone():
    names = dir(autosplit)
    assert {"partition", "plan", "Plan", "from_device_map", "__version__"} <= set(names)
    assert [name for name in names if name.startswith("_")] == ["__version__"]
