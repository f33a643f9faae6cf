"""Annealing against recounted loads, brute force and its own promises."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autosplit.solvers.anywhere.anneal import Budget, anneal
from autosplit.solvers.anywhere.population import Costs, Population
from autosplit.solvers.anywhere.shares import share_bound
from autosplit.solvers.blocks.fleet import UNLIMITED, Fleet, Kind
from autosplit.solvers.blocks.quotient import Quotient, bottleneck, loads, stage_ns

_SMALL = Budget(moves=600, chains=64)


def problem(rng: random.Random, blocks: int, *, tight: bool = False) -> tuple[Quotient, Fleet]:
    """A random problem: two kinds of devices in half of them, all cost models, some blocks not allowed everywhere."""
    host = rng.random() < 0.5
    work = [rng.choice((0, rng.randint(1, 30), rng.randint(1, 90))) for _ in range(blocks)]
    wires = []
    for block in range(blocks - 1):
        readers = [r for r in range(block + 1, blocks) if rng.random() < 1.5 / blocks]
        if readers:
            back = rng.random() < 0.3  # a gradient: read before it is made
            ends = (readers[-1], [block, *readers[:-1]]) if back else (block, readers)
            wires.append((rng.choice((0, rng.randint(1, 20), rng.randint(1, 150))), *ends))
    memory = [rng.randint(0, 9) for _ in range(blocks)]
    kinds = [work, [w * rng.randint(1, 6) for w in work]] if host else [work]
    quotient = Quotient.of_numbers(
        kinds, wires, [()] * blocks, memory, [rng.randint(0, 3) for _ in range(blocks)] if tight else None
    )
    if rng.random() < 0.3:
        quotient.allowed[0, rng.randrange(blocks)] = not host
    total = int(quotient.fixed_bytes.sum() + quotient.stash_bytes.sum())
    count = 2 if host else rng.randint(2, 3)
    capacity = max(1, int(total / count * rng.uniform(1.05, 1.6))) if tight else UNLIMITED
    fleet = (Kind(tuple(range(count)), capacity), *((Kind((count,), pays=False),) if host else ()))
    return quotient, Fleet(fleet, sender_pays=rng.random() < 0.7, overlap=rng.random() < 0.3)


def start_of(rng: random.Random, quotient: Quotient, fleet: Fleet) -> list[int]:
    return [rng.randrange(fleet.size) for _ in range(len(quotient))]


def missing(quotient: Quotient, fleet: Fleet, labels: list[int]) -> int:
    capacity = {device: kind.capacity_bytes for kind in fleet.kinds for device in kind.devices}
    found = loads(quotient, fleet, labels)
    return sum(max(0, load.fixed_bytes + load.stash_bytes - capacity[d]) for d, load in found.items())


def banned(quotient: Quotient, fleet: Fleet, labels: list[int]) -> int:
    kind_of = {device: k for k, kind in enumerate(fleet.kinds) for device in kind.devices}
    return sum(not quotient.allowed[kind_of[d], b] for b, d in enumerate(labels))


def optimum(quotient: Quotient, fleet: Fleet) -> int | None:
    """By trying every labelling; None when none fits."""
    every = (list(labels) for labels in product(range(fleet.size), repeat=len(quotient)))
    fits = (labels for labels in every if not banned(quotient, fleet, labels) and not missing(quotient, fleet, labels))
    return min((bottleneck(quotient, fleet, labels) for labels in fits), default=None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.booleans())
def test_loads_kept_up_to_date_are_the_recounted_ones(seed: int, tight: bool) -> None:
    rng = random.Random(seed)
    quotient, fleet = problem(rng, rng.randint(2, 12), tight=tight)
    costs = Costs.of(quotient, fleet, 1.0)
    chains = 5
    start = np.array([[rng.randrange(fleet.size) for _ in range(chains)] for _ in range(len(quotient))])
    population = Population(costs, start, seed)
    touching = costs.touching()
    for _ in range(30):
        blocks = rng.sample(range(len(quotient)), rng.randint(1, min(4, len(quotient))))
        population.move(costs.group(blocks, touching), np.full(chains, 5.0), np.full(chains, 2.0))
        one, two = rng.sample(range(len(quotient)), 2)
        if not set(touching[one]) & set(touching[two]):
            pair = (costs.group([one], touching), costs.group([two], touching))
            population.swap(pair, np.full(chains, 5.0), np.full(chains, 2.0))
    population.keep(np.array([4, 0, 0, 1, 2]))
    kind_of = {device: k for k, kind in enumerate(fleet.kinds) for device in kind.devices}
    for chain in range(chains):
        found = loads(quotient, fleet, [costs.devices[row] for row in population.labels[:, chain]])
        for row, device in enumerate(costs.devices):
            expected = stage_ns(fleet, kind_of[device], found[device]) if device in found else 0
            held = found[device].fixed_bytes + found[device].stash_bytes if device in found else 0
            assert population.loads[:, row, chain].max() == pytest.approx(expected, abs=1e-6)
            assert population.used[row, chain] == held


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.booleans())
def test_never_worse_than_the_start_and_feasible_stays_feasible(seed: int, tight: bool) -> None:
    rng = random.Random(seed)
    quotient, fleet = problem(rng, rng.randint(1, 14), tight=tight)
    start = start_of(rng, quotient, fleet)
    found = anneal(quotient, fleet, start, Budget(moves=rng.choice((1, 40, 300)), chains=16))
    assert missing(quotient, fleet, found) <= missing(quotient, fleet, start) or banned(quotient, fleet, start)
    if missing(quotient, fleet, found) == missing(quotient, fleet, start) and not banned(quotient, fleet, start):
        assert bottleneck(quotient, fleet, found) <= bottleneck(quotient, fleet, start)
    possible = int(quotient.allowed.any(axis=0).all())
    assert not possible or banned(quotient, fleet, found) == 0


@pytest.mark.parametrize("tight", [False, True])
def test_finds_the_optimum_of_small_problems(tight: bool) -> None:
    """Nor does the bound of any labelling exceed it."""
    solved = tried = 0
    for seed in range(25):
        rng = random.Random(seed)
        quotient, fleet = problem(rng, rng.randint(3, 6), tight=tight)
        best = optimum(quotient, fleet)
        found = anneal(quotient, fleet, start_of(rng, quotient, fleet), _SMALL)
        if best is None:
            continue
        tried += 1
        assert missing(quotient, fleet, found) == 0, seed
        value = bottleneck(quotient, fleet, found)
        assert share_bound(quotient, fleet) <= best <= value
        solved += value == best
    assert tried >= 20
    assert solved >= 0.99 * tried


def test_same_input_same_labels() -> None:
    rng = random.Random(3)
    quotient, fleet = problem(rng, 30)
    start = start_of(rng, quotient, fleet)
    assert anneal(quotient, fleet, start, _SMALL) == anneal(quotient, fleet, start, _SMALL)


def test_stops_at_a_value_that_is_good_enough_and_when_time_is_up() -> None:
    rng = random.Random(4)
    quotient, fleet = problem(rng, 20)
    start = start_of(rng, quotient, fleet)
    value = bottleneck(quotient, fleet, start)
    asked: list[int] = []

    def expired() -> bool:
        asked.append(1)
        return len(asked) == 2

    anneal(quotient, fleet, start, Budget(moves=100_000, chains=16, expired=expired))
    assert len(asked) == 2
    found = anneal(quotient, fleet, start, Budget(moves=10**9, chains=16, stop_ns=value - 1))
    assert bottleneck(quotient, fleet, found) < value


def test_blocks_pulled_apart_by_a_contiguous_cut_are_joined() -> None:
    """Two heavy pairs far apart in the order: interleaving avoids both wires."""
    wires = [(50, 0, [2]), (50, 1, [3])]
    quotient = Quotient.of_numbers([[10, 10, 10, 10]], wires)
    fleet = Fleet((Kind((0, 1)),))
    found = anneal(quotient, fleet, [0, 0, 1, 1], _SMALL)
    assert bottleneck(quotient, fleet, [0, 0, 1, 1]) == 120
    assert bottleneck(quotient, fleet, found) == 20
    assert (found[0], found[1]) == (found[2], found[3])


def test_a_start_that_does_not_fit_is_repaired() -> None:
    quotient = Quotient.of_numbers([[1, 1, 1, 1]], fixed_bytes=[6, 5, 3, 4])
    fleet = Fleet((Kind((0, 1), capacity_bytes=9),))
    found = anneal(quotient, fleet, [0, 0, 0, 0], _SMALL)
    assert missing(quotient, fleet, found) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_the_bound_never_exceeds_the_optimum(seed: int) -> None:
    rng = random.Random(seed)
    quotient, fleet = problem(rng, rng.randint(1, 5))
    best = optimum(quotient, fleet)
    bound = share_bound(quotient, fleet)
    assert bound == UNLIMITED if best is None else bound <= best


def test_the_bound_shares_work_between_unequal_devices() -> None:
    """Accelerators and a host a tenth as fast: work / 2.1; never less than the largest block."""
    fleet = Fleet((Kind((0, 1)), Kind((2,), pays=False)))
    assert share_bound(Quotient.of_numbers([[21] * 100, [210] * 100]), fleet) == 1008
    assert share_bound(Quotient.of_numbers([[50, 1, 1], [500, 10, 10]]), fleet) == 50
    assert share_bound(Quotient.of_numbers([[]]), Fleet((Kind((0,)),))) == 0


def test_the_bound_counts_large_blocks_and_ties_dear_wires() -> None:
    fleet = Fleet((Kind((0, 1)),))
    assert share_bound(Quotient.of_numbers([[4, 4, 4, 1]]), fleet) == 8
    wires = [(9, 0, [1]), (9, 1, [2])]
    assert share_bound(Quotient.of_numbers([[4, 4, 4, 4]], wires), fleet) == 9  # cut a wire, or hold 12
    receivers = Fleet((Kind((0, 1)), Kind((2,), pays=False)), sender_pays=False)
    assert share_bound(Quotient.of_numbers([[4, 4, 4, 4], [4, 4, 4, 4]], wires), receivers) == 8  # the host reads free
