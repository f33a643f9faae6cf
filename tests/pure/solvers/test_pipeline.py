"""``solve`` with replicas and recomputation against a search of every pipeline, costed here from the graph itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations, product

import pytest
from graphs import random_case
from msgspec.structs import replace

from autosplit import solve
from autosplit.checker import check
from autosplit.device import Cluster, Device
from autosplit.errors import AutosplitError, CapacityError, DeviceError
from autosplit.graph import CostGraph, Node, Recomputed, Tensor
from autosplit.placement import CostModel, Placement, Stage

BANDWIDTH = 10**9


def random_problem(seed: int) -> tuple[CostGraph, Cluster, CostModel]:
    """Every node states its memory; with transfers "direct" each tensor has one reader, so that it is sent once."""
    rng = random.Random(seed)
    count, mode = rng.randint(2, 5), rng.choice(["infer", "train", "train"])
    model = CostModel(
        transfers=rng.choice(["direct", "host", "receiver"]),
        overlap=rng.random() < 0.3,
        microbatches=rng.choice([1, 2, 4, 6]),
        schedule=rng.choice(["1f1b", "1f1b", "gpipe"]),
    )
    nodes, tensors = [], []
    for i in range(count):
        forward, fixed, inflight = rng.randint(0, 40), rng.randint(0, 20), rng.randint(0, 20)
        again = Recomputed(
            forward_ns={"*": forward + rng.randint(0, 12)},
            backward_ns={"*": 9},
            fixed_bytes=fixed + rng.choice([0, 0, rng.randint(0, 5)]),
            inflight_bytes=rng.randint(0, inflight),
        )
        nodes.append(
            Node(
                name=f"n{i}",
                forward_ns={"*": forward},
                backward_ns={"*": 9},
                fixed_bytes=fixed,
                inflight_bytes=inflight,
                recomputed=again if rng.random() < 0.8 else None,
            )
        )
        plain = {"producer": f"n{i}", "is_held": False, "requires_grad": rng.random() < 0.7}
        later = [f"n{j}" for j in range(i + 1, count) if rng.random() < 0.6]
        if model.transfers == "direct":
            tensors += [Tensor(name=f"t{i}{r}", readers=(r,), size_bytes=rng.randint(0, 9), **plain) for r in later]
        else:
            tensors.append(Tensor(name=f"t{i}", readers=tuple(later), size_bytes=rng.randint(0, 9), **plain))
        if rng.random() < 0.6:
            tensors.append(Tensor(name=f"w{i}", size_bytes=rng.randint(0, 30), kind="parameter", **plain))
        if model.transfers != "host" and rng.random() < 0.3:
            tensors.append(Tensor(name=f"x{i}", size_bytes=rng.randint(0, 9), kind="input", **plain))
    memory = rng.randint(10, 40 + 20 * count)
    devices = tuple(Device(name=f"gpu:{d}", kind="g", memory_bytes=memory) for d in range(rng.randint(1, 4)))
    cluster = Cluster(devices=devices, default_bandwidth_bytes_per_s=BANDWIDTH, default_latency_ns=rng.choice([0, 2]))
    return CostGraph(nodes, tensors, mode), cluster, model


def degrees(graph: CostGraph, cluster: Cluster, model: CostModel) -> list[int]:
    most = range(1, len(cluster.devices) + 1)
    return [r for r in most if graph.mode == "infer" or model.microbatches % r == 0]


def held_by(model: CostModel, copies: int, degree: int) -> int:
    own = -(-model.microbatches // degree)
    return own if model.schedule == "gpipe" else min(own, -(-copies // degree))


def move_ns(graph: CostGraph, cluster: Cluster, tensor: Tensor) -> int:
    both_ways = 2 if graph.mode == "train" and tensor.requires_grad else 1
    return both_ways * cluster.transfer_ns("gpu:0", "host", tensor.size_bytes)


def traffic(problem: tuple[CostGraph, Cluster, CostModel], names: frozenset[str]) -> int:
    graph, cluster, model = problem
    total = 0
    for tensor in graph.tensors.values():
        cost = move_ns(graph, cluster, tensor)
        if tensor.producer not in names:
            total += cost * any(reader in names for reader in tensor.readers)
            continue
        total += cost * (tensor.kind == "input")
        total += cost * (model.transfers != "receiver" and any(reader not in names for reader in tensor.readers))
    return total


def bytes_of(graph: CostGraph, name: str, held: int, *, again: bool) -> int:
    costs = graph.nodes[name].recomputed if again else graph.nodes[name]
    assert costs is not None
    return costs.fixed_bytes + held * costs.inflight_bytes


def stage_ns(
    problem: tuple[CostGraph, Cluster, CostModel], names: frozenset[str], again: frozenset[str], degree: int
) -> int:
    graph, _, model = problem
    run = {name: graph.recomputed_ns if name in again else graph.node_ns for name in names}
    work, moved = sum(ns(name, "g") for name, ns in run.items()), traffic(problem, names)
    sync = 0
    if graph.mode == "train":
        weights = [t for t in graph.tensors.values() if t.kind == "parameter" and t.requires_grad]
        gradient = sum(t.size_bytes * 10**9 // BANDWIDTH for t in weights if t.producer in names)
        sync = -(-4 * (degree - 1) * gradient // (degree * model.microbatches))
    if model.overlap:
        return max(-(-work // degree) + sync, -(-moved // degree))
    return -(-(work + moved) // degree) + sync


def best_stage(
    problem: tuple[CostGraph, Cluster, CostModel], names: frozenset[str], degree: int, held: int, *, recompute: bool
) -> int | None:
    graph, cluster, _ = problem
    able = sorted(name for name in names if graph.nodes[name].recomputed and recompute)
    found = []
    for size in range(len(able) + 1):
        for again in map(frozenset, combinations(able, size)):
            if sum(bytes_of(graph, n, held, again=n in again) for n in names) <= cluster.devices[0].memory_bytes:
                found.append(stage_ns(problem, names, again, degree))
    return min(found, default=None)


def brute_force(problem: tuple[CostGraph, Cluster, CostModel], replicate: str, *, recompute: bool) -> int | None:
    graph, cluster, model = problem
    names = list(graph.nodes)
    reads = {name: {t.producer for t in graph.tensors.values() if name in t.readers} for name in names}
    subsets = [frozenset(s) for size in range(len(names) + 1) for s in combinations(names, size)]
    downsets = [s for s in subsets if all(reads[name] <= s for name in s)]

    def search(end: frozenset[str], copies: int, allowed: tuple[int, ...]) -> int | None:
        best = None if end else 0
        for start, degree in product(downsets, allowed):
            if not start < end or copies + degree > len(cluster.devices):
                continue
            held = held_by(model, copies + degree, degree)
            own = best_stage(problem, end - start, degree, held, recompute=recompute)
            rest = search(start, copies + degree, allowed) if own is not None and (best is None or own < best) else None
            if own is not None and rest is not None and (best is None or max(own, rest) < best):
                best = max(own, rest)
        return best

    choices = degrees(graph, cluster, model)
    sets = {"none": [(1,)], "grid": [(degree,) for degree in choices], "stages": [tuple(choices)]}
    found = [search(frozenset(names), 0, allowed) for allowed in sets[replicate]]
    return min((value for value in found if value is not None), default=None)


def check_stages(problem: tuple[CostGraph, Cluster, CostModel], placement: Placement) -> None:
    """What the stages say is what the value says, and fits."""
    graph, cluster, model = problem
    assert sorted(name for stage in placement.stages for name in stage.nodes) == sorted(graph.nodes)
    used = [device for stage in placement.stages for device in stage.devices]
    assert len(set(used)) == len(used)
    copies, times, done = len(used), [], set()
    for stage in placement.stages:
        degree, again = len(stage.devices), frozenset(stage.recomputed)
        held = held_by(model, copies, degree)
        copies -= degree
        need = sum(bytes_of(graph, name, held, again=name in again) for name in stage.nodes)
        assert need <= cluster.devices[0].memory_bytes
        times.append(stage_ns(problem, frozenset(stage.nodes), again, degree))
        done |= set(stage.nodes)
        for tensor in graph.tensors.values():
            assert tensor.producer in done or not set(tensor.readers) & done
        assert {placement.devices[name] for name in stage.nodes} == {stage.devices[0]}
    assert placement.value == max(times)


@pytest.mark.parametrize(
    ("replicate", "recompute"), [("stages", True), ("grid", True), ("none", True), ("stages", False)]
)
def test_equals_a_search_of_every_pipeline(replicate: str, recompute: bool) -> None:
    solved = refused = replicated = recomputed = 0
    for seed in range(60):
        problem = random_problem(seed)
        graph, cluster, model = problem
        best = brute_force(problem, replicate, recompute=recompute)
        terms = {"objective": "throughput", "contiguous": True, "cost_model": model}
        if best is None:
            with pytest.raises(CapacityError) as error:
                solve(graph, cluster, **terms, replicate=replicate, recompute=recompute)
            assert error.value.proved
            refused += 1
            continue
        placement = solve(graph, cluster, **terms, replicate=replicate, recompute=recompute)
        assert placement.value == best, seed
        assert placement.bound == best
        check_stages(problem, placement)
        check(graph, placement, cluster, cost_model=model, contiguous=True)
        solved += 1
        replicated += any(len(stage.devices) > 1 for stage in placement.stages)
        recomputed += any(stage.recomputed for stage in placement.stages)
    assert min(solved, refused) > 5
    assert replicated > 5 if replicate != "none" else not replicated
    assert recomputed > 3 if recompute else not recomputed


def test_replicas_and_recomputation_are_for_pipelines() -> None:
    graph, cluster, _ = random_problem(1)
    with pytest.raises(ValueError, match="objective 'latency', contiguous True: they are for pipelines"):
        solve(graph, cluster, contiguous=True, recompute=True)
    with pytest.raises(ValueError, match="contiguous False"):
        solve(graph, cluster, objective="throughput", replicate="stages")
    with pytest.raises(ValueError, match="replicate 'all': expected one of none, stages, grid"):
        solve(graph, cluster, objective="throughput", contiguous=True, replicate="all")
    with pytest.raises(DeviceError, match="leave io_device at 'host'"):
        solve(graph, cluster, objective="throughput", contiguous=True, replicate="stages", io_device="gpu:0")


@pytest.mark.parametrize("replicate", ["stages", "grid"])
def test_captured_memory_is_judged(replicate: str) -> None:
    """Where tensors say what is held, a stage takes more than what adds up; what is returned fits all the same."""
    nodes = [Node(name=f"n{i}", forward_ns={"*": 10}, backward_ns={"*": 20}) for i in range(8)]
    saved = [
        Tensor(name=f"t{i}", producer=f"n{i}", readers=(f"n{i + 1}",), size_bytes=100, saved_by=(f"n{i + 1}",))
        for i in range(7)
    ]
    weights = [Tensor(name=f"w{i}", producer=f"n{i}", size_bytes=40, kind="parameter") for i in range(8)]
    graph, model = CostGraph(nodes, [*saved, *weights], "train"), CostModel(microbatches=4)
    terms = {"objective": "throughput", "contiguous": True, "cost_model": model}
    loose, tight = (
        Cluster(devices=tuple(Device(name=f"gpu:{d}", kind="g", memory_bytes=size) for d in range(4)))
        for size in (10_000, 700)
    )
    fast = solve(graph, loose, **terms, replicate=replicate)
    assert [len(stage.devices) for stage in fast.stages] == [4]
    placement = solve(graph, tight, **terms, replicate=replicate)
    check(graph, placement, tight, cost_model=model, contiguous=True)
    assert len(placement.stages) > 1
    assert placement.value > fast.value
    copies = sum(len(stage.devices) for stage in placement.stages)
    for stage in placement.stages:
        held = held_by(model, copies, len(stage.devices))
        copies -= len(stage.devices)
        inputs = sum(name != "n0" for name in stage.nodes)
        assert 40 * len(stage.nodes) + held * 100 * inputs <= 700


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"value": p.value + 1}, "throughput: claimed 41, found 40"),
        (lambda p: {"stages": p.stages[:1]}, "do not hold every node once"),
        (lambda p: {"stages": p.stages[::-1]}, "tensor 't' goes back from 'a' to 'b'"),
        (lambda p: {"stages": (replace(p.stages[0], devices=("gpu:1", "gpu:2")), p.stages[1])}, "each device once"),
        (lambda p: {"stages": (p.stages[0], replace(p.stages[1], devices=("gpu:0",)))}, "each device once"),
        (lambda p: {"stages": (p.stages[0], replace(p.stages[1], recomputed=("b",)))}, "'b' is recomputed, but"),
        (lambda p: {"stages": (replace(p.stages[0], recomputed=()), p.stages[1])}, "claimed to fit, found 110 B"),
        (lambda p: {"devices": {"a": "gpu:1", "b": "gpu:2"}}, "node 'a' is on gpu:1, its stage on gpu:0, gpu:1"),
    ],
)
def test_the_checker_finds_what_is_wrong_with_stages(change: Callable[[Placement], dict], message: str) -> None:
    """Two micro-batches: a on two devices, each of which gets one, then b, which takes both."""
    again = Recomputed(forward_ns={"*": 70}, inflight_bytes=40)
    nodes = [
        Node(name="a", forward_ns={"*": 60}, inflight_bytes=110, recomputed=again),
        Node(name="b", forward_ns={"*": 30}, fixed_bytes=60),
    ]
    graph = CostGraph(nodes, [Tensor(name="t", producer="a", readers=("b",), size_bytes=10, is_held=False)], "train")
    devices = tuple(Device(name=f"gpu:{d}", kind="g", memory_bytes=90) for d in range(3))
    cluster = Cluster(devices=devices, default_bandwidth_bytes_per_s=BANDWIDTH, default_latency_ns=0)
    model = CostModel(microbatches=2)
    terms = {"objective": "throughput", "contiguous": True, "cost_model": model}
    placement = solve(graph, cluster, **terms, replicate="stages", recompute=True)
    assert placement.stages == (
        Stage(devices=("gpu:0", "gpu:1"), nodes=("a",), recomputed=("a",)),
        Stage(devices=("gpu:2",), nodes=("b",)),
    )
    check(graph, placement, cluster, cost_model=model, contiguous=True)
    with pytest.raises(AutosplitError, match=message):
        check(graph, replace(placement, **change(placement)), cluster, cost_model=model, contiguous=True)


def test_never_worse_than_a_pipeline_without_them() -> None:
    """On graphs with views, groups, unequal devices and links, where bytes and transfers do not just add up."""
    compared = replicated = only = 0
    for seed in range(24):
        rng = random.Random(seed)
        case = random_case(rng, rng.randint(2, 8), rng.randint(2, 5))
        again = Recomputed(forward_ns={"*": 30}, backward_ns={"*": 35}, inflight_bytes=2)
        nodes = [replace(node, inflight_bytes=9, recomputed=again) for node in case.graph.nodes.values()]
        graph = CostGraph(nodes, case.graph.tensors.values(), case.graph.mode)
        model = CostModel(transfers=rng.choice(["direct", "host", "receiver"]), microbatches=rng.choice([1, 2, 4]))
        terms = {"objective": "throughput", "contiguous": True, "cost_model": model}
        try:
            plain = solve(graph, case.cluster, **terms)
        except CapacityError:
            plain = None
        try:
            placement = solve(graph, case.cluster, **terms, replicate="stages", recompute=True)
        except CapacityError:
            assert plain is None, seed
            continue
        assert placement.bound <= placement.value
        assert plain is None or placement.value <= plain.value, seed
        compared += plain is not None
        only += plain is None
        replicated += any(len(stage.devices) > 1 for stage in placement.stages)
    assert min(compared, replicated, only) > 1
