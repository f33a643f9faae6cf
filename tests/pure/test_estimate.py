"""The estimate against a separate simulator, against plain formulas, and on cases worked out by hand."""

import random

import pytest
from graphs import Case, cases, random_case, random_placement
from hypothesis import given
from hypothesis import strategies as st
from reference import reference_makespan, reference_peaks

from autosplit import estimate
from autosplit.device import HOST, Cluster, Device, Link
from autosplit.errors import DeviceError
from autosplit.graph import CostGraph, Node, Tensor

PAIR = Cluster(
    devices=tuple(Device(name=name, kind="k", memory_bytes=1000) for name in ("A", "B")),
    default_bandwidth_bytes_per_s=10**9,
    default_latency_ns=100,
)


def graph_of(nodes: str, tensors: list[Tensor], mode: str = "infer", **fields: object) -> CostGraph:
    return CostGraph([Node(name=name, **fields) for name in nodes], tensors, mode)


def check_against_reference(case: Case, rng: random.Random) -> None:
    placement = random_placement(rng, case)
    expected = reference_peaks(case.graph, placement, case.cluster.names, case.io_device)
    assert estimate.peak_bytes(case.graph, placement, case.cluster, case.io_device) == expected


@given(cases(), st.randoms(use_true_random=False))
def test_peaks_are_those_of_the_simulator(case, rng):
    check_against_reference(case, rng)


def test_peaks_are_those_of_the_simulator_on_many_graphs():
    for seed in range(1500):
        rng = random.Random(seed)
        check_against_reference(random_case(rng, rng.randrange(1, 12), rng.randrange(1, 4)), rng)


@given(cases(), st.randoms(use_true_random=False))
def test_times_are_those_of_nodes_and_transfers(case, rng):
    graph, cluster, placement = case.graph, case.cluster, random_placement(rng, case)
    busy = dict.fromkeys(cluster.names, 0)
    for name, device in placement.items():
        busy[device] += graph.node_ns(name, cluster.device(device).kind)
    load, total = dict(busy), sum(busy.values())
    for t in estimate.transfers(graph, placement, cluster, case.io_device):
        cost = cluster.transfer_ns(t.src, t.dst, t.size_bytes)
        cost += cluster.transfer_ns(t.dst, t.src, t.size_bytes) if t.returns_gradient else 0
        total += cost
        for end in {t.src, t.dst} - {HOST}:
            load[end] += cost
    peaks = estimate.peak_bytes(graph, placement, cluster, case.io_device)
    assert estimate.busy_ns(graph, placement, cluster) == busy
    step_ns = reference_makespan(graph, placement, cluster, case.io_device)
    assert estimate.step_ns(graph, placement, cluster, case.io_device) == step_ns
    assert estimate.transfer_ns(graph, placement, cluster, case.io_device) == total - sum(busy.values())
    if len(set(placement.values())) == 1 or all(device.is_synchronous for device in cluster.devices):
        assert step_ns == total
    for objective, expected in (
        ("latency", step_ns),
        ("throughput", max(load.values())),
        ("memory", max(peaks.values())),
    ):
        assert estimate.value(graph, placement, cluster, objective, case.io_device) == expected


@given(cases(), st.randoms(use_true_random=False))
def test_transfers_bring_every_tensor_to_its_readers_once(case, rng):
    graph, placement = case.graph, random_placement(rng, case)
    found = estimate.transfers(graph, placement, case.cluster, case.io_device)
    assert len({(t.tensor, t.dst) for t in found}) == len(found)
    there = {(t.tensor, t.dst) for t in found}
    for tensor in graph.tensors.values():
        there.add((tensor.name, placement[tensor.producer]))
        if tensor.kind == "input":
            there.add((tensor.name, case.io_device))
    for tensor in graph.tensors.values():
        for reader in tensor.readers:
            assert (tensor.name, placement[reader]) in there
        if tensor.is_output:
            assert (tensor.name, case.io_device) in there
    assert all(t.src != t.dst and (t.tensor, t.src) in there for t in found)


def test_a_tensor_read_twice_on_a_device_is_sent_once():
    graph = graph_of("abc", [Tensor(name="x", producer="a", readers=("b", "c"), size_bytes=50)])
    placement = {"a": "A", "b": "B", "c": "B"}
    assert [(t.src, t.dst) for t in estimate.transfers(graph, placement, PAIR)] == [("A", "B")]
    assert estimate.step_ns(graph, placement, PAIR) == 150


def test_inputs_arrive_and_outputs_return():
    tensors = [
        Tensor(name="x", producer="a", readers=("b",), size_bytes=10, kind="input"),
        Tensor(name="y", producer="b", size_bytes=20, is_output=True),
    ]
    graph = graph_of("ab", tensors)
    ends = [(t.tensor, t.src, t.dst) for t in estimate.transfers(graph, {"a": "A", "b": "B"}, PAIR)]
    assert ends == [("x", HOST, "A"), ("x", "A", "B"), ("y", "B", HOST)]
    ends = [(t.tensor, t.src, t.dst) for t in estimate.transfers(graph, {"a": "A", "b": "B"}, PAIR, "B")]
    assert ends == [("x", "B", "A")]


def test_a_link_may_be_slower_one_way():
    cluster = Cluster(
        devices=PAIR.devices,
        links=(Link(src="B", dst="A", bandwidth_bytes_per_s=10**6, latency_ns=0),),
        default_bandwidth_bytes_per_s=10**9,
        default_latency_ns=0,
    )
    x = Tensor(name="x", producer="a", readers=("b",), size_bytes=3, requires_grad=True)
    placement = {"a": "A", "b": "B"}
    assert estimate.step_ns(graph_of("ab", [x]), placement, cluster) == 3
    assert estimate.step_ns(graph_of("ab", [x], "train"), placement, cluster) == 3 + 3000


def test_a_tensor_dies_after_its_last_reader():
    chain = [
        Tensor(name=f"t{i}", producer=p, readers=(r,), size_bytes=10) for i, (p, r) in enumerate(["ab", "bc", "cd"])
    ]
    assert estimate.peak_bytes(graph_of("abcd", chain), dict.fromkeys("abcd", "A"), PAIR) == {"A": 20, "B": 0}


def test_views_share_their_allocation_also_on_the_copy():
    base = Tensor(name="x", producer="a", readers=("b",), size_bytes=100)
    view = Tensor(name="v", producer="b", readers=("c",), size_bytes=100, storage="x", storage_bytes=100)
    graph = graph_of("abc", [base, view])
    assert estimate.peak_bytes(graph, dict.fromkeys("abc", "A"), PAIR) == {"A": 100, "B": 0}
    assert estimate.peak_bytes(graph, {"a": "A", "b": "B", "c": "B"}, PAIR) == {"A": 100, "B": 100}


def test_training_keeps_what_is_saved_and_gradients_and_state():
    weight = Tensor(
        name="w", producer="a", size_bytes=100, kind="parameter", requires_grad=True, state_bytes=200, step_bytes=7
    )
    hidden = Tensor(name="h", producer="a", readers=("b",), size_bytes=10, requires_grad=True, saved_by=("b",))
    graph = graph_of("ab", [weight, hidden], "train")
    # in the backward of a: weight 100, state 200, its gradient 100, the gradient of h 10; the step takes 407
    assert estimate.peak_bytes(graph, {"a": "A", "b": "A"}, PAIR) == {"A": 410, "B": 0}
    # B: the copy that b saved and its gradient
    assert estimate.peak_bytes(graph, {"a": "A", "b": "B"}, PAIR) == {"A": 410, "B": 20}


def test_the_caller_keeps_an_input_on_its_device():
    x = Tensor(name="x", producer="a", size_bytes=10, kind="input")
    y = Tensor(name="y", producer="a", readers=("b",), size_bytes=10)
    z = Tensor(name="z", producer="b", size_bytes=10, is_output=True)
    graph = graph_of("ab", [x, y, z])
    assert estimate.peak_bytes(graph, {"a": "A", "b": "A"}, PAIR, HOST) == {"A": 20, "B": 0}
    assert estimate.peak_bytes(graph, {"a": "A", "b": "A"}, PAIR, "A") == {"A": 30, "B": 0}
    assert estimate.peak_bytes(graph, {"a": "A", "b": "A"}, PAIR, "B") == {"A": 20, "B": 20}


def test_workspace_is_taken_only_while_the_node_runs():
    nodes = [Node(name="a", workspace_bytes=50), Node(name="b", workspace_bytes=60)]
    assert estimate.peak_bytes(CostGraph(nodes, []), {"a": "A", "b": "A"}, PAIR) == {"A": 60, "B": 0}


def test_an_unknown_io_device_is_named():
    with pytest.raises(DeviceError, match="unknown device 'C'"):
        estimate.peak_bytes(graph_of("a", []), {"a": "A"}, PAIR, "C")


def check_spans(case: Case, rng: random.Random) -> None:
    placement = random_placement(rng, case)
    given = (case.graph, placement, case.cluster, case.io_device)
    found = estimate.spans(*given)
    assert max((span.end_ns for span in found), default=0) <= estimate.step_ns(*given)
    busy, copied = dict.fromkeys(case.cluster.names, 0), 0
    for span in found:
        if span.to:
            copied += span.end_ns - span.start_ns
        else:
            busy[span.device] += span.end_ns - span.start_ns
    assert busy == estimate.busy_ns(*given[:3])
    assert copied == estimate.transfer_ns(*given)
    assert [span.start_ns for span in found] == sorted(span.start_ns for span in found)


@given(cases(), st.randoms(use_true_random=False))
def test_spans_are_the_makespan_written_down(case, rng):
    check_spans(case, rng)


def test_spans_are_few_where_gaps_are_many():
    names = [f"n{i}" for i in range(5000)]
    graph = CostGraph([Node(name=name, forward_ns={"*": 5 + i % 7}) for i, name in enumerate(names)], [])
    found = estimate.spans(graph, {name: "AB"[i % 2] for i, name in enumerate(names)}, PAIR)
    assert 0 < len(found) <= 2000
    assert max(span.end_ns for span in found) == estimate.step_ns(
        graph, {name: "AB"[i % 2] for i, name in enumerate(names)}, PAIR
    )
