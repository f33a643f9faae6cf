"""Reports of plans made by hand: the table in 80 columns, words for layers, the JSON document."""

import io
import json

import pytest
from rich.console import Console

from autosplit import report
from autosplit.device import Cluster, Device, parse_cluster
from autosplit.errors import CapacityError, CaptureError
from autosplit.placement import Breakdown, DevicePrediction, Option, Pipeline, Plan, Prediction, Transfer
from autosplit.report.words import layer_words

GIB = 2**30


def used(reserved_bytes=GIB, weight_bytes=GIB // 2, busy_ns=4_000_000_000):
    return DevicePrediction(
        peak_bytes=reserved_bytes, reserved_bytes=reserved_bytes, weight_bytes=weight_bytes, busy_ns=busy_ns
    )


def llama(cut=17, layers=32):
    placement = {"model.embed_tokens/embedding": "gpu:0", "model/arange": "gpu:0"}
    for i in range(layers):
        for part in ("self_attn/linear", "mlp/linear", "mlp/linear#2"):
            placement[f"model.layers.{i}.{part}"] = "gpu:0" if i < cut else "gpu:1"
    last = "gpu:0" if cut >= layers else "gpu:1"
    return placement | {"model.norm/mul": last, "lm_head/linear": last}


def made(**changes):
    return Plan(
        **{
            "strategy": "split",
            "mode": "train",
            "cluster": parse_cluster("2x16GiB"),
            "io_device": "host",
            "placement": llama(),
            "weights": {},
            "transfers": (
                Transfer(tensor="input/input_ids", src="host", dst="gpu:0", size_bytes=16384),
                Transfer(
                    tensor="model.layers.16/add#2", src="gpu:0", dst="gpu:1", size_bytes=2**24, returns_gradient=True
                ),
            ),
            "objective": "latency",
            "value": 7_900_000_000,
            "bound": 7_100_000_000,
            "prediction": Prediction(
                devices={"gpu:0": used(9 * GIB), "gpu:1": used(int(15.7 * GIB), busy_ns=3_000_000_000)},
                step_ns=7_900_000_000,
                transfer_ns=900_000_000,
            ),
            "reason": "does not fit one device: 2 of 2 devices used",
            "assumptions": ("times: roofline estimate, unmeasured; backward taken as 2 x forward; one at a time",),
            **changes,
        }
    )


SPLIT = """\
SPLIT for training  2 stages: does not fit one device: 2 of 2 devices used

device  memory      peak of capacity    weights  busy  runs
gpu:0   █████░░░░░   9.0 of 16.0 GiB  512.0 MiB   51%  embed_tokens, layers
                                                       0-16, 1 op of model
gpu:1   █████████░  15.7 of 16.0 GiB  512.0 MiB   38%  layers 17-31, norm,
                                                       lm_head

2 transfers a step, 16.0 MiB, gradients back for 1
from   to        bytes      time  tensor
host   gpu:0  16.0 KiB   10.7 us  input input_ids
gpu:0  gpu:1  16.0 MiB  681.1 us  layers.16 add

step 7.9 s  compute 7.0 s, transfers 900.0 ms  times: estimated, unmeasured
idle 56%
latency (one step) 7.9 s  lower bound 7.1 s  gap 10.1%
assumes:
 - times: roofline estimate, unmeasured; backward taken as 2 x forward; one at a
   time
"""


def test_split_in_80_columns():
    assert report.text(made()) == SPLIT


def test_single_has_no_transfers_and_no_assumptions():
    plan = made(
        strategy="single",
        cluster=parse_cluster("1x16GiB"),
        placement=llama(cut=99),
        transfers=(),
        objective="memory",
        value=GIB,
        bound=0,
        prediction=Prediction(devices={"gpu:0": used()}, step_ns=0, transfer_ns=0),
        reason="fits one device (1.0 GiB on gpu:0)",
        assumptions=(),
    )
    assert report.text(plan) == (
        "SINGLE for training  fits one device (1.0 GiB on gpu:0)\n\n"
        "device  memory      peak of capacity    weights  busy  runs\n"
        "gpu:0   █░░░░░░░░░   1.0 of 16.0 GiB  512.0 MiB    0%  the whole model\n\n"
        "step 0 ns  compute 4.0 s, transfers 0 ns  times: estimated, unmeasured\n"
        "memory (fullest device) 1.0 GiB  no lower bound proved\n"
    )


def test_a_pipeline_is_told_against_one_device():
    options = (
        Option(strategy="pipeline", words="2 stages", devices=2, step_ns=2 * 10**9, samples=8),
        Option(strategy="single", words="all on gpu:0", devices=1, step_ns=3 * 10**9, samples=8),
    )
    lines = report.text(made(strategy="split", options=(options[1],))).splitlines()
    assert "idle 56%" in lines  # the split was not weighed
    nodes = tuple(llama())
    pipeline = Pipeline(microbatches=4, schedule="gpipe", stages=(nodes[:9], nodes[9:]))
    lines = report.text(made(strategy="pipeline", options=options, pipeline=pipeline)).splitlines()
    assert "idle 56%  1.50x the samples/s of one device, whose step takes 3.0 s" in lines


def test_replicate_says_that_the_others_have_copies():
    plan = made(
        strategy="replicate", placement=llama(cut=99), prediction=Prediction(devices={}, step_ns=1, transfer_ns=0)
    )
    lines = report.text(plan).splitlines()
    assert lines[0].startswith("REPLICATE for training  ")
    assert lines[3].endswith("the whole model")
    assert " ".join(lines[4].split()) == "gpu:1 same of 16.0 GiB same a copy, under torchrun"


@pytest.mark.parametrize(
    ("devices", "others"), [("4x16GiB", "same of 16.0 GiB same a replica, under torchrun"), ("5x16GiB", "or nothing")]
)
def test_hybrid_says_that_one_replica_is_shown(devices, others):
    lines = report.text(made(strategy="hybrid", replicas=2, cluster=parse_cluster(devices))).splitlines()
    assert lines[1].startswith("one replica of 2 is shown")
    at = next(i for i, line in enumerate(lines) if line.startswith("gpu:2"))
    assert others in " ".join(" ".join(lines[at : at + 2]).split())
    assert "one replica" not in report.text(made())


@pytest.mark.parametrize("count", [1, 20])
def test_transfers_of_nothing_are_counted_and_not_listed(count):
    nothing = [Transfer(tensor=f"model/cat#{i}", src="gpu:0", dst="gpu:1", size_bytes=0) for i in range(count)]
    lines = report.text(made(transfers=(*made().transfers, *nothing))).splitlines()
    head = f"{count + 2} transfers a step, 16.0 MiB, gradients back for 1; {count} of empty tensors, not listed"
    assert head in " ".join(lines)
    assert "cat" not in " ".join(lines)
    assert sum(line.startswith(("host ", "gpu:0  gpu:1")) for line in lines) == 2


def test_only_transfers_of_nothing_make_no_list():
    text = report.text(made(transfers=(Transfer(tensor="model/cat", src="gpu:0", dst="gpu:1", size_bytes=0),)))
    assert "1 transfer a step, 0 B; 1 of empty tensors, not listed\n\nstep" in text


def test_measured_times_and_a_proved_optimum_are_said_as_such():
    prediction = Prediction(devices={}, step_ns=5_000, transfer_ns=0, time_source="measured")
    text = report.text(made(prediction=prediction, value=5_000, bound=5_000))
    assert "times: measured" in text
    assert "latency (one step) 5.0 us  lower bound 5.0 us  gap 0.0%" in text


def test_many_transfers_are_summed_by_pair():
    many = [Transfer(tensor=f"h.{i}/add", src="gpu:0", dst="gpu:1", size_bytes=1024 * (i + 1)) for i in range(20)]
    many.append(Transfer(tensor="lm_head/linear!no_grad", src="gpu:1", dst="host", size_bytes=10))
    text = report.text(made(transfers=tuple(many)))
    assert "21 transfers a step, 210.0 KiB" in text
    assert "gpu:0  gpu:1       20  210.0 KiB  208.6 us  h.19 add, 20.0 KiB" in text
    assert "gpu:1  host         1       10 B   10.0 us  lm_head linear, 10 B" in text


def rendered(plan, **options):
    console = Console(file=io.StringIO(), highlight=False, **options)
    console.print(report.PlanTable(plan), markup=False)
    return console.file.getvalue()


def error_text(error, kind="capacity"):
    console = Console(file=io.StringIO(), width=80)
    console.print(report.ErrorTable(error, kind), soft_wrap=True)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


@pytest.mark.parametrize("width", [80, 100, 200])
def test_lines_keep_to_the_width(width):
    deep = {f"model.branch{i}.layers.{i}.inner.mlp/linear": f"gpu:{i % 2}" for i in range(60)}
    assert all(len(line) <= width for line in rendered(made(placement=deep), width=width).splitlines())


def test_no_escape_sequences_without_colour(monkeypatch):
    assert "\x1b[" in rendered(made(), force_terminal=True, color_system="standard", _environ={})
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in report.text(made())
    assert "\x1b[3" not in rendered(made(), force_terminal=True, color_system="standard")


def test_hostile_names_cannot_write_to_the_terminal():
    cluster = Cluster(devices=(Device(name="[red]\x1b[2J", kind="x", memory_bytes=GIB),))
    plan = made(
        cluster=cluster,
        placement={"\x1b]0;evil\x07[bold]\u202e/mm": "[red]\x1b[2J", "other/mm": "[red]\x1b[2J"},
        transfers=(Transfer(tensor="\x1b[31m/x\n", src="host", dst="[red]\x1b[2J", size_bytes=1),),
        prediction=Prediction(devices={}, step_ns=1, transfer_ns=0),
        reason="\x1b[0m[link=x]because",
        assumptions=("[blink]\x9b",),
    )
    text = report.text(plan)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "[link=x]because" in text
    assert "[red]" in text


def test_ascii_only_terminals_get_an_ascii_bar():
    class Ascii(io.StringIO):
        encoding = "ascii"

    console = Console(file=Ascii(), width=80)
    console.print(report.PlanTable(made()))
    assert "#####....." in console.file.getvalue()


def test_the_document_is_the_plan():
    assert Plan.from_json(report.document(made())) == made()


def test_misfit_in_words_and_as_a_document():
    error = CapacityError(
        "GPT does not fit", needs_bytes={"gpu:0": 3 * GIB, "gpu:1": 10}, has_bytes={"gpu:0": GIB, "gpu:1": GIB}
    )
    assert error_text(error) == (
        "error[capacity]: GPT does not fit\n"
        "device    needs      has    short    in bytes\n"
        "gpu:0   3.0 GiB  1.0 GiB  2.0 GiB  2147483648\n"
        "gpu:1      10 B  1.0 GiB        -           0\n"
        "Not proved: the search found no placement that fits.\n"
    )
    document = json.loads(report.error_document(error, "capacity", str(error), 3))
    assert document["error"] == {
        "kind": "capacity",
        "message": "GPT does not fit",
        "exit_code": 3,
        "needs_bytes": {"gpu:0": 3 * GIB, "gpu:1": 10},
        "has_bytes": {"gpu:0": GIB, "gpu:1": GIB},
        "short_bytes": {"gpu:0": 2 * GIB},
        "proved": False,
        "ways_out": [],
        "not_tried": [],
    }
    proved = CapacityError("no", needs_bytes={"gpu:0": 2}, has_bytes={"gpu:0": 1}, proved=True)
    assert "Proved: no placement on these devices fits." in error_text(proved)
    assert "device  needs at least  has  short at least  in bytes\n" in error_text(proved)
    assert error_text(CaptureError("long " * 30), "capture") == f"error[capture]: {('long ' * 30).rstrip()}\n"


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({"a/x": "p", "b/x": "p"}, {"p": "the whole model"}),
        ({"/x": "p", "/y": "p", "/z": "q"}, {"p": "2 ops of forward", "q": "1 op of forward"}),
        ({"0/x": "p", "2/x": "p", "3/x": "q"}, {"p": "modules 0-2", "q": "modules 3"}),
        ({"m.h.0.a/x": "p", "m.h.0.b/x": "q"}, {"p": "h.0.a", "q": "h.0.b"}),
        ({"h.0/x": "p", "h.1/x": "q", "h.2/x": "p", "h.3/x": "p"}, {"p": "h 0, 2-3", "q": "h 1"}),
        (
            {"enc.h.0/x": "p", "enc.h.1/x": "p", "dec.h.0/x": "p", "dec.h.1/x": "q"},
            {"p": "enc, dec.h 0", "q": "dec.h 1"},
        ),
        ({"layer1.0.conv/x": "p", "layer1.1.conv/x": "p", "fc/x": "q"}, {"p": "layer1 0-1", "q": "fc"}),
        (
            {f"s{i}/x": "p" if i % 2 else "q" for i in range(20)},
            {"p": "s1, s3, s5, s7, s9, s11, s13, 3 more", "q": "s0, s2, s4, s6, s8, s10, s12, 3 more"},
        ),
        (
            {f"h.1.{name}/x": "p" if name in "abc" else "q" for name in "abcdef"} | {"h.0/x": "p"},
            {"p": "part of h.1, h 0", "q": "part of h.1"},
        ),
        ({".".join("a" * 5000) + "/x": "p", "b/x": "q"}, {"p": "a", "q": "b"}),
        ({}, {}),
    ],
)
def test_layers_in_words(placement, words):
    assert layer_words(placement) == words


def test_layer_words_of_a_large_model_take_no_time():
    placement = {f"model.layers.{i // 60}.block.{i % 60}/mm": f"gpu:{i // 2500}" for i in range(20_000)}
    assert layer_words(placement)["gpu:0"].startswith("layers 0-40, layers.41.block 0-")


def test_the_parts_of_the_memory_are_a_row_a_device_largest_first():
    parts = Breakdown(weights_bytes=GIB, optimizer_bytes=2 * GIB, reserve_bytes=2**20)
    device = DevicePrediction(
        peak_bytes=3 * GIB, reserved_bytes=3 * GIB + 2**20, weight_bytes=GIB, busy_ns=1, breakdown=parts
    )
    prediction = Prediction(devices={"gpu:0": device, "gpu:1": used()}, step_ns=1, transfer_ns=0)
    lines = report.text(made(prediction=prediction)).splitlines()
    row = lines.index("device  of that") + 1
    assert lines[row] == "gpu:0   optimizer 2.0 GiB, weights 1.0 GiB, reserve 1.0 MiB"
    assert lines[row + 1] == ""  # of the other device no parts are known
    assert not any(line.startswith("device  of that") for line in report.text(made()).splitlines())


def test_printed_plan_is_its_table():
    assert str(made()) == SPLIT
