"""Recomputation: which blocks of a stage save less and compute again, so that the stage fits at the least added time.

That is a knapsack per stage: bytes must be saved, time is paid. A row of stages gets two figures at once: what taking
blocks by time per byte saved costs (it fits, so it is enough), and the same with a part of the last block (no choice
costs less). They are equal when all blocks save the same; where they are not, ``settle`` finds the least itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Ints
from autosplit.solvers.stages.family import Family
from autosplit.solvers.stages.line import NEVER

_MOST_STATES = 5_000


class Cover(NamedTuple):
    """A choice of items.

    Attributes:
        cost: of the chosen items.
        items: their numbers, ascending.
        bound: no choice costs less; equal to ``cost`` unless the search was cut short.
    """

    cost: int
    items: tuple[int, ...]
    bound: int


class _State(NamedTuple):
    """A choice among the items so far, as bits of their places in the order in which they are looked at."""

    saved: int
    cost: int
    places: int


def least_cover(costs: Sequence[int], saved: Sequence[int], need: int, most: int = _MOST_STATES) -> Cover | None:
    """The items of least cost that together save enough: the knapsack problem, as a minimum.

    Args:
        costs: of each item, not negative.
        saved: by each item, positive.
        need: what the chosen ones must save.
        most: partial choices that are kept at a time; beyond it, those of the least bounds.

    Returns:
        The choice, exact while no more than ``most`` partial choices are alive; None when all items are not enough.
        O(items x most) at worst; partial choices that are dominated, or cannot beat the best, are dropped.

    Source: Nemhauser and Ullmann 1969 (undominated choices), Dantzig 1957 (the bound of each).

    >>> least_cover([4, 5, 6], [4, 4, 7], 8)
    Cover(cost=9, items=(0, 1), bound=9)
    """
    if sum(saved) < need:
        return None
    order = sorted(range(len(costs)), key=lambda i: (Fraction(costs[i], saved[i]), -saved[i], i))
    ranked = _Ranked([costs[i] for i in order], [saved[i] for i in order])
    best = ranked.greedy(need)
    states, bound = [_State(0, 0, 0)], NEVER
    for place in range(len(order)):
        taken = [_State(s + ranked.saved[place], c + ranked.costs[place], p | 1 << place) for s, c, p in states]
        best = min([best, *(state for state in taken if state.saved >= need)], key=lambda state: state.cost)
        alive = _undominated([*states, *(state for state in taken if state.saved < need)])
        scored = [(state.cost + ranked.least(place + 1, need - state.saved), state) for state in alive]
        scored = [entry for entry in scored if entry[0] < best.cost]
        if len(scored) > most:
            scored.sort(key=lambda entry: entry[0])
            bound = min(bound, scored[most][0])
            scored = scored[:most]
        states = [state for _, state in scored]
    items = tuple(sorted(item for place, item in enumerate(order) if best.places >> place & 1))
    return Cover(best.cost, items, min(best.cost, bound))


class _Ranked:
    """Items by cost per byte saved, and the sums over those before each."""

    def __init__(self, costs: list[int], saved: list[int]) -> None:
        self.costs, self.saved = costs, saved
        self.spent, self.total = list(accumulate(costs, initial=0)), list(accumulate(saved, initial=0))

    def greedy(self, need: int) -> _State:
        """The first items that save enough."""
        count = bisect_left(self.total, need)
        return _State(self.total[count], self.spent[count], (1 << count) - 1)

    def least(self, place: int, need: int) -> int:
        """No choice among the items from a place on that saves enough costs less; NEVER when they are not enough."""
        if need <= 0:
            return 0
        wanted = self.total[place] + need
        if self.total[-1] < wanted:
            return NEVER
        last = bisect_left(self.total, wanted) - 1
        part = (wanted - self.total[last]) * self.costs[last]
        return self.spent[last] - self.spent[place] - (-part // self.saved[last])


def _undominated(states: list[_State]) -> list[_State]:
    """The states of which no other saves at least as much at no more cost."""
    kept: list[_State] = []
    for state in sorted(states, key=lambda state: (-state.saved, state.cost, state.places)):
        if not kept or state.cost < kept[-1].cost:
            kept.append(state)
    return kept


class Fitting:
    """What it takes to make the stages of a family fit: nothing, recomputation, or more than there is.

    Args:
        family: the stages.
        fleet: the devices.
        recompute: whether blocks may be recomputed at all.
    """

    def __init__(self, family: Family, fleet: Fleet, *, recompute: bool) -> None:
        self.family, self.fleet = family, fleet
        quotient = family.quotient
        again = quotient.recomputed
        self.has_choice = recompute and again is not None
        if again is not None:
            self._cost = again.work_ns - quotient.work_ns
            self._fixed = quotient.fixed_bytes - again.fixed_bytes
            self._stash = quotient.stash_bytes - again.stash_bytes
        self._saved: dict[int, tuple[Ints, Ints]] = {}
        self._settled: dict[tuple[int, int, int], dict[int, Cover]] = {}

    @property
    def settled(self) -> int:
        """How many stages were settled."""
        return sum(map(len, self._settled.values()))

    def added_ns(self, start: int, ends: Ints, kind: int, held: Ints, *, bound: bool) -> Ints:
        """The time that recomputation adds to stages, so that they fit a device of a kind; NEVER when they cannot.

        Args:
            start: the downset at which the stages start.
            ends: those at which they end.
            kind: of device.
            held: numbers of micro-batches of which the device may hold what is saved.
            bound: no more than the least time, instead of enough to fit.

        Returns:
            [held, ends].
        """
        need = self._need_bytes(start, ends, kind, held)
        added = np.where(need > 0, NEVER, 0)
        if self.has_choice:
            for number in np.flatnonzero((need > 0).any(axis=1)).tolist():
                count = int(held[number])
                most = self._most_saved(count)[1]
                tight = np.flatnonzero((need[number] > 0) & (need[number] <= most[ends] - most[start]))
                if not len(tight):
                    continue
                added[number, tight] = self._row((start, kind, count), ends[tight], need[number, tight], bound)
                for end, cover in self._settled.get((start, kind, count), {}).items():
                    added[number, ends == end] = cover.bound if bound else cover.cost
        return added

    def _need_bytes(self, start: int, ends: Ints, kind: int, held: Ints) -> Ints:
        """[held, ends], by how much each stage is over the capacity when nothing is recomputed."""
        family = self.family
        fixed = family.fixed_bytes[ends] - family.fixed_bytes[start]
        stash = family.stash_bytes[ends] - family.stash_bytes[start]
        need: Ints = fixed + held[:, None] * stash - self.fleet.kinds[kind].capacity_bytes
        return need

    def _row(self, where: tuple[int, int, int], ends: Ints, need: Ints, bound: bool) -> Ints:
        """As added_ns, for stages from a downset, on a kind, that hold a number of micro-batches and need bytes."""
        start, kind, held = where
        blocks, inside = self.family.holds(start, ends)
        saved, cost = self._most_saved(held)[0][blocks], self._cost[kind, blocks]
        order = np.flatnonzero(saved)
        order = order[np.argsort(cost[order] / saved[order], kind="stable")]
        saved, cost, inside = saved[order], cost[order], inside[:, order]
        unit = np.gcd.reduce(saved)  # what is saved is a multiple of it, so what is needed may be one, too
        need = -(-need // unit) * unit
        total, spent = np.where(inside, saved, 0).cumsum(axis=1), np.where(inside, cost, 0).cumsum(axis=1)
        last, rows = (total >= need[:, None]).argmax(axis=1), np.arange(len(ends))
        least: Ints = spent[rows, last]
        if bound:
            short = need - (total[rows, last] - saved[last])
            part = np.floor(short * (cost[last] / saved[last])).astype(np.int64)
            least = least - cost[last] + np.where(short == saved[last], cost[last], part)
        return least

    def _most_saved(self, held: int) -> tuple[Ints, Ints]:
        """What recomputing each block saves when so much is held, not less than 0; and the sum for each downset."""
        if held not in self._saved:
            saved = np.maximum(0, self._fixed + held * self._stash)
            self._saved[held] = saved, self.family.total(saved)
        return self._saved[held]

    def settle(self, start: int, end: int, kind: int, held: int) -> Cover:
        """The least time that recomputation must add to a stage that can be made to fit, and the blocks."""
        known = self._settled.setdefault((start, kind, held), {})
        if end not in known:
            known[end] = self._cover(start, end, kind, held)
        return known[end]

    def _cover(self, start: int, end: int, kind: int, held: int) -> Cover:
        need = int(self._need_bytes(start, np.array([end]), kind, np.array([held]))[0, 0])
        if need <= 0:
            return Cover(0, (), 0)
        blocks = np.array(self.family.blocks(start, end))
        saved = self._most_saved(held)[0][blocks]
        blocks, saved = blocks[saved > 0], saved[saved > 0]
        found = least_cover(self._cost[kind, blocks].tolist(), saved.tolist(), need)
        if found is None:
            raise ValueError(f"stage {start}..{end} does not fit kind {kind}, recomputed or not: settle what fits")
        return found._replace(items=tuple(sorted(blocks[list(found.items)].tolist())))
