"""The makespan in blocks against the judge, its lower bounds against every placement, and the search for it."""

import random

import msgspec
import pytest
from graphs import Case, random_case

from autosplit.device import HOST, Cluster, Device
from autosplit.estimate.makespan import makespan_ns
from autosplit.graph import CostGraph, Mode, Node, Tensor
from autosplit.solvers import solve
from autosplit.solvers.bounds import critical_path, shared_work
from autosplit.solvers.latency.side_by_side import _Greedy, upward_ranks
from autosplit.solvers.latency.track import Track
from autosplit.solvers.problem import Problem


def labels_of(rng: random.Random, problem: Problem) -> list[int]:
    labels = [0] * problem.n
    for bundle in problem.bundles:
        device = rng.randrange(problem.k)
        for i in bundle:
            labels[i] = device
    return labels


@pytest.mark.parametrize("seed", range(200))
def test_a_track_gives_the_makespan(seed):
    rng = random.Random(seed)
    case = random_case(rng, rng.randrange(1, 30), rng.randrange(1, 5))
    problem = Problem(case.graph, case.cluster, "latency", case.io_device)
    track = Track(problem)
    assert sorted(i for block in track.blocks for i in block) == list(range(problem.n))
    for _ in range(10):
        labels = [rng.randrange(problem.k) for _ in track.blocks]
        assert track.makespan(labels) == makespan_ns(problem.judge, track.spread(labels))
        assert track.labels(track.spread(labels)) == labels


def test_chains_are_one_block():
    nodes = [Node(name=f"n{i}", forward_ns={"*": 10}) for i in range(200)]
    tensors = [Tensor(name=f"t{i}", producer=f"n{i}", readers=(f"n{i + 1}",), size_bytes=1) for i in range(199)]
    track = Track(Problem(CostGraph(nodes, tensors), two(), "latency"))
    assert len(track.segments) == len(track.blocks) < 200


@pytest.mark.parametrize("seed", range(300))
def test_no_placement_is_below_the_bounds(seed):
    rng = random.Random(seed)
    case = random_case(rng, rng.randrange(1, 12), rng.randrange(1, 4))
    problem = Problem(case.graph, case.cluster, "latency", case.io_device)
    bound = max(shared_work(problem), critical_path(problem))
    for _ in range(30):
        assert bound <= problem.judge.step_ns(labels_of(rng, problem))


def test_ranks_fall_from_a_node_to_its_readers():
    case = random_case(random.Random(3), 30, 2)
    problem = Problem(case.graph, case.cluster)
    ranks = upward_ranks(problem)
    assert all(ranks[item.producer] > ranks[reader] for item in problem.judge.items for reader in item.readers)


def two(launch_ns: int = 0, names: str = "gpu") -> Cluster:
    return Cluster(
        devices=tuple(Device(name=f"{names}:{i}", kind="k", memory_bytes=10**9, launch_ns=launch_ns) for i in (0, 1)),
        default_latency_ns=1000,
        default_bandwidth_bytes_per_s=10**9,
    )


def towers(length: int, mode: Mode = "infer") -> CostGraph:
    """Two chains, in alternation, that one node joins."""
    names = [f"{side}{i}" for i in range(length) for side in "ab"]
    nodes = [Node(name=name, forward_ns={"*": 5000}, backward_ns={"*": 10_000}) for name in [*names, "join"]]
    tensors = [Tensor(name=f"x{side}", producer=f"{side}0", size_bytes=1000, kind="input") for side in "ab"]
    for side in "ab":
        for i in range(length):
            reader = f"{side}{i + 1}" if i + 1 < length else "join"
            tensors.append(
                Tensor(
                    name=f"t{side}{i}", producer=f"{side}{i}", readers=(reader,), size_bytes=1000, requires_grad=True
                )
            )
    return CostGraph(nodes, tensors, mode)


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_two_towers_run_side_by_side(mode):
    graph = towers(100, mode)
    found = solve(graph, two())
    alone = sum(graph.node_ns(name, "k") for name in graph.nodes)
    assert alone / found.value > 1.9
    assert {found.devices[f"a{i}"] for i in range(100)} != {found.devices[f"b{i}"] for i in range(100)}
    assert found.value >= found.bound > alone // 2 - 10_000


def test_virtual_devices_gain_nothing():
    graph = towers(20)
    found = solve(graph, two(names="sim"))
    assert len(set(found.devices.values())) == 1
    assert found.value == found.bound


def test_what_the_host_cannot_issue_faster_gains_nothing():
    """With launches as long as the operators the host is the bottleneck."""
    graph = towers(20)
    found = solve(graph, two(launch_ns=5000))
    assert found.value == found.bound
    assert len(set(found.devices.values())) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_list_schedule_keeps_groups_whole(seed):
    rng = random.Random(seed)
    case: Case = random_case(rng, 25, 3)
    problem = Problem(case.graph, case.cluster, "latency", HOST)
    labels = _Greedy(Track(problem)).run(range(problem.n))
    assert all(len({labels[i] for i in bundle}) == 1 for bundle in problem.bundles)
    assert all(0 <= label < problem.k for label in labels)


def test_nodes_stay_where_they_may_be():
    graph = towers(30)
    nodes = [
        msgspec.structs.replace(node, devices=("gpu:1",)) if node.name in ("a3", "join") else node
        for node in graph.nodes.values()
    ]
    pinned = CostGraph(nodes, graph.tensors.values())
    problem = Problem(pinned, two(), "latency")
    track = Track(problem)
    for order in (range(problem.n), range(problem.n - 1, -1, -1)):
        labels = _Greedy(track).run(order)
        assert labels[list(pinned.nodes).index("a3")] == labels[-1] == 1
    found = solve(pinned, two())
    assert found.devices["a3"] == found.devices["join"] == "gpu:1"
    assert found.value < 0.6 * sum(graph.node_ns(name, "k") for name in graph.nodes)
