"""Random quotients and the exact optimum of contiguous bottleneck, by definition: every chain of downsets."""

from __future__ import annotations

from functools import cache

import numpy as np

from autosplit.solvers.blocks.fleet import UNLIMITED, Fleet, Kind
from autosplit.solvers.blocks.quotient import Quotient
from autosplit.solvers.stages.dynamic import Flight


def random_quotient(seed: int, most: int = 11) -> tuple[Quotient, Fleet, Flight]:
    """A small quotient and fleet; every third one has heavy skips, and each feature comes in some of them."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, most))
    kinds = 1 + int(rng.random() < 0.3)
    base = rng.integers(0, 20, n)
    work = [base.tolist()] + [(base * rng.integers(1, 4) + rng.integers(0, 9, n)).tolist()] * (kinds - 1)
    before: list[set[int]] = [set() for _ in range(n)]
    dense = rng.choice([0.1, 0.25, 0.5])
    for v in range(1, n):
        before[v] |= {u for u in range(v) if rng.random() < dense}
        if rng.random() < 0.6:
            before[v].add(v - 1)
    wires = []
    for u in range(n):
        readers = [v for v in range(u + 1, n) if u in before[v]]
        if readers and rng.random() < 0.9:
            wires.append((int(rng.choice([0, 1, 3, 12])), u, readers))
    if rng.random() < 0.4:  # gradients, and wires that no constraint follows
        for _ in range(int(rng.integers(1, 5))):
            u = int(rng.integers(0, n))
            others = [v for v in range(n) if v != u]
            readers = rng.choice(others, min(len(others), int(rng.integers(1, 4))), replace=False).tolist()
            wires.append((int(rng.integers(1, 15)), u, readers))
    fixed, stash = rng.integers(0, 9, n).tolist(), rng.integers(0, 5, n).tolist()
    quotient = Quotient.of_numbers(work, wires, before, fixed, stash)
    if rng.random() < 0.15:
        quotient.allowed[int(rng.integers(0, kinds)), int(rng.integers(0, n))] = kinds == 1
    return (
        quotient,
        _fleet(rng, kinds, sum(fixed) + sum(stash)),
        Flight(int(rng.integers(1, 4)), bool(rng.integers(0, 2))),
    )


def _fleet(rng: np.random.Generator, kinds: int, total: int) -> Fleet:
    counts = rng.integers(1, 4, kinds) if kinds > 1 else rng.integers(2, 6, 1)
    tight = rng.random() < 0.4
    made, at = [], 0
    for kind, count in enumerate(counts.tolist()):
        room = int(total * rng.uniform(0.4, 1.6)) if tight else UNLIMITED
        made.append(Kind(tuple(range(at, at + count)), room, pays=kind == 0 or rng.random() < 0.6))
        at += count
    return Fleet(tuple(made), sender_pays=bool(rng.random() < 0.7), overlap=bool(rng.random() < 0.25))


def optimum(quotient: Quotient, fleet: Fleet, flight: Flight) -> int | None:
    """The least bottleneck over all contiguous plans; None when none fits."""
    n = len(quotient)
    need = [sum(1 << u for u in us) for us in quotient.before]
    downsets = [s for s in range(1 << n) if all(not s >> v & 1 or s & need[v] == need[v] for v in range(n))]

    @cache
    def stage(start: int, end: int) -> tuple[tuple[int | None, ...], int, int]:
        inside = end & ~start
        blocks = [v for v in range(n) if inside >> v & 1]
        received = sent = 0
        for wire in quotient.wires:
            if inside >> wire.producer & 1:
                sent += wire.cost * any(not inside >> r & 1 for r in wire.readers)
            else:
                received += wire.cost * any(inside >> r & 1 for r in wire.readers)
        times: list[int | None] = []
        for k, kind in enumerate(fleet.kinds):
            work = sum(int(quotient.work_ns[k, v]) for v in blocks)
            moved = (received + (sent if fleet.sender_pays else 0)) if kind.pays else 0
            ok = all(quotient.allowed[k, v] for v in blocks)
            times.append((max(work, moved) if fleet.overlap else work + moved) if ok else None)
        fixed = sum(int(quotient.fixed_bytes[v]) for v in blocks)
        return tuple(times), fixed, sum(int(quotient.stash_bytes[v]) for v in blocks)

    full = (1 << n) - 1
    rest: dict[tuple[int, ...], dict[int, int]] = {tuple(0 for _ in fleet.kinds): {full: 0}}
    best: list[int] = []
    for state in fleet.states[1:]:
        found: dict[int, int] = {}
        for k, kind in enumerate(fleet.kinds):
            less = fleet.less(state, k)
            if less is None:
                continue
            for end, value in rest[fleet.states[less]].items():
                for start in downsets:
                    if start & ~end or start == end:
                        continue
                    times, fixed, stash = stage(start, end)
                    time = times[k]
                    if time is None or fixed + flight.held(sum(state)) * stash > kind.capacity_bytes:
                        continue
                    found[start] = min(found.get(start, 1 << 60), max(time, value))
        rest[state] = found
        if 0 in found:
            best.append(found[0])
    return min(best, default=None)
