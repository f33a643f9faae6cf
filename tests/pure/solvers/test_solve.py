"""``solve`` against every labelling of small graphs, against plain candidates on larger ones, and its refusals."""

import hashlib
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from graphs import Case, cases, random_case, random_cluster, random_graph
from hypothesis import given, settings

from autosplit import estimate, solvers
from autosplit.device import HOST, Cluster, Device, parse_cluster
from autosplit.errors import CapacityError, DeviceError
from autosplit.graph import CostGraph, Node, Tensor
from autosplit.placement import check_placement
from autosplit.solvers import solve
from autosplit.solvers.bounds import bundle_needs
from autosplit.solvers.orders.candidates import device_orders
from autosplit.solvers.problem import Problem

OBJECTIVES = ("latency", "throughput", "memory")


def weights(*sizes: int, group: dict[int, str] | None = None) -> CostGraph:
    """A chain of nodes n0, n1, ..., each with a weight of that many bytes."""
    group = group or {}
    nodes = [Node(name=f"n{i}", forward_ns={"*": 10}, group=group.get(i)) for i in range(len(sizes))]
    tensors = [Tensor(name=f"w{i}", producer=f"n{i}", size_bytes=s, kind="parameter") for i, s in enumerate(sizes)]
    tensors += [
        Tensor(name=f"t{i}", producer=f"n{i}", readers=(f"n{i + 1}",), size_bytes=1) for i in range(len(sizes) - 1)
    ]
    return CostGraph(nodes, tensors)


def devices(*sizes: int) -> Cluster:
    return Cluster(devices=tuple(Device(name=f"d{i}", kind="k", memory_bytes=s) for i, s in enumerate(sizes)))


def every_labelling(problem: Problem):
    for combination in itertools.product(range(problem.k), repeat=len(problem.bundles)):
        labels = [0] * problem.n
        for bundle, device in zip(problem.bundles, combination, strict=True):
            for i in bundle:
                labels[i] = device
        yield labels


def optimum(problem: Problem) -> int | None:
    best = None
    for labels in every_labelling(problem):
        peaks = problem.judge.peaks(labels)
        if all(peak <= has for peak, has in zip(peaks, problem.capacity, strict=True)):
            value = problem.judge.value(labels, problem.objective, peaks)
            best = value if best is None else min(best, value)
    return best


def attempt(case: Case, objective: str) -> solvers.Placement | CapacityError:
    try:
        return solve(case.graph, case.cluster, objective=objective, io_device=case.io_device)
    except CapacityError as error:
        return error


def check_answer(case: Case, objective: str) -> solvers.Placement:
    """Solve; check everything that an answer promises."""
    found = attempt(case, objective)
    check_found(case, objective, found)
    return found


def check_found(case: Case, objective: str, found: solvers.Placement) -> None:
    check_placement(case.graph, found.devices, case.cluster)
    assert list(found.devices) == list(case.graph.nodes)
    peaks = estimate.peak_bytes(case.graph, found.devices, case.cluster, case.io_device)
    assert all(peaks[device.name] <= device.memory_bytes for device in case.cluster.devices)
    assert found.value == estimate.value(case.graph, found.devices, case.cluster, objective, case.io_device)
    assert found.bound <= found.value
    assert found.objective == objective


def compare(seed: int) -> str:
    """One random small problem; what came of it."""
    rng = random.Random(seed)
    k = rng.choice((1, 2, 2, 2, 3, 3))
    case = random_case(rng, rng.randrange(1, 9 if k < 3 else 7), k)
    objective = rng.choice(OBJECTIVES)
    best = optimum(Problem(case.graph, case.cluster, objective, case.io_device))
    found = attempt(case, objective)
    if isinstance(found, CapacityError):
        assert best is None, f"seed {seed}: nothing found, {best} is possible"
        assert found.proved
        assert found.short_bytes
        return "infeasible"
    check_found(case, objective, found)
    assert best is not None
    assert found.bound <= best <= found.value, f"seed {seed}"
    return "optimal" if found.value == best else "feasible"


def test_small_problems_are_solved_exactly():
    outcomes = Counter(compare(seed) for seed in range(300))
    assert outcomes["feasible"] == 0
    assert outcomes["optimal"] > 100
    assert outcomes["infeasible"] > 50


@pytest.fixture
def no_enumeration(monkeypatch):
    """Small problems take the way of large ones: enumeration only settles what the heuristics could not fit."""
    monkeypatch.setattr(solvers, "_FEW_PLACEMENTS", 0)


@pytest.mark.usefixtures("no_enumeration")
def test_two_thousand_small_problems():
    outcomes = Counter(compare(seed) for seed in range(2000))
    print(outcomes)
    assert outcomes["optimal"] >= 0.97 * (outcomes["optimal"] + outcomes["feasible"])


@pytest.mark.long
@pytest.mark.usefixtures("no_enumeration")
def test_twenty_thousand_small_problems():
    outcomes = Counter(compare(seed) for seed in range(2000, 22000))
    print(outcomes)
    assert outcomes["optimal"] >= 0.97 * (outcomes["optimal"] + outcomes["feasible"])


@settings(max_examples=20)
@given(cases(most_nodes=40, most_devices=4))
def test_answers_keep_their_promises(case):
    for objective in OBJECTIVES:
        found = attempt(case, objective)
        if isinstance(found, CapacityError):
            assert found.short_bytes
        else:
            check_found(case, objective, found)


def plain_candidates(problem: Problem):
    """One device; equal numbers of nodes; each device filled in turn by the weights' bytes."""
    n, k = problem.n, problem.k
    static = [0] * n
    for bundle, need in zip(problem.bundles, bundle_needs(problem), strict=True):
        static[bundle[0]] += need.base + need.update
    work = problem.judge.node_ns[0]
    for device in range(k):
        yield [device] * n
    done = list(itertools.accumulate(work, initial=0))
    yield [min(k - 1, done[i] * k // max(1, done[-1])) for i in range(n)]
    labels, device, used = [], 0, 0
    for size in static:
        if used + size > problem.capacity[device] and device + 1 < k:
            device, used = device + 1, 0
        used += size
        labels.append(device)
    yield labels


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_never_worse_than_plain_candidates(objective, mode):
    compared = 0
    for seed in range(8):
        rng = random.Random(seed)
        graph = random_graph(rng, 60, mode, groups=False)
        total = sum(t.allocation_bytes for t in graph.tensors.values())
        cluster = random_cluster(rng, 3, total // 2, total, equal=True)
        problem = Problem(graph, cluster, objective)
        value = check_answer(Case(graph, cluster, HOST), objective).value
        for labels in plain_candidates(problem):
            answer = problem.answer(labels, "plain")
            compared += answer.fits
            assert not answer.fits or value <= answer.score.value
    assert compared > 8


def solutions_digest() -> str:
    """A digest of the answers to some problems, for comparison between processes."""
    text = []
    for seed in range(6):
        rng = random.Random(seed)
        case = random_case(rng, 30, 3)
        try:
            found = solve(case.graph, case.cluster, objective=OBJECTIVES[seed % 3], io_device=case.io_device)
            text.append(msgspec.json.encode(found))
        except CapacityError as error:
            text.append(str(error).encode())
    return hashlib.sha256(b"".join(text)).hexdigest()


def test_the_hash_seed_changes_nothing():
    here = Path(__file__).parent
    program = "import test_solve; print(test_solve.solutions_digest())"
    path = os.pathsep.join([str(here), str(here.parent), str(Path(solvers.__file__).parents[2])])
    digest = solutions_digest()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == digest


def test_capacities_replace_the_devices_own():
    graph = weights(600, 600)
    assert set(solve(graph, devices(2000, 2000)).devices.values()) == {"d0"}
    assert solve(graph, devices(2000, 2000), capacities={"d0": 700}).devices == {"n0": "d1", "n1": "d1"}
    assert len(set(solve(graph, devices(2000, 2000), capacities={"d0": 700, "d1": 700}).devices.values())) == 2
    with pytest.raises(DeviceError, match="capacity of unknown device 'x'"):
        solve(graph, devices(2000), capacities={"x": 1})


def test_an_unknown_io_device_is_refused():
    with pytest.raises(DeviceError, match="unknown device 'd7'"):
        solve(weights(1), devices(10), io_device="d7")


def test_one_device_is_proved_optimal():
    found = solve(weights(5, 5, 5), devices(100, 100))
    assert (found.value, found.bound, found.gap, found.method) == (30, 30, 0.0, "one device")


def test_weights_that_exceed_all_devices_are_proved_impossible():
    with pytest.raises(CapacityError, match=r"weights alone need 1.8 KiB, all devices together have 1.0 KiB") as caught:
        solve(weights(900, 900), devices(512, 512))
    assert caught.value.proved
    assert caught.value.has_bytes == {"d0": 512, "d1": 512}
    assert caught.value.short_bytes


def test_a_node_that_exceeds_every_device_is_named():
    with pytest.raises(CapacityError, match="node 'n1' needs 902 B on one device, the largest has 800 B") as caught:
        solve(weights(10, 900, 10), devices(800, 800))
    assert caught.value.proved
    assert caught.value.short_bytes == {"d0": 102, "d1": 102}


def test_a_group_that_exceeds_every_device_is_named():
    with pytest.raises(CapacityError, match="node 'n0' and its group needs"):
        solve(weights(500, 10, 500, group={0: "g", 2: "g"}), devices(800, 800))


def test_exhaustion_proves_what_no_bound_does():
    with pytest.raises(CapacityError, match="no placement fits: 3 nodes on 2") as caught:
        solve(weights(600, 600, 600), devices(1000, 1000))
    assert caught.value.proved
    assert sum(caught.value.short_bytes.values()) > 0


def test_what_is_too_large_to_enumerate_is_not_called_proved():
    with pytest.raises(CapacityError, match="no placement that fits was found") as caught:
        solve(weights(*[600] * 19), devices(6000, 6000))
    assert not caught.value.proved
    assert caught.value.short_bytes


def test_a_group_at_both_ends_does_not_glue_the_program_together():
    graph = weights(*[100] * 60, group={0: "tied", 59: "tied"})
    found = check_answer(Case(graph, devices(2200, 2200, 2200), HOST), "latency")
    assert found.devices["n0"] == found.devices["n59"]
    assert len(set(found.devices.values())) == 3


def test_branches_are_kept_together():
    """Two chains in alternation: one tensor crosses when each has a device, two at every boundary of program order."""
    n = 60
    nodes = [Node(name=f"n{i}", forward_ns={"*": 10}) for i in range(n)]
    tensors = [Tensor(name=f"w{i}", producer=f"n{i}", size_bytes=100, kind="parameter") for i in range(n)]
    for i in range(n - 1):
        tensors.append(Tensor(name=f"t{i}", producer=f"n{i}", readers=(f"n{min(i + 2, n - 1)}",), size_bytes=1))
    cluster = devices(3300, 3300)
    found = solve(CostGraph(nodes, tensors), cluster)
    assert found.value == 10 * n + cluster.transfer_ns("d0", "d1", 1)


def test_an_empty_graph_needs_nothing():
    found = solve(CostGraph([], []), parse_cluster("2x1GiB"))
    assert (found.devices, found.value) == ({}, 0)


def test_orders_of_interchangeable_devices_are_tried_once():
    assert list(device_orders(Problem(weights(1), devices(5, 5, 5)))) == [(0, 1, 2)]
    assert list(device_orders(Problem(weights(1), devices(5, 5, 7)))) == [(0, 1, 2), (0, 2, 1), (2, 0, 1)]
    assert len(list(device_orders(Problem(weights(1), devices(*range(1, 7)))))) == 24
    assert list(device_orders(Problem(weights(1), devices(*range(1, 9))))) == [tuple(range(8))]
