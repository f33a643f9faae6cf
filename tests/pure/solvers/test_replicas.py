"""Replicated, split and recomputed stages against a search of every chain of downsets and every choice for each."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
import pytest

from autosplit.solvers.blocks.fleet import Fleet, Kind
from autosplit.solvers.blocks.quotient import Quotient, Recomputed
from autosplit.solvers.stages.dynamic import best_line
from autosplit.solvers.stages.family import Downsets, Prefixes
from autosplit.solvers.stages.lattice import all_downsets
from autosplit.solvers.stages.line import Flight, Line, Replication
from autosplit.solvers.stages.recompute import least_cover


@dataclass
class Case:
    quotient: Quotient
    fleet: Fleet
    flight: Flight


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    count, kinds = rng.randint(2, 6), rng.choice([1, 1, 2])
    before = [[u for u in range(v) if rng.random() < rng.choice([0.3, 0.6])] for v in range(count)]
    readers = [[v for v in range(count) if u in before[v]] for u in range(count)]
    wires = [(rng.randint(0, 12), u, readers[u]) for u in range(count) if readers[u]]
    wires += [(rng.randint(0, 9), v, [rng.choice(before[v])]) for v in range(count) if before[v] and rng.random() < 0.3]
    plain = Quotient.of_numbers(
        [[rng.randint(0, 40) for _ in range(count)] for _ in range(kinds)],
        wires,
        before,
        fixed_bytes=[rng.randint(0, 20) for _ in range(count)],
        stash_bytes=[rng.randint(0, 20) for _ in range(count)],
    )
    again = Recomputed(
        plain.work_ns + np.array([[rng.randint(0, 15) for _ in range(count)] for _ in range(kinds)]),
        plain.fixed_bytes + np.array([rng.choice([0, 0, rng.randint(0, 9)]) for _ in range(count)]),
        np.array([rng.randint(0, s) for s in plain.stash_bytes.tolist()]),
    )
    allowed = np.array([[kind == 0 or rng.random() < 0.8 for _ in range(count)] for kind in range(kinds)])
    gradients = np.array([[rng.randint(0, 15) for _ in range(count)] for _ in range(kinds)])
    quotient = Quotient(
        before=plain.before,
        wires=plain.wires,
        work_ns=plain.work_ns,
        fixed_bytes=plain.fixed_bytes,
        stash_bytes=plain.stash_bytes,
        allowed=allowed,
        members=plain.members,
        gradient_ns=gradients,
        recomputed=again,
    )
    sizes = [rng.randint(1, 4)] if kinds == 1 else [rng.randint(1, 3), rng.randint(1, 2)]
    starts = [sum(sizes[:k]) for k in range(kinds)]
    total = int((plain.fixed_bytes + plain.stash_bytes).sum())
    fleet = Fleet(
        tuple(
            Kind(tuple(range(start, start + size)), rng.randint(total // 5, total * 2), rng.random() < 0.8)
            for start, size in zip(starts, sizes, strict=True)
        ),
        sender_pays=rng.random() < 0.7,
        overlap=rng.random() < 0.4,
    )
    microbatches = rng.choice([1, 2, 4, 6])
    synced = rng.choice([None, microbatches])
    replication = Replication.up_to(fleet.size, synced)
    return Case(quotient, fleet, Flight(microbatches, rng.random() < 0.3, replication))


def split_in_two(case: Case, seed: int) -> Case:
    """The same on two devices for each copy: each does, pays and holds between half and all of it."""
    rng, q = random.Random(seed), case.quotient

    def less(values: np.ndarray) -> np.ndarray:
        return np.array([rng.randint(-(-v // 2), v) for v in values.flat], dtype=np.int64).reshape(values.shape)

    again = q.recomputed
    assert again is not None
    assert q.gradient_ns is not None
    work = less(q.work_ns)
    split = replace(
        q,
        wires=tuple(wire._replace(cost=rng.randint(0, 12)) for wire in q.wires),
        work_ns=work,
        fixed_bytes=less(q.fixed_bytes),
        stash_bytes=less(q.stash_bytes),
        gradient_ns=less(q.gradient_ns),
        recomputed=Recomputed(work + (again.work_ns - q.work_ns), less(again.fixed_bytes), less(again.stash_bytes)),
    )
    return replace(case, quotient=split)


def transfers(case: Case, blocks: frozenset[int]) -> int:
    total = 0
    for cost, producer, readers in case.quotient.wires:
        inside = [reader in blocks for reader in readers]
        if producer in blocks:
            total += cost * (case.fleet.sender_pays and not all(inside))
        else:
            total += cost * any(inside)
    return total


def stage_ns(case: Case, blocks: frozenset[int], kind: int, degree: int, held: int, *, recompute: bool) -> int | None:
    """The time of a stage with the best set of blocks to recompute; None when none fits or one is not allowed."""
    q, device = case.quotient, case.fleet.kinds[kind]
    if not all(q.allowed[kind, block] for block in blocks):
        return None
    sent = transfers(case, blocks) if device.pays else 0
    often = case.flight.replication.microbatches or degree
    gradient = sum(int(q.gradient_ns[kind, block]) for block in blocks)
    sync = -(-4 * (degree - 1) * gradient // (degree * often))
    best = None
    assert q.recomputed is not None
    for size in range(len(blocks) + 1 if recompute else 1):
        for again in map(set, combinations(sorted(blocks), size)):
            source = {b: q.recomputed if b in again else q for b in blocks}
            if sum(int(s.fixed_bytes[b] + held * s.stash_bytes[b]) for b, s in source.items()) > device.capacity_bytes:
                continue
            work = sum(int(s.work_ns[kind, b]) for b, s in source.items())
            if case.fleet.overlap:
                time = max(-(-work // degree) + sync, -(-sent // degree))
            else:
                time = -(-(work + sent) // degree) + sync
            best = time if best is None else min(best, time)
    return best


def held_by(case: Case, devices_to_end: int, degree: int) -> int:
    own = -(-case.flight.microbatches // degree)
    return own if case.flight.all_at_once else min(own, -(-devices_to_end // degree))


def brute_force(
    case: Case, *, recompute: bool, grid: bool = False, prefixes: bool = False, split: Case | None = None
) -> int | None:
    """The least bottleneck over every chain of downsets and every choice of devices, from the end to the start."""
    count, everything = len(case.quotient), frozenset(range(len(case.quotient)))
    ways = [(1, case)] + ([(2, split)] if split is not None else [])
    if prefixes:
        downsets = [frozenset(range(size)) for size in range(count + 1)]
    else:
        subsets = [frozenset(s) for size in range(count + 1) for s in combinations(range(count), size)]
        downsets = [s for s in subsets if all(set(case.quotient.before[b]) <= s for b in s)]

    def search(end: frozenset[int], used: tuple[int, ...], copies: int, degrees: tuple[int, ...]) -> int | None:
        if not end:
            return 0
        best = None
        for start, kind, degree, (shards, way) in product(downsets, range(len(used)), degrees, ways):
            if not start < end or used[kind] + degree * shards > len(case.fleet.kinds[kind].devices):
                continue
            now = tuple(u + degree * shards * (k == kind) for k, u in enumerate(used))
            held = held_by(case, copies + degree, degree)
            time = stage_ns(way, end - start, kind, degree, held, recompute=recompute)
            if time is None or (best is not None and time >= best):
                continue
            before = search(start, now, copies + degree, degrees)
            if before is not None and (best is None or max(time, before) < best):
                best = max(time, before)
        return best

    none = tuple(0 for _ in case.fleet.kinds)
    sets = [(degree,) for degree in case.flight.replication.degrees] if grid else [case.flight.replication.degrees]
    found = [value for degrees in sets if (value := search(everything, none, 0, degrees)) is not None]
    return min(found, default=None)


def check_line(case: Case, line: Line, *, recompute: bool, split: Case | None = None) -> None:
    """The stages are what they say: every block once, in order, within the capacities, and as slow as ``value``."""
    done: set[int] = set()
    times = []
    devices = [device for stage in line.devices(case.fleet) for device in stage]
    assert len(set(devices)) == len(devices) == sum(stage.replicas * stage.shards for stage in line.stages)
    copies = sum(stage.replicas for stage in line.stages)
    for stage in line.stages:
        way = case if stage.shards == 1 else split
        assert way is not None
        assert not done & set(stage.blocks)
        done |= set(stage.blocks)
        assert all(set(way.quotient.before[block]) <= done for block in stage.blocks)
        assert set(stage.recomputed) <= set(stage.blocks)
        assert recompute or not stage.recomputed
        held = held_by(case, copies, stage.replicas)
        copies -= stage.replicas
        again = way.quotient.recomputed
        assert again is not None
        sources = [(b, again if b in stage.recomputed else way.quotient) for b in stage.blocks]
        need = sum(int(source.fixed_bytes[b] + held * source.stash_bytes[b]) for b, source in sources)
        assert need <= case.fleet.kinds[stage.kind].capacity_bytes
        best = stage_ns(way, frozenset(stage.blocks), stage.kind, stage.replicas, held, recompute=recompute)
        assert best is not None
        times.append(best)
    assert done == set(range(len(case.quotient)))
    assert line.value == max(times)


@pytest.mark.parametrize("recompute", [False, True])
def test_equals_a_search_of_everything(recompute: bool) -> None:
    feasible = infeasible = replicated = recomputed = 0
    for seed in range(150):
        case = random_case(seed)
        members = all_downsets(case.quotient, 1000)
        assert members is not None
        flight = case.flight._replace(recompute=recompute)
        line = best_line(Downsets(case.quotient, members), case.fleet, flight)
        best = brute_force(case, recompute=recompute)
        assert (None if line is None else line.value) == best, seed
        if line is None:
            infeasible += 1
            continue
        assert line.slack == 0
        check_line(case, line, recompute=recompute)
        feasible += 1
        replicated += any(stage.replicas > 1 for stage in line.stages)
        recomputed += any(stage.recomputed for stage in line.stages)
    assert min(feasible, infeasible, replicated) > 10
    assert recomputed > 10 or not recompute


def test_prefixes_and_grids_equal_a_search_of_everything() -> None:
    found = 0
    for seed in range(1000, 1100):
        case = random_case(seed)
        family = Prefixes(case.quotient, range(len(case.quotient)))
        grid = case.flight.replication._replace(uniform=True)
        line = best_line(family, case.fleet, case.flight._replace(replication=grid, recompute=True))
        best = brute_force(case, recompute=True, grid=True, prefixes=True)
        assert (None if line is None else line.value) == best, seed
        if line is not None:
            check_line(case, line, recompute=True)
            assert len({stage.replicas for stage in line.stages}) == 1
            found += 1
    assert found > 50


def test_split_stages_equal_a_search_of_everything() -> None:
    used = 0
    for seed in range(2000, 2120):
        case = random_case(seed)
        split, order = split_in_two(case, seed), range(len(case.quotient))
        line = best_line(
            Prefixes(case.quotient, order),
            case.fleet,
            case.flight._replace(recompute=True),
            sharded={2: Prefixes(split.quotient, order)},
        )
        best = brute_force(case, recompute=True, prefixes=True, split=split)
        assert (None if line is None else line.value) == best, seed
        if line is not None:
            check_line(case, line, recompute=True, split=split)
            used += any(stage.shards > 1 for stage in line.stages)
    assert used > 20


def test_least_cover_equals_all_subsets() -> None:
    rng = random.Random(5)
    for _ in range(300):
        count = rng.randint(1, 9)
        costs = [rng.randint(0, 30) for _ in range(count)]
        saved = [rng.randint(1, rng.choice([3, 50])) for _ in range(count)]
        need = rng.randint(1, sum(saved) + 3)
        subsets = [s for size in range(count + 1) for s in combinations(range(count), size)]
        enough = [sum(costs[i] for i in s) for s in subsets if sum(saved[i] for i in s) >= need]
        cover = least_cover(costs, saved, need)
        assert (cover is None) == (not enough)
        if cover is not None:
            assert cover.cost == cover.bound == min(enough) == sum(costs[i] for i in cover.items)
            assert sum(saved[i] for i in cover.items) >= need


def test_least_cover_cut_short_still_covers_and_bounds() -> None:
    rng = random.Random(6)
    looser = 0
    for _ in range(100):
        costs, saved = [rng.randint(1, 99) for _ in range(14)], [rng.randint(1, 99) for _ in range(14)]
        need = sum(saved) // 2
        exact, short = least_cover(costs, saved, need), least_cover(costs, saved, need, most=1)
        assert exact is not None
        assert short is not None
        assert short.bound <= exact.cost <= short.cost
        assert sum(saved[i] for i in short.items) >= need
        looser += short.bound < short.cost
    assert looser > 5


def test_blocks_that_all_save_different_bytes() -> None:
    """The bound and the greedy choice differ there, so that stages have to be settled one by one."""
    settled = 0
    for seed in range(25):
        rng = random.Random(seed)
        count = 10
        work = [rng.randint(50, 100) for _ in range(count)]
        stash = [rng.randint(30, 60) for _ in range(count)]
        added = [rng.randint(5, 40) for _ in range(count)]
        plain = Quotient.of_numbers([work], before=[[b - 1] if b else [] for b in range(count)], stash_bytes=stash)
        again = Recomputed(plain.work_ns + np.array([added]), plain.fixed_bytes, plain.stash_bytes // 7)
        fleet = Fleet((Kind((0, 1), rng.randint(150, 330)),))
        quotient = replace(plain, recomputed=again)
        line = best_line(Prefixes(quotient, range(count)), fleet, Flight(8, recompute=True))
        best = min(
            (
                max(times)
                for cut in range(count)
                if None
                not in (
                    times := [
                        _least_ns(quotient, fleet, range(cut), 2),
                        _least_ns(quotient, fleet, range(cut, count), 1),
                    ]
                )
            ),
            default=None,
        )
        assert (None if line is None else (line.value, line.slack)) == (None if best is None else (best, 0)), seed
        settled += line is not None and any(stage.recomputed for stage in line.stages)
    assert settled > 10


def _least_ns(quotient: Quotient, fleet: Fleet, blocks: range, held: int) -> int | None:
    """The least time of a stage over every set of its blocks to recompute."""
    again = quotient.recomputed
    assert again is not None
    chosen = (np.arange(2 ** len(blocks))[:, None] >> np.arange(len(blocks))) & 1
    ids = list(blocks)
    need = np.where(chosen, again.stash_bytes[ids], quotient.stash_bytes[ids]).sum(axis=1) * held
    time = np.where(chosen, again.work_ns[0, ids], quotient.work_ns[0, ids]).sum(axis=1)
    fits = time[need <= fleet.kinds[0].capacity_bytes]
    return int(fits.min()) if len(fits) else None
