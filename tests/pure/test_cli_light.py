"""The commands that need no torch: they answer at once, and say what is wrong with a plan file or a word."""

import json
import os
import subprocess
import sys
import time

import pytest

from autosplit import __version__
from autosplit.cli import main
from autosplit.cli.inputs import InputSpec, parse_inputs
from autosplit.device import parse_cluster
from autosplit.placement import DevicePrediction, Plan, Prediction

TORCHLESS = """
import sys
from autosplit.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported"
assert "networkx" not in sys.modules or sys.argv[1] == "show", "networkx was imported"
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


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["plan", "--help"], ["show", "--help"], ["demo", "--help"]])
def test_help_does_not_import_torch(words):
    done = torchless(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"Usage: autosplit")


def test_show_does_not_import_torch(stored):
    done = torchless("show", stored)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"SINGLE  fits one device")


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
    assert "gpu:0   17.0 GiB  16.0 GiB  1.0 GiB    1073741824" in shown


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
