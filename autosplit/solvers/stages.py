"""Stages: the contiguous plan of least bottleneck, and of least traffic among those, over a family of downsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autosplit.solvers.family import Family, Row
from autosplit.solvers.fleet import Fleet
from autosplit.solvers.quotient import Bools, Ints, Quotient

NEVER = 2**62


class Flight(NamedTuple):
    """Micro-batches on the way.

    Attributes:
        microbatches: of one step.
        all_at_once: whether every stage holds what all of them saved (GPipe); else a stage holds no more than there
            are stages from it to the end (1F1B).
    """

    microbatches: int = 1
    all_at_once: bool = False

    def held(self, stages_to_end: int) -> int:
        """How many micro-batches a stage holds, itself and those after it counted in ``stages_to_end``."""
        return self.microbatches if self.all_at_once else min(stages_to_end, self.microbatches)


ONE_AT_A_TIME = Flight()


class Stage(NamedTuple):
    """A run of blocks on a device of one kind."""

    kind: int
    blocks: tuple[int, ...]


class Line(NamedTuple):
    """A contiguous plan: its stages in order, none of them empty, and the time of the busiest."""

    value: int
    stages: tuple[Stage, ...]

    def labels(self, quotient: Quotient, fleet: Fleet) -> list[int]:
        """For each block the position of its device; devices of a kind are taken in their order."""
        free = [list(kind.devices) for kind in fleet.kinds]
        labels = [-1] * len(quotient)
        for stage in self.stages:
            device = free[stage.kind].pop(0)
            for block in stage.blocks:
                labels[block] = device
        return labels


def best_line(family: Family, fleet: Fleet, flight: Flight = ONE_AT_A_TIME, upper_ns: int = NEVER) -> Line | None:
    """The contiguous plan of least bottleneck whose boundaries are downsets of a family.

    Args:
        family: the boundaries.
        fleet: the devices; some may stay unused.
        flight: micro-batches in flight.
        upper_ns: only plans of this value or less are looked for; the lower, the faster.

    Returns:
        The plan, or None when there is none within ``upper_ns`` and the capacities. Exact over the family, in the
        bottleneck and then in the sum of all transfers; ties go to fewer devices, then to earlier ends.
        O(pairs of downsets x states of the fleet), and as many rows of the family, twice.

    Source: the DP over ideals of Tarnawski et al. 2020, here backwards, so that a stage knows how many come after it
    and what it must hold for them; kinds of devices are counted as in Piper (Tarnawski et al. 2021).

    >>> from autosplit.solvers.family import Prefixes
    >>> from autosplit.solvers.fleet import Kind
    >>> quotient = Quotient.of_numbers([[5, 4, 6]], [(1, 0, [1]), (2, 1, [2])])
    >>> best_line(Prefixes(quotient, range(3)), Fleet((Kind((0, 1)),)))
    Line(value=11, stages=(Stage(kind=0, blocks=(0,)), Stage(kind=0, blocks=(1, 2))))
    """
    search = _Search(family, fleet, flight, upper_ns)
    least = search.run(peak=True)
    if least >= NEVER:
        return None
    tidy = _Search(family, fleet, flight, int(least))
    tidy.run(peak=False)
    return Line(int(least), tidy.stages())


class _Search:
    """Backward DP: ``best[q, i]`` is the least cost of what is outside downset i, on exactly the devices of state q."""

    def __init__(self, family: Family, fleet: Fleet, flight: Flight, upper_ns: int) -> None:
        self.family, self.fleet, self.upper_ns = family, fleet, upper_ns
        self.held = [flight.held(sum(state)) for state in fleet.states]
        pairs = [[(q, fleet.less(state, k)) for q, state in enumerate(fleet.states)] for k in range(len(fleet.kinds))]
        self.steps = [[(q, rest) for q, rest in row if rest is not None] for row in pairs]
        shape = (len(fleet.states), len(family))
        self.best = np.full(shape, NEVER, dtype=np.int64)
        self.best[0, -1] = 0
        self.end = np.full(shape, -1, dtype=np.int32)
        self.kind = np.full(shape, -1, dtype=np.int16)

    def run(self, *, peak: bool) -> int:
        """Fill the table; the cost of a stage is its time, the costs' maximum counts, or (not peak) its transfers."""
        for start in reversed(range(len(self.family) - 1)):
            reach = self._reach(start)
            row = self.family.row(start, *reach) if reach[0] < reach[1] else None
            if row is not None and len(row.ends):
                for kind in range(len(self.fleet.kinds)):
                    self._extend(start, row, kind, peak)
        return int(self.best[:, 0].min())

    def _reach(self, start: int) -> tuple[int, int]:
        """Where a stage from ``start`` may end: what is before and after it must fit into ``upper_ns`` a device."""
        done, total = int(self.family.least_ns[start]), int(self.family.least_ns[-1])
        devices_before = -(-done // self.upper_ns) if self.upper_ns > 0 else self.fleet.size * (done > 0)
        devices_after = self.fleet.size - devices_before - 1
        if devices_after < 0:
            return 0, 0
        return self.family.reach(total - devices_after * self.upper_ns, done + self.upper_ns)

    def _extend(self, start: int, row: Row, kind: int, peak: bool) -> None:
        """The stages from ``start`` on a device of a kind, before every rest that is known."""
        states, rests = (list(column) for column in zip(*self.steps[kind], strict=True))
        time, transfers = self._cost(start, row, kind)
        ok = (time <= self.upper_ns) & (self.family.banned[kind, row.ends] == self.family.banned[kind, start])
        if not ok.any():
            return
        ends = row.ends[ok]
        rest = self.best[np.ix_(rests, ends)]
        total = np.maximum(time[ok], rest) if peak else np.minimum(rest, NEVER - 1) + transfers[ok]
        bad = (rest >= NEVER) | ~self._fits(start, ends, kind, states)
        total = np.where(bad, NEVER, total)
        choice = total.argmin(axis=1)
        least = total[np.arange(len(states)), choice]
        better = least < self.best[states, start]
        where = np.array(states)[better]
        self.best[where, start] = least[better]
        self.end[where, start] = ends[choice[better]]
        self.kind[where, start] = kind

    def _cost(self, start: int, row: Row, kind: int) -> tuple[Ints, Ints]:
        work = self.family.work_ns[kind, row.ends] - self.family.work_ns[kind, start]
        transfers = row.in_ns + row.out_ns if self.fleet.sender_pays else row.in_ns
        if not self.fleet.kinds[kind].pays:
            return work, transfers
        return (np.maximum(work, transfers) if self.fleet.overlap else work + transfers), transfers

    def _fits(self, start: int, ends: Ints, kind: int, states: Sequence[int]) -> Bools:
        fixed = self.family.fixed_bytes[ends] - self.family.fixed_bytes[start]
        stash = self.family.stash_bytes[ends] - self.family.stash_bytes[start]
        held = np.array([self.held[q] for q in states], dtype=np.int64)
        fits: Bools = fixed + held[:, None] * stash <= self.fleet.kinds[kind].capacity_bytes
        return fits

    def stages(self) -> tuple[Stage, ...]:
        """The stages of the best plan that was found."""
        state, start, found = int(self.best[:, 0].argmin()), 0, []
        while start < len(self.family) - 1:
            kind, end = int(self.kind[state, start]), int(self.end[state, start])
            found.append(Stage(kind, tuple(self.family.blocks(start, end))))
            state, start = self.fleet.less(self.fleet.states[state], kind) or 0, end
        return tuple(found)
