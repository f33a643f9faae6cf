"""The report in Chromium: nothing is asked for, nothing goes wrong, and what should be drawn is drawn."""

from itertools import groupby

import msgspec
import pytest
from chromium import BINARY, attributes, browse, pixels
from plans import hostile, large, pipelined

from autosplit.placement import Prediction, Span, Transfer
from autosplit.report.html import page
from autosplit.report.tree import blocks, module_tree

pytestmark = pytest.mark.skipif(BINARY is None, reason="no chromium on this machine: apt-get install chromium")

WEIGHTS, ACTIVATIONS, FORWARD, BACKWARD = ("0072b2", "56b4e9", "0072b2", "e69f00")


OPEN_BLOCKS = """<script>
const labels = () => visible.map((block) => block.label).join("|");
const shown = [labels()];
for (const wanted of ["layers 6-11", "model.layers.7", "model.layers.7.mlp"]) {
  const buttons = [...document.querySelectorAll("#blocks button")];
  buttons.find((button) => button.textContent.startsWith(wanted + ":")).click();
  shown.push(labels());
}
document.getElementById("collapse").click(); shown.push(labels());
document.body.dataset.shown = shown.join(" ; ");
</script>"""


def opened(plan, work, *flags, **options):
    path = work / "report.html"
    path.write_text(page(plan), encoding="utf-8")
    return browse(path, work, *flags, **options)


def marks(dom):
    """Marks drawn by chart."""
    parts = dom.split('class="chart"')[1:]
    return {attributes(part, "id")[0]: int(attributes(part, "data-marks")[0]) for part in parts}


def test_a_plan_with_next_to_nothing_in_it_is_drawn(tmp_path):
    bare = Prediction(devices={}, step_ns=0, transfer_ns=0)
    given = {"strategy": "single", "prediction": bare, "pipeline": None, "options": (), "transfers": ()}
    dom, console, _ = opened(pipelined(1, **given), tmp_path, "--dump-dom")
    assert console == []
    assert marks(dom) == {"memory": 1, "graph": 2}  # what is free; model and head


@pytest.mark.parametrize("plan", [pipelined(), hostile()], ids=["pipeline", "hostile"])
def test_nothing_is_asked_for_and_nothing_goes_wrong(plan, tmp_path):
    dom, console, asked = opened(plan, tmp_path, "--dump-dom")
    assert console == []
    assert asked == []
    drawn = marks(dom)
    assert set(drawn) == {"memory", "timeline", "schedule", "graph"}
    assert all(drawn.values())
    assert dom.count("<canvas") == 4


def test_a_request_would_be_seen(tmp_path):
    path = tmp_path / "page.html"
    path.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("seen")</script>')
    _, console, asked = browse(path, tmp_path, "--dump-dom")
    assert "http://127.0.0.1:9/x.png" in asked
    assert len(console) == 1


def test_every_span_copy_and_block_is_drawn(tmp_path):
    plan = pipelined()
    dom, _, _ = opened(plan, tmp_path, "--dump-dom")
    drawn = marks(dom)
    copies = sum(bool(span.to) for span in plan.prediction.spans)
    serial = 2 * 4 + 2 * (2 * 3)  # a forward and a backward on 4 devices, 2 x 3 copies at both their ends
    assert drawn["schedule"] == len(plan.prediction.spans) + copies + serial
    assert drawn["graph"] == 7 + len(plan.transfers) + 1  # and the input, on the host
    assert drawn["memory"] == 4 * 4  # weights, activations, reserve and free of 4 devices


def test_bars_schedule_and_graph_can_be_seen(tmp_path):
    shot = tmp_path / "shot.png"
    opened(pipelined(), tmp_path, f"--screenshot={shot}", "--window-size=1280,2400")
    rows = pixels(shot)
    assert rows.shape == (2400, 1280, 3)
    areas = {"memory": (700, 900), "timeline": (950, 1300), "schedule": (1440, 1880), "graph": (1880, 2200)}

    def seen(chart, colour):
        top, bottom = areas[chart]
        return int((rows[top:bottom] == list(bytes.fromhex(colour))).all(2).sum())

    assert seen("memory", WEIGHTS) > 5000
    assert seen("memory", ACTIVATIONS) > 5000
    assert seen("schedule", FORWARD) > 5000
    assert seen("schedule", BACKWARD) > 2000
    for colour in ("0072b2", "e69f00", "009e73", "d55e00"):  # of the four devices
        assert seen("graph", colour) > 200, colour
        assert seen("timeline", colour) > 50, colour


def test_a_block_opens_into_its_modules_and_closes(tmp_path):
    text = page(pipelined()).split("<script>")
    policy = text[0].index('<meta http-equiv="Content-Security-Policy"')  # so that the test may add a script
    text[0] = text[0][:policy] + text[0][text[0].index(">", policy) + 1 :]
    path = tmp_path / "open.html"
    head, _, tail = "<script>".join(text).rpartition("</body>")
    path.write_text(head + OPEN_BLOCKS + "</body>" + tail, encoding="utf-8")
    dom, console, _ = browse(path, tmp_path, "--dump-dom")
    assert console == []
    first, layers, module, operators, closed = attributes(dom, "data-shown")[0].split(" ; ")
    assert first == closed == "embed|layers 0-5|layers 6-11|layers 12-17|layers 18-23|norm|head"
    assert layers.split("|")[2:8] == [f"model.layers.{i}" for i in range(6, 12)]
    assert module.split("|")[3] == "model.layers.7.mlp"
    assert operators.split("|")[3:8] == [f"op#{i} of model.layers.7.mlp" for i in range(5)]


def with_host():
    """A split whose schedule says when the host sends its input and gets the result."""
    plan = pipelined(2, strategy="split", pipeline=None)
    spans = (
        Span(device="host", kind="send", start_ns=0, end_ns=10**6, to="gpu:0"),
        Span(device="gpu:0", kind="forward", start_ns=10**6, end_ns=9 * 10**6),
        Span(device="gpu:1", kind="forward", start_ns=9 * 10**6, end_ns=18 * 10**6),
        Span(device="gpu:1", kind="send", start_ns=18 * 10**6, end_ns=19 * 10**6, to="host"),
    )
    result = Transfer(tensor="model.head/op", src="gpu:1", dst="host", size_bytes=64)
    prediction = msgspec.structs.replace(plan.prediction, spans=spans, step_ns=19 * 10**6)
    return msgspec.structs.replace(plan, prediction=prediction, transfers=(*plan.transfers, result))


def test_the_host_has_its_own_lane_boxes_and_colour(tmp_path):
    plan, shot = with_host(), tmp_path / "shot.png"
    dom, console, _ = opened(plan, tmp_path, "--dump-dom")
    assert console == []
    assert marks(dom)["schedule"] == 2 + 2 * 2  # passes, and both ends of two copies; nothing twice: no second chart
    assert marks(dom)["graph"] == len(blocks(module_tree(plan.placement), plan.placement)) + len(plan.transfers) + 2
    listed = dom.split('<ul id="blocks">')[1].split("</ul>")[0]
    assert [said in listed for said in ("○ host: copied to gpu:0", "○ host: copied from gpu:1")] == [True, True]
    opened(plan, tmp_path, f"--screenshot={shot}", "--window-size=1280,2400")
    column = map(bytes, pixels(shot)[1100:2000, 1196])  # at the right, where few bars are
    bands = [(bytes(colour).hex(), len(list(band))) for colour, band in groupby(column)]
    grounds = [length for colour, length in bands if colour == "f3f5f8" and length > 8]
    assert len(grounds) == 2  # gpu:1's lane in the schedule and in the model: neither gpu:0's nor the host's
    assert max(grounds) <= 60


def test_many_inputs_are_one_box(tmp_path):
    plan = with_host()
    inputs = [Transfer(tensor=f"input/x{i}", src="host", dst=f"gpu:{i % 2}", size_bytes=64) for i in range(12)]
    plan = msgspec.structs.replace(plan, transfers=(*plan.transfers, *inputs))
    dom, console, _ = opened(plan, tmp_path, "--dump-dom")
    assert console == []
    assert marks(dom)["graph"] == len(blocks(module_tree(plan.placement), plan.placement)) + len(plan.transfers) + 2
    assert "13 inputs: ○ host: copied to gpu:0, gpu:1" in dom


def test_dark_where_the_system_is_dark(tmp_path):
    shot = tmp_path / "shot.png"
    opened(
        pipelined(),
        tmp_path,
        f"--screenshot={shot}",
        "--window-size=800,600",
        "--blink-settings=preferredColorScheme=0",
    )
    assert bytes(pixels(shot)[5, 5]).hex() == "101317"


@pytest.mark.long
def test_twenty_thousand_nodes_open_in_five_seconds(tmp_path):
    dom, console, _ = opened(large(20_000), tmp_path, "--dump-dom", wait_ms=0)
    assert console == []
    assert marks(dom)["graph"]
    ready_ms = int(attributes(dom, "data-ready-ms")[0])
    print(f"20,000 nodes: drawn {ready_ms} ms after the page was asked for")
    assert ready_ms < 5000
