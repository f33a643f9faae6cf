"""The stage solvers against every contiguous plan of small random problems."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from autosplit.solvers.blocks.fleet import UNLIMITED, Fleet, Kind
from autosplit.solvers.blocks.quotient import Quotient, bottleneck, loads
from autosplit.solvers.stages.contiguous import by_neighbours, by_order, by_orders, orders
from autosplit.solvers.stages.dynamic import best_line
from autosplit.solvers.stages.family import Downsets, Prefixes
from autosplit.solvers.stages.lattice import all_downsets
from autosplit.solvers.stages.line import Flight


def random_quotient(rng: random.Random, count: int, kinds: int = 1) -> Quotient:
    """Blocks with tensors along the order and, as gradients do, against and across it."""
    before = [sorted(rng.sample(range(i), min(i, rng.randint(0, 2)))) for i in range(count)]
    wires = []
    for block in range(count):
        readers = [other for other in range(count) if block in before[other]]
        if readers:
            wires.append((rng.randint(0, 5), block, readers))
        if rng.random() < 0.3 and count > 1:
            others = [other for other in range(count) if other != block]
            wires.append((rng.randint(1, 4), block, sorted(rng.sample(others, min(len(others), rng.randint(1, 2))))))
    quotient = Quotient.of_numbers(
        [[rng.randint(0, 9) for _ in range(count)] for _ in range(kinds)],
        wires,
        before,
        [rng.randint(0, 5) for _ in range(count)],
        [rng.randint(0, 2) for _ in range(count)],
    )
    quotient.allowed[:] = np.array([[rng.random() < 0.93 for _ in range(count)] for _ in range(kinds)])
    return quotient


def random_fleet(rng: random.Random, kinds: int) -> Fleet:
    """One or two devices of each kind; the last may be a host."""
    made, first = [], 0
    for kind in range(kinds):
        count = rng.randint(1, 2)
        pays = kind == 0 or rng.random() < 0.5
        made.append(Kind(tuple(range(first, first + count)), rng.choice([UNLIMITED, 12, 20]), pays))
        first += count
    return Fleet(tuple(made), sender_pays=rng.random() < 0.7, overlap=rng.random() < 0.3)


def every_plan(quotient: Quotient, fleet: Fleet, flight: Flight):
    """Labels of every contiguous plan within the capacities."""
    kind_of = {device: k for k, kind in enumerate(fleet.kinds) for device in kind.devices}
    count = len(quotient)
    for used in range(1, fleet.size + 1):
        for devices in itertools.permutations(kind_of, used):
            for stage in itertools.product(range(used), repeat=count):
                if len(set(stage)) < used or any(stage[b] > stage[v] for v in range(count) for b in quotient.before[v]):
                    continue
                labels = [devices[s] for s in stage]
                if not all(quotient.allowed[kind_of[device], v] for v, device in enumerate(labels)):
                    continue
                found = loads(quotient, fleet, labels)
                if all(
                    found[device].fixed_bytes + flight.held(used - s) * found[device].stash_bytes
                    <= fleet.kinds[kind_of[device]].capacity_bytes
                    for s, device in enumerate(devices)
                ):
                    yield labels


def optimum(quotient: Quotient, fleet: Fleet, flight: Flight) -> int | None:
    return min((bottleneck(quotient, fleet, labels) for labels in every_plan(quotient, fleet, flight)), default=None)


@pytest.mark.parametrize("part", range(4))
def test_all_downsets_give_the_optimum(part):
    feasible = 0
    for seed in range(part * 40, part * 40 + 40):
        rng = random.Random(seed)
        kinds = rng.choice([1, 1, 2])
        quotient, fleet = random_quotient(rng, rng.randint(1, 5), kinds), random_fleet(rng, kinds)
        flight = Flight(rng.randint(1, 3), all_at_once=rng.random() < 0.3)
        members = all_downsets(quotient, 10**6)
        assert members is not None
        line = best_line(Downsets(quotient, members), fleet, flight)
        least = optimum(quotient, fleet, flight)
        assert (None if line is None else line.value) == least
        if line is not None:
            feasible += 1
            labels = line.labels(quotient, fleet)
            assert bottleneck(quotient, fleet, labels) == least
            assert all(stage.blocks for stage in line.stages)
    assert feasible > 10


@pytest.mark.parametrize("seed", range(60))
def test_rows_are_the_loads_of_the_stages(seed):
    rng = random.Random(seed)
    count = rng.randint(2, 7)
    quotient = random_quotient(rng, count)
    fleet = Fleet((Kind((0, 1)),))
    prefixes = Prefixes(quotient, range(count))
    downsets = Downsets(quotient, np.array([[block < i for block in range(count)] for i in range(count + 1)]))
    for family in (prefixes, downsets):
        for start in range(len(family) - 1):
            row = family.row(start, 0, len(family))
            for end, in_ns, out_ns in zip(*(column.tolist() for column in row), strict=True):
                mine = set(family.blocks(start, end))
                load = loads(quotient, fleet, [int(block not in mine) for block in range(count)])[0]
                assert (load.in_ns, load.out_ns) == (in_ns, out_ns)
                assert load.work_ns == family.work_ns[0, end] - family.work_ns[0, start]


@pytest.mark.parametrize("seed", range(30))
def test_orders_are_topological_and_plans_hold_what_they_say(seed):
    rng = random.Random(seed)
    quotient, fleet = random_quotient(rng, 30), Fleet((Kind((0, 1, 2), rng.choice([UNLIMITED, 60])),))
    for order in orders(quotient):
        place = {block: i for i, block in enumerate(order)}
        assert sorted(order) == list(range(30))
        assert all(place[b] < place[v] for v in range(30) for b in quotient.before[v])
    line = by_orders(quotient, fleet, Flight())
    if line is None:
        return
    better = by_neighbours(quotient, fleet, Flight(), line, lambda: True)
    assert better.value <= line.value
    for found in (line, better):
        labels = found.labels(quotient, fleet)
        assert bottleneck(quotient, fleet, labels) == found.value
        stage_of = {block: s for s, stage in enumerate(found.stages) for block in stage.blocks}
        assert all(stage_of[b] <= stage_of[v] for v in range(30) for b in quotient.before[v])
        assert all(
            load.fixed_bytes + flight_bytes(found, load, device) <= 60 or fleet.kinds[0].capacity_bytes > 60
            for device, load in loads(quotient, fleet, labels).items()
        )


def flight_bytes(line, load, device) -> int:
    return Flight().held(len(line.stages) - device) * load.stash_bytes


def test_a_long_order_is_cut_in_two_rounds():
    quotient = Quotient.of_numbers([[1] * 1500], [(5, i, [i + 1]) for i in range(1499)])
    line = by_order(quotient, Fleet((Kind((0, 1, 2, 3)),)), Flight(), range(1500))
    assert line is not None
    assert line.value == 383  # 1500 of work and six times 5, shared by four


def test_all_downsets_gives_up_on_many():
    wide = Quotient.of_numbers([[1] * 20], before=[[] for _ in range(20)])
    assert all_downsets(wide, 1000) is None
