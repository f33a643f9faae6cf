"""What a review found wrong in the engine, each with the smallest problem that showed it."""

import itertools
import random

import pytest

from autosplit.checker import replay
from autosplit.device import Cluster, Device
from autosplit.errors import AutosplitError, GraphError
from autosplit.estimate.judge import Judge
from autosplit.graph import CostGraph, Node, Tensor
from autosplit.placement import CostModel
from autosplit.solvers import solve


def chain(times: dict[str, int], **fields) -> CostGraph:
    nodes = [Node(name=name, forward_ns={"*": ns}, **fields) for name, ns in times.items()]
    names = list(times)
    return CostGraph(
        nodes,
        [Tensor(name=f"t{a}", producer=a, readers=(b,), size_bytes=0) for a, b in itertools.pairwise(names)],
    )


def cluster(*names: str, memory_bytes: int = 10**9, **fields) -> Cluster:
    devices = tuple(Device(name=name, kind="g", memory_bytes=memory_bytes, **fields) for name in names)
    return Cluster(devices=devices, default_latency_ns=0, default_bandwidth_bytes_per_s=10**9)


def test_a_stage_before_another_holds_more_micro_batches_whatever_comes_first_in_the_program():
    names = ["n0", *(f"a{i}" for i in range(4)), *(f"b{i}" for i in range(4))]
    nodes = [
        Node(name=name, forward_ns={"*": 0 if name == "n0" else 10}, inflight_bytes=10 * (name[0] == "a"))
        for name in names
    ]
    tensors = [Tensor(name="t0", producer="n0", readers=("b3",), size_bytes=0)]
    tensors += [Tensor(name=f"t{a}", producer=a, readers=(b,), size_bytes=0) for a, b in itertools.pairwise(names)]
    graph, devices = CostGraph(nodes, tensors), cluster("d:0", "d:1", memory_bytes=45)
    model = CostModel(microbatches=4)
    found = solve(graph, devices, objective="throughput", contiguous=True, cost_model=model)
    with_choices = solve(graph, devices, objective="throughput", contiguous=True, cost_model=model, recompute=True)
    assert found.value == with_choices.value == 60
    assert found.bound <= 60
    held = replay(graph, found.devices, devices, objective="memory", cost_model=model)
    assert held.over_bytes == {}


def test_backward_nodes_that_nothing_ties_may_be_anywhere():
    times = [40, 0, 100, 0, 100, 70, 0, 40, 0, 5, 40, 5]
    graph = chain({f"b{i}": ns for i, ns in enumerate(times)}, is_backward=True)
    devices = cluster("d:0", "d:1")
    anywhere = solve(graph, devices, objective="throughput")
    found = solve(graph, devices, objective="throughput", contiguous=True)
    assert found.bound <= anywhere.value == 200


@pytest.mark.parametrize("seed", range(40))
def test_no_contiguous_bound_is_above_a_placement_with_loose_backward_nodes(seed):
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(9)]
    backward = [i > 4 and rng.random() < 0.7 for i in range(9)]
    nodes = [
        Node(name=name, forward_ns={"*": rng.randint(0, 90)}, is_backward=back)
        for name, back in zip(names, backward, strict=True)
    ]
    tensors = [
        Tensor(
            name=f"t{i}",
            producer=names[i],
            readers=tuple(sorted(rng.sample(names[i + 1 :], rng.randint(1, min(2, 8 - i))))),
            size_bytes=rng.randint(0, 20),
        )
        for i in range(8)
    ]
    graph, devices = CostGraph(nodes, tensors), cluster("d:0", "d:1", "d:2")
    found = solve(graph, devices, objective="throughput", contiguous=True)
    for _ in range(300):
        placed = {name: rng.choice(devices.names) for name in names}
        stage = {name: devices.names.index(device) for name, device in placed.items()}
        forward = [
            (tensor.producer, reader)
            for tensor in graph.tensors.values()
            for reader in tensor.readers
            if not graph.nodes[tensor.producer].is_backward and not graph.nodes[reader].is_backward
        ]
        if all(stage[producer] <= stage[reader] for producer, reader in forward):
            assert found.bound <= replay(graph, placed, devices, objective="throughput").value


def test_a_virtual_device_is_not_an_accelerator_of_the_same_speed():
    graph = CostGraph([Node(name=name, forward_ns={"*": 1000}) for name in "abc"], [])
    values = {
        solve(graph, cluster(*names, launch_ns=1)).value
        for names in (("sim:0", "d:1", "d:2"), ("d:1", "d:2", "sim:0"), ("d:1", "sim:0", "d:2"))
    }
    assert values == {1002}


def test_times_at_the_limit_do_not_overflow():
    graph = chain({f"n{i}": 2**54 for i in range(12)})
    for contiguous in (True, False):
        found = solve(graph, cluster("d:0", "d:1"), objective="throughput", contiguous=contiguous)
        assert found.value == found.bound == 6 * 2**54


def test_transfers_beyond_the_limit_are_refused():
    tensor = Tensor(name="t", producer="a", readers=("b",), size_bytes=10**12, is_held=False)
    graph = CostGraph([Node(name=name, forward_ns={"*": 5}) for name in "abcdefghijkl"], [tensor])
    slow = Cluster(devices=cluster("d:0", "d:1").devices, default_bandwidth_bytes_per_s=1, default_latency_ns=0)
    with pytest.raises(GraphError, match=r"transfers of the graph may take \d+ ns in all; the limit is 2\*\*60"):
        solve(graph, slow, objective="throughput")


def test_a_node_without_a_time_for_the_devices_is_refused():
    graph = CostGraph([Node(name="a", forward_ns={"A100": 10**6})], [])
    with pytest.raises(GraphError, match="node 'a' has no time for devices of kind 'A100-80GB', only for A100"):
        solve(graph, "4xA100-80GB")


def test_no_nodes_need_no_stages():
    empty = CostGraph([], [])
    assert solve(empty, "2x1GiB", objective="throughput", contiguous=True, replicate="stages").devices == {}


def test_a_pin_that_nothing_meets_is_told_as_such_for_pipelines_too():
    graph = CostGraph([Node(name="a", forward_ns={"*": 1}, devices=("tpu",))], [])
    for replicate in ("none", "stages"):
        with pytest.raises(GraphError, match="node 'a' may run on tpu"):
            solve(graph, "2x1GiB", objective="throughput", contiguous=True, replicate=replicate)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"objective": "speed"}, "objective 'speed'"), ({"effort": 0}, "effort 0")],
)
def test_arguments_that_there_are_not(options, message):
    with pytest.raises(ValueError, match=message):
        solve(CostGraph([], []), "2x1GiB", **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"transfers": "hosts"}, "'hosts'"), ({"schedule": "zb"}, "'zb'"), ({"microbatches": 0}, "microbatches is 0")],
)
def test_cost_models_that_there_are_not(fields, message):
    with pytest.raises(ValueError, match=message):
        CostModel(**fields)


def test_solve_asks_the_checker(monkeypatch):
    """A judge that leaves out a nanosecond is found out."""
    honest = Judge.load_ns
    monkeypatch.setattr(Judge, "load_ns", lambda judge, labels: [load - 1 for load in honest(judge, labels)])
    with pytest.raises(AutosplitError, match=r"wrong result of solver .*claimed 9, found 10"):
        solve(CostGraph([Node(name="a", forward_ns={"*": 10})], []), "1x1GiB", objective="throughput")
