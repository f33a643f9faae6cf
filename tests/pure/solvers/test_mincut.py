"""Cuts against every downset and every labelling of small graphs."""

import itertools
import random

import pytest
from graphs import random_case
from hypothesis import given
from hypothesis import strategies as st

from autosplit.solvers.blocks.quotient import Wire
from autosplit.solvers.mincut import boundary_cut, two_device_cut
from autosplit.solvers.orders.layout import Layout, crossing_costs, layouts, loose_groups
from autosplit.solvers.problem import Problem


def random_wires(rng: random.Random, count: int) -> list[Wire]:
    wires = []
    for producer in range(count):
        later = range(producer + 1, count)
        for _ in range(rng.choice((0, 1, 1, 2))):
            readers = tuple(rng.sample(later, min(len(later), rng.choice((1, 1, 2, 3)))))
            if readers:
                wires.append(Wire(rng.choice((0, 1, 2, 5, 9, 10**15)), producer, readers))
    return wires


def crossing(wires: list[Wire], inside: set[int]) -> int:
    return sum(w.cost for w in wires if w.producer in inside and not inside.issuperset(w.readers))


def closed(wires: list[Wire], inside: set[int]) -> bool:
    return all(w.producer in inside or inside.isdisjoint(w.readers) for w in wires)


def closure(wires: list[Wire], seeds: set[int], forward: bool) -> set[int]:
    found = set(seeds)
    for w in wires if forward else reversed(wires):  # wires are sorted by producer
        if forward and w.producer in found:
            found.update(w.readers)
        elif not forward and not found.isdisjoint(w.readers):
            found.add(w.producer)
    return found


def every_set(count: int, forced_in: set[int], forced_out: set[int]):
    free = [i for i in range(count) if i not in forced_in | forced_out]
    for bits in itertools.product((False, True), repeat=len(free)):
        yield forced_in | {i for i, taken in zip(free, bits, strict=True) if taken}


@given(st.randoms(use_true_random=False), st.integers(2, 9))
def test_boundary_cut_is_the_cheapest_downset(rng, count):
    wires = random_wires(rng, count)
    forced_in = closure(wires, {0}, forward=False)
    forced_out = closure(wires, {count - 1}, forward=True)
    if forced_in & forced_out:
        return
    value, inside = boundary_cut(wires, forced_in, forced_out)
    best = min(crossing(wires, s) for s in every_set(count, forced_in, forced_out) if closed(wires, s))
    assert value == best == crossing(wires, inside)
    assert closed(wires, inside)
    assert forced_in <= inside
    assert forced_out.isdisjoint(inside)


@given(st.randoms(use_true_random=False), st.integers(4, 9))
def test_groups_are_on_one_side_of_a_boundary_cut(rng, count):
    wires = random_wires(rng, count)
    group = set(rng.sample(range(1, count - 1), 2))
    forced_in = closure(wires, {0}, forward=False)
    forced_out = closure(wires, {count - 1}, forward=True)
    if forced_in & forced_out:
        return
    valid = [
        s for s in every_set(count, forced_in, forced_out) if closed(wires, s) and (group <= s or group.isdisjoint(s))
    ]
    if valid:
        value, inside = boundary_cut(wires, forced_in, forced_out, [sorted(group)])
        assert value == min(crossing(wires, s) for s in valid) == crossing(wires, inside)
        assert group <= inside or group.isdisjoint(inside)


def test_a_tensor_with_many_readers_is_paid_once():
    assert boundary_cut([Wire(7, 0, (1, 2, 3))], {0}, {1, 2, 3})[0] == 7


def test_two_device_cut_has_the_least_work_and_transfers():
    for seed in range(250):
        rng = random.Random(seed)
        case = random_case(rng, rng.randrange(1, 9), 2)
        problem = Problem(case.graph, case.cluster, "latency", case.io_device)
        value, labels = two_device_cut(problem)
        judge = problem.judge
        assert value == sum(judge.busy(labels)) + judge.transfer_ns(labels), seed
        assert not problem.is_serial or value == judge.step_ns(labels)
        assert all(len({labels[i] for i in bundle}) == 1 for bundle in problem.bundles)
        for bits in itertools.product((0, 1), repeat=len(problem.bundles)):
            other = [0] * problem.n
            for bundle, device in zip(problem.bundles, bits, strict=True):
                for i in bundle:
                    other[i] = device
            assert sum(judge.busy(other)) + judge.transfer_ns(other) >= value, seed


def layouts_of(seed: int, count: int, groups: bool) -> tuple[Problem, list[Layout]]:
    rng = random.Random(seed)
    case = random_case(rng, count, 2, groups)
    problem = Problem(case.graph, case.cluster)
    return problem, layouts(problem)


@pytest.mark.parametrize("seed", range(30))
def test_layouts_are_topological_and_keep_groups_whole(seed):
    problem, found = layouts_of(seed, 40, groups=True)
    loose = loose_groups(problem)
    assert found[0].order == tuple(range(problem.n))
    for layout in found:
        position = {node: p for p, node in enumerate(layout.order)}
        assert sorted(layout.order) == list(range(problem.n))
        assert layout.cuts[0] == 0
        assert layout.cuts[-1] == problem.n
        for item in problem.judge.items:
            assert all(position[item.producer] < position[reader] for reader in item.readers)
        for bundle in problem.bundles:
            if tuple(bundle) not in loose:
                places = [position[i] for i in bundle]
                assert not any(min(places) < cut <= max(places) for cut in layout.cuts)


def test_min_cut_order_has_cheaper_boundaries_than_program_order():
    # two independent chains, interleaved: between them a boundary cuts one tensor, not two
    for seed in range(20):
        problem, found = layouts_of(seed, 60, groups=False)
        costs = [crossing_costs(problem, layout.order)[1:-1] for layout in found]
        assert min(map(min, costs)) <= min(costs[0])
        assert all(len(cost) == problem.n - 1 for cost in costs)
