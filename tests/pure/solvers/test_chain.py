"""The chain DP against every choice of boundaries, and its matrices against the judge."""

import itertools
import random

import msgspec
import numpy as np
import pytest
from graphs import random_case
from hypothesis import given
from hypothesis import strategies as st

from autosplit.device import HOST, Cluster, Device
from autosplit.graph import CostGraph, Node, Tensor
from autosplit.solvers.orders.chain import IMPOSSIBLE, Stages, bottleneck, shortest
from autosplit.solvers.orders.layout import Layout
from autosplit.solvers.problem import Problem


def every_path(count: int, stages: int):
    for middle in itertools.combinations_with_replacement(range(count), stages - 1):
        yield (0, *middle, count - 1)


def random_matrices(rng: random.Random, count: int, stages: int) -> list[np.ndarray]:
    matrices = []
    for _ in range(stages):
        matrix = np.full((count, count), IMPOSSIBLE, dtype=np.int64)
        for i in range(count):
            for j in range(i, count):
                if i == j or rng.random() < 0.7:
                    matrix[i, j] = rng.randrange(4) * (i != j)
        matrices.append(matrix)
    return matrices


@given(st.randoms(use_true_random=False), st.integers(2, 6), st.integers(1, 4))
def test_both_programs_are_exact(rng, count, stages):
    costs = random_matrices(rng, count, stages)
    ties = [np.array([[rng.randrange(3) for _ in range(count)] for _ in range(count)], dtype=float) for _ in costs]
    values = []
    for path in every_path(count, stages):
        steps = [int(cost[a, b]) for cost, (a, b) in zip(costs, itertools.pairwise(path), strict=True)]
        if max(steps) < IMPOSSIBLE:
            worst = max(tie[a, b] for tie, (a, b) in zip(ties, itertools.pairwise(path), strict=True))
            values.append((sum(steps), worst, max(steps), path))
    found = shortest(costs, ties)
    assert (found is None) == (not values)
    if found is None:
        assert bottleneck(costs) == IMPOSSIBLE
        return
    assert next(v for v in values if v[3] == tuple(found))[:2] == min(v[:2] for v in values)
    assert bottleneck(costs) == min(v[2] for v in values)


def stages_of(rng: random.Random, count: int, k: int, objective: str, io: str = HOST) -> Stages:
    case = random_case(rng, count, k, groups=False)
    cluster = Cluster(
        devices=case.cluster.devices,
        default_bandwidth_bytes_per_s=case.cluster.default_bandwidth_bytes_per_s,
        default_latency_ns=case.cluster.default_latency_ns,
    )
    problem = Problem(case.graph, cluster, objective, io)
    return Stages(problem, Layout(tuple(range(count)), tuple(range(count + 1)), (), "program order"))


@pytest.mark.parametrize("seed", range(80))
def test_times_are_those_of_the_judge(seed):
    rng = random.Random(seed)
    count, k = rng.randrange(1, 8), rng.randrange(2, 4)
    for objective in ("latency", "throughput"):
        stages = stages_of(rng, count, k, objective)
        judge, devices = stages.problem.judge, list(range(k))
        times = stages.times(devices)
        for path in every_path(count + 1, k):
            steps = [int(time[a, b]) for time, (a, b) in zip(times, itertools.pairwise(path), strict=True)]
            labels = stages.labels(path, devices, 0)
            if objective == "latency":
                assert sum(steps) == sum(judge.busy(labels)) + judge.transfer_ns(labels)
            elif k == 2:
                assert steps == judge.load_ns(labels)
            else:  # a tensor that goes to two later stages is sent twice, and counted once
                assert all(step <= load for step, load in zip(steps, judge.load_ns(labels), strict=True))


@pytest.mark.parametrize("seed", range(60))
def test_solve_is_the_best_choice_of_boundaries(seed):
    rng = random.Random(seed)
    count, k = rng.randrange(2, 8), rng.randrange(2, 4)
    objective = rng.choice(("latency", "throughput", "memory"))
    stages = stages_of(rng, count, k, objective)
    devices = list(range(k))
    limits = stages.problem.capacity
    times = stages.times(devices)
    values = {}
    for path in every_path(count + 1, k):
        pairs = list(itertools.pairwise(path))
        sizes = [int(stages.bytes[a, b]) for a, b in pairs]
        steps = [int(time[a, b]) for time, (a, b) in zip(times, pairs, strict=True)]
        if all(size <= limit for size, limit in zip(sizes, limits, strict=True)):
            total = {"latency": sum(steps), "throughput": max(steps), "memory": max(sizes)}[objective]
            fill = max(size / max(1, limit) for size, limit in zip(sizes, limits, strict=True))
            values[path] = (total, sum(steps) if objective == "memory" else fill)
    found = stages.solve(devices, limits)
    assert (found is None) == (not values)
    if found is not None:
        assert values[tuple(found)] == min(values.values())


def chain_graph(rng: random.Random, count: int, mode: str) -> CostGraph:
    """No skips: each tensor is read by the next node only. There the memory matrix is exact."""
    nodes = [Node(name=f"n{i}", workspace_bytes=rng.choice((0, 5))) for i in range(count)]
    tensors = []
    for i in range(count):
        reader = (f"n{i + 1}",) if i + 1 < count else ()
        saved = tuple(name for name in (f"n{i}", *reader) if rng.random() < 0.5)
        fields = {"size_bytes": rng.randrange(1, 9), "requires_grad": rng.random() < 0.7}
        tensors.append(Tensor(name=f"t{i}", producer=f"n{i}", readers=reader, saved_by=saved, **fields))
        if rng.random() < 0.7:
            extra = {"state_bytes": rng.randrange(5), "step_bytes": rng.randrange(9)}
            tensors.append(Tensor(name=f"w{i}", producer=f"n{i}", kind="parameter", **extra, **fields))
    return CostGraph(nodes, tensors, mode)


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("seed", range(40))
def test_memory_of_chains_is_that_of_the_judge(seed, mode):
    rng = random.Random(seed)
    count = rng.randrange(1, 9)
    cluster = Cluster(devices=tuple(Device(name=f"d{i}", kind="k", memory_bytes=99) for i in range(3)))
    problem = Problem(chain_graph(rng, count, mode), cluster)
    stages = Stages(problem, Layout(tuple(range(count)), tuple(range(count + 1)), (), "program order"))
    for path in every_path(count + 1, 3):
        expected = [int(stages.bytes[a, b]) for a, b in itertools.pairwise(path)]
        assert problem.judge.peaks(stages.labels(path, [0, 1, 2], 0)) == expected


def without_sharing(graph: CostGraph) -> CostGraph:
    """The same graph for inference, with no views, no weight read twice, no input and no output."""
    plain = [
        msgspec.structs.replace(
            tensor,
            storage="",
            storage_bytes=0,
            is_output=False,
            readers=() if tensor.is_weight else tensor.readers,
            kind="activation" if tensor.kind == "input" else tensor.kind,
        )
        for tensor in graph.tensors.values()
    ]
    return CostGraph(graph.nodes.values(), plain)


@pytest.mark.parametrize("seed", range(60))
def test_inference_memory_of_skips_is_never_below_the_judge(seed):
    rng = random.Random(seed)
    count = rng.randrange(2, 10)
    case = random_case(rng, count, 3, groups=False)
    problem = Problem(without_sharing(case.graph), case.cluster)
    stages = Stages(problem, Layout(tuple(range(count)), tuple(range(count + 1)), (), "program order"))
    for path in every_path(count + 1, 3):
        sizes = [int(stages.bytes[a, b]) for a, b in itertools.pairwise(path)]
        peaks = problem.judge.peaks(stages.labels(path, [0, 1, 2], 0))
        assert all(size >= peak for size, peak in zip(sizes, peaks, strict=True))
