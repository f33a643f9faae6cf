"""The report, the trace and the graph of plans made by hand: no name gets out, the figures are the plan's."""

import base64
import hashlib
import html
import json
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import HOSTILE, hostile, large, layers, pipelined

from autosplit.report.explorer import explorer
from autosplit.report.html import page, script_json
from autosplit.report.html.data import numbers, words
from autosplit.report.timeline import one_at_a_time, planned
from autosplit.report.trace import trace
from autosplit.report.tree import blocks, module_tree
from autosplit.report.words import clean


class Page(HTMLParser):
    """Elements, their attributes, and the text of each script and style."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.raw, self.text, self._in = [], {"script": [], "style": []}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in self.raw:
            self.raw[tag].append("")
            self._in = tag

    def handle_endtag(self, tag):
        if tag == self._in:
            self._in = None

    def handle_data(self, data):
        if self._in:
            self.raw[self._in][-1] += data
        else:
            self.text.append(data)


@pytest.fixture(scope="module")
def hostile_page():
    return Page(page(hostile()))


def policy_of(found):
    content = next(attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv"))
    return dict(part.strip().split(" ", 1) for part in content.split(";"))


def test_hostile_names_make_no_element(hostile_page):
    usual = Page(page(pipelined()))
    assert {tag for tag, _ in hostile_page.tags} <= {tag for tag, _ in usual.tags}
    assert len(hostile_page.raw["script"]) == 3
    for tag, attrs in hostile_page.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
        assert not {"src", "href", "style", "srcset", "action", "data"} & attrs.keys(), tag


def test_hostile_names_are_there_as_text(hostile_page):
    text = "".join(hostile_page.text)
    for name in HOSTILE:
        assert clean(name) in text
    assert "49" not in text.split("{{ 7 * 7 }}")[1][:4]
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_data_is_json_that_no_name_ends(hostile_page):
    assert json.loads(hostile_page.raw["script"][0]) == json.loads(msgspec.json.encode(numbers(hostile())))
    assert not set("<>&\u2028\u2029") & set(hostile_page.raw["script"][0])


@given(st.text())
def test_script_json_says_the_same(text):
    assert json.loads(script_json([text])) == [text]


def test_policy_lets_ours_run_and_nothing_else(hostile_page):
    def hashed(content):
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    policy = policy_of(hostile_page)
    _, library, ours = hostile_page.raw["script"]
    assert policy["default-src"] == "'none'"
    assert policy["script-src"].split() == [hashed(library), hashed(ours)]
    assert policy["style-src"].split() == [hashed(hostile_page.raw["style"][0])]
    assert set(policy) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert policy["img-src"] == "data:"


def test_our_scripts_and_style_ask_for_nothing(hostile_page):
    ours = hostile_page.raw["script"][2] + hostile_page.raw["style"][0]
    for word in ("http:", "https:", "fetch(", "XMLHttpRequest", "import(", "innerHTML", "eval(", "url(", "@import"):
        assert word not in ours


def test_same_plan_same_page():
    assert page(pipelined()) == page(pipelined())


def test_page_is_the_library_and_little_more():
    size = len(page(pipelined()).encode())
    assert 1_100_000 < size < 1_250_000
    assert len(page(large()).encode()) < size + 3_000_000


def test_tables_and_pictures_can_be_read_aloud():
    found = Page(page(pipelined()))
    charts = [attrs for tag, attrs in found.tags if attrs.get("class") == "chart"]
    assert [attrs["id"] for attrs in charts] == ["memory", "timeline", "schedule", "graph"]
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    assert all("scope" in attrs for tag, attrs in found.tags if tag == "th")
    assert found.tags[0] == ("html", {"lang": "en"})


def test_figures_are_the_plans():
    plan = pipelined()
    text = " ".join("".join(Page(page(plan)).text).split())
    for said in ("training on 4 devices", "does not fit one device", "10.0 GiB", "6 micro-batches, 1f1b", "16.0 MiB"):
        assert said in text
    cards = {title: figure for title, figure, _ in words(plan)["cards"]}
    busy = sum(device.busy_ns for device in plan.prediction.devices.values())
    assert cards["idle"] == f"{1 - busy / (4 * plan.prediction.step_ns):.0%}"
    assert cards["fullest device"] == "62%"
    assert cards["transfers"] == "4"


def test_plan_without_schedule_or_timeline_says_so():
    plan = pipelined()
    bare = msgspec.structs.replace(plan.prediction, devices={}, spans=())
    found = Page(page(msgspec.structs.replace(plan, prediction=bare, transfers=(), assumptions=())))
    text = "".join(found.text)
    assert "This plan holds no schedule" in text
    assert "Nothing is copied between devices." in text
    assert [attrs["id"] for _, attrs in found.tags if attrs.get("class") == "chart"] == ["memory", "graph"]


def test_notebook_form_is_small_and_has_no_script():
    for plan in (hostile(), pipelined()):
        found = Page(plan._repr_html_())
        assert not found.raw["script"]
        assert {tag for tag, _ in found.tags} == (
            {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "meter", "details", "summary", "ul", "li"}
        )
        assert all(set(attrs) <= {"style", "scope", "min", "max", "value"} for _, attrs in found.tags)
    assert len(pipelined()._repr_html_()) < 6000
    assert html.escape(HOSTILE[1]) in hostile()._repr_html_()


# ---------------------------------------------------------------- blocks


def test_layers_of_a_device_are_one_block():
    found = blocks(module_tree(layers()), layers())
    assert [(block.device, block.label) for block in found] == [
        ("gpu:0", "embed"),
        ("gpu:0", "layers 0-5"),
        ("gpu:1", "layers 6-11"),
        ("gpu:2", "layers 12-17"),
        ("gpu:3", "layers 18-23"),
        ("gpu:3", "norm"),
        ("gpu:3", "head"),
    ]


def test_a_layer_that_is_cut_is_a_part_on_each_device():
    placement = {f"layers.{i}.{part}/mm": "a" if (i, part) < (1, "n") else "b" for i in range(3) for part in "amz"}
    found = blocks(module_tree(placement), placement)
    assert [(block.device, block.label, block.count) for block in found] == [
        ("a", "layers.0", 3),
        ("a", "layers.1, part", 2),
        ("b", "layers.1, part", 1),
        ("b", "layers.2", 3),
    ]


PATHS = st.lists(st.sampled_from(["a", "b", "layers", "0", "1", "2", "10"]), max_size=9).map(".".join)


@given(st.lists(st.tuples(PATHS, st.sampled_from("pqrst")), max_size=60))
def test_blocks_have_each_device_and_no_node_twice(nodes):
    placement = {f"{path}/op#{i}": device for i, (path, device) in enumerate(nodes)}
    root = module_tree(placement)
    found = blocks(root, placement)
    held = Counter(placement.values())
    drawn = Counter()
    for block in found:
        drawn[block.device] += block.count
    assert set(drawn) == set(held)
    assert all(0 < drawn[device] <= held[device] for device in held)
    assert [block.at for block in found] == sorted(block.at for block in found)


def test_scattered_nodes_are_few_blocks():
    placement = {f"model.layers.{i // 40}.mlp.{i % 40}/op": f"gpu:{i * 7 % 8}" for i in range(20_000)}
    assert len(blocks(module_tree(placement), placement)) <= 88


# ---------------------------------------------------------------- schedule, trace, graph


def test_one_at_a_time_is_all_work_end_to_end():
    plan = pipelined()
    serial = one_at_a_time(plan)
    assert serial.total_ns == sum(span.end_ns - span.start_ns for span in plan.prediction.spans)
    assert [span.start_ns for span in serial.spans[1:]] == [span.end_ns for span in serial.spans[:-1]]
    assert [span.device for span in serial.spans if span.kind == "forward"] == ["gpu:0", "gpu:1", "gpu:2", "gpu:3"]
    assert [span.device for span in serial.spans if span.kind == "backward"] == ["gpu:3", "gpu:2", "gpu:1", "gpu:0"]
    assert serial.total_ns > 2 * planned(plan).total_ns


def test_trace_has_every_span_once_and_copies_at_both_ends():
    plan = pipelined()
    events = json.loads(trace(plan))["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert [name.partition(",")[0] for name in names.values()] == ["gpu:0", "gpu:1", "gpu:2", "gpu:3"]
    done = Counter((event["pid"], event["tid"]) for event in events if event["ph"] == "X")
    computes = [span for span in plan.prediction.spans if not span.to]
    assert sum(count for (_, track), count in done.items() if track == 1) == len(computes)
    assert sum(count for (_, track), count in done.items() if track == 2) == 2 * (
        len(plan.prediction.spans) - len(computes)
    )
    busy_us = sum(event["dur"] for event in events if event["ph"] == "X" and event["tid"] == 1)
    assert busy_us == pytest.approx(sum(span.end_ns - span.start_ns for span in computes) / 1000)


def test_trace_of_two_passes_at_once_never_overlaps_on_a_track():
    events = [event for event in json.loads(trace(pipelined()))["traceEvents"] if event["ph"] == "X"]
    for pid in {event["pid"] for event in events}:
        mine = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if (e["pid"], e["tid"]) == (pid, 1))
        assert all(end <= start + 1e-6 for (_, end), (start, _) in pairwise(mine))


def test_graph_collection_is_whole():
    plan = pipelined()
    made = json.loads(explorer(plan))
    assert set(made) == {"label", "graphs"}
    nodes = made["graphs"][0]["nodes"]
    ids = {node["id"] for node in nodes}
    assert len(ids) == len(nodes) == len(plan.placement) + len(plan.transfers)
    assert all(edge["sourceNodeId"] in ids for node in nodes for edge in node["incomingEdges"])
    copies = [node for node in nodes if node["id"].startswith("copy")]
    assert [len(node["incomingEdges"]) for node in copies] == [0, 1, 1, 1]  # the input comes from the host
    fed = [edge["sourceNodeId"] for node in nodes for edge in node["incomingEdges"] if edge["sourceNodeId"][0] == "c"]
    assert sorted(fed) == [node["id"] for node in copies]
    by_id = {node["id"]: {attr["key"]: attr["value"] for attr in node["attrs"]} for node in nodes}
    for at, (name, device) in enumerate(plan.placement.items()):
        assert by_id[str(at)]["device"] == device
        assert nodes[at]["namespace"] == name.rpartition("/")[0].replace(".", "/")


def test_hostile_names_leave_trace_and_graph_whole():
    for text in (trace(hostile()), explorer(hostile())):
        json.loads(text)
        assert "\u202e" not in text
        assert "\x1b" not in text
