"""Tolls: the least that a stage between two spans does, receives, sends and holds, whatever downsets it lies between.

Only what is sure counts: a block is surely in the stage when every downset of the end holds it and none of the start
does. A wire is surely received when its producer is surely outside and a reader surely inside; it is surely sent when
its producer is surely inside and a reader surely outside. For two spans of one downset each, this is what the stage
does. All terms are sums of products of something of the start and something of the end, that is, products of matrices;
few columns vary near one boundary, and only those are multiplied. Sums stay below 2^53, so floats are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from autosplit.solvers.blocks.fleet import UNLIMITED, Fleet
from autosplit.solvers.blocks.quotient import Bools, Ints, Quotient
from autosplit.solvers.certificate.cuts import Cuts, Parts
from autosplit.solvers.certificate.spans import Closure, Floats, Spans
from autosplit.solvers.certificate.wires import Wires

_ROWS = 64
_CHUNK = 256
_MANY = 1_000


class Pairs(NamedTuple):
    """Stages from one span to another.

    Attributes:
        first: [pairs], the span of the start, ascending.
        second: [pairs], the span of the end.
        transfers_ns: [pairs], the least that the fleet's cost model counts as transfers.
        load_ns: [kinds, pairs], the least time on a device of each kind.
        fixed_bytes, stash_bytes: [pairs], the least that it holds; empty when memory binds nowhere.
    """

    first: Ints
    second: Ints
    transfers_ns: Ints
    load_ns: Ints
    fixed_bytes: Ints
    stash_bytes: Ints

    @property
    def size(self) -> int:
        """How many stages."""
        return len(self.first)


class Sides(NamedTuple):
    """Rows of spans, and what their columns have in common."""

    lower: Bools
    upper: Bools
    any_lower: Bools
    all_lower: Bools
    any_upper: Bools
    all_upper: Bools

    @classmethod
    def of(cls, lower: Bools, upper: Bools) -> Sides:
        """The rows given."""
        some, every = np.logical_or.reduce, np.logical_and.reduce
        return cls(lower, upper, some(lower), every(lower), some(upper), every(upper))


class _Table(NamedTuple):
    """What is known of each span before any pair is looked at."""

    spans: Spans
    most_left: Ints
    least_left: Ints
    single: Bools
    crossing: Floats
    parts_end: Parts
    parts_start: Parts

    def fits(self, rows: slice, ends: Ints) -> Bools:
        """[rows, ends], whether one device may be between them, and they are not one downset."""
        fits = self.least_left[ends] < self.most_left[rows, None]
        fits &= self.most_left[ends] >= self.least_left[rows, None] - 1
        same = ends == np.arange(rows.start, rows.stop)[:, None]
        result: Bools = fits & ~(self.single[ends] & same)
        return result


class Tolls:
    """Stages between spans of one quotient on one fleet.

    Args:
        quotient: the blocks.
        fleet: the devices.
        work_ns: [kinds, blocks], as the quotient's, or higher where a block is not allowed.
        closure: of the blocks.
    """

    def __init__(self, quotient: Quotient, fleet: Fleet, work_ns: Ints, closure: Closure) -> None:
        self.fleet = fleet
        self.work = work_ns.astype(np.float64)
        self.least = work_ns.min(axis=0).astype(np.float64)
        self.wires = Wires(quotient, closure)
        self.bytes = np.stack([quotient.fixed_bytes, quotient.stash_bytes]).astype(np.float64)
        self.room = max(kind.capacity_bytes for kind in fleet.kinds)
        self.tight = self.room < UNLIMITED
        self.cuts = Cuts(quotient, fleet, work_ns.min(axis=0), closure, self.wires)

    def pairs(self, spans: Spans, most_ns: int, reach_ns: float, limit: int) -> Pairs | None:
        """All stages of at most ``most_ns`` between spans whose states fit.

        Args:
            spans: any; it is faster where neighbours are alike.
            most_ns: the longest time of a stage.
            reach_ns: the most ``least`` work that a device can do in this time.
            limit: the most pairs.

        Returns:
            The stages; None when there are more than the limit.
        """
        spans, parts_end, parts_start = self.cuts.parts(spans)
        used = np.array([sum(state) for state in self.fleet.states])[:, None]
        most_left = np.where(spans.alive, used, -1).max(axis=0)
        least_left = np.where(spans.alive, used, self.fleet.size + 1).min(axis=0)
        table = _Table(spans, most_left, least_left, spans.single, self._crossing(spans), parts_end, parts_start)
        low, high = spans.lower @ self.least, spans.upper @ self.least
        found: list[tuple[Ints, ...]] = []
        for at in range(0, spans.size, _ROWS):
            rows = slice(at, min(at + _ROWS, spans.size))
            near = (low <= high[rows].max() + reach_ns) & (high >= low[rows].min())
            near &= (least_left < most_left[rows].max()) & (most_left >= least_left[rows].min() - 1)
            ends = _reachable(spans, rows, np.flatnonzero(near), self.least, reach_ns)
            if len(ends):
                found.append(self._block(table, rows, ends, most_ns))
                limit -= len(found[-1][0])
                if limit < 0:
                    return None
        return _joined(found, len(self.work), self.tight)

    def _block(self, table: _Table, rows: slice, ends: Ints, most_ns: int) -> tuple[Ints, ...]:
        """The stages from some rows to some ends: first, second, transfers, loads, bytes."""
        spans = table.spans
        start = Sides.of(spans.lower[rows], spans.upper[rows])
        end = Sides.of(spans.lower[ends], spans.upper[ends])
        good = ~_outside(start, end) & table.fits(rows, ends)
        sure = self._received(start, end, table.crossing[1, ends])
        if self.fleet.sender_pays:
            sure = sure + self._sent(start, end, table.crossing[0, ends])
        cut, own_cut, own_load = _parts_ns(table, rows, ends, (start, end))
        transfers = np.maximum(sure + own_cut, cut)
        with_work = np.maximum(sure + own_load, cut)
        loads = []
        for kind, work in enumerate(self.work):
            inside = self._inside(start, end, work)
            if not self.fleet.kinds[kind].pays:
                loads.append(inside)
            elif self.fleet.overlap:
                loads.append(np.maximum(inside, transfers))
            else:
                loads.append(inside + with_work)
        good &= np.minimum.reduce(loads) <= most_ns
        held: list[Floats] = []
        if self.tight:
            held = [self._inside(start, end, self.bytes[0]), self._inside(start, end, self.bytes[1])]
            good &= held[0] + held[1] <= self.room
        row, column = np.nonzero(good)
        figures = [np.asarray(values[row, column], dtype=np.int64) for values in (transfers, *loads, *held)]
        return (row + rows.start, ends[column], *figures)

    def _inside(self, start: Sides, end: Sides, value: Floats) -> Floats:
        """The sum of ``value`` over the blocks that are surely in the stage."""
        shared = start.any_upper & end.any_lower
        sure = start.all_upper & end.all_lower
        columns = np.flatnonzero(shared & ~sure & (value != 0))
        total = end.lower @ value - value[sure].sum()
        both = (start.upper[:, columns] * value[columns]) @ end.lower[:, columns].T.astype(np.float64)
        result: Floats = total - both
        return result

    def _crossing(self, spans: Spans) -> Floats:
        """[2, spans]: the wires that surely cross it, by cost: those made before it, and those made after it."""
        wires, total = self.wires, np.zeros((2, spans.size))
        if not len(wires):
            return total
        everything = np.arange(len(wires))
        back = np.flatnonzero(wires.back)
        for at in range(0, spans.size, _CHUNK):
            rows = slice(at, at + _CHUNK)
            rest = wires.readers_in(spans.upper[rows], everything) < wires.sizes
            total[0, rows] = (spans.lower[rows][:, wires.producer] & rest) @ wires.cost
            if len(back):
                read = wires.readers_in(spans.lower[rows], back) > 0
                total[1, rows] = (~spans.upper[rows][:, wires.producer[back]] & read) @ wires.cost[back]
        return total

    def _received(self, start: Sides, end: Sides, crossing: Floats) -> Floats:
        """The wires that the stage surely receives: made before it, and (gradients) made after it."""
        wires, total = self.wires, np.zeros((len(start.lower), len(end.lower)))
        if not len(wires):
            return total
        read = wires.some(end.any_lower & ~start.all_upper)
        chosen = np.flatnonzero(start.any_lower[wires.producer] & read)
        if len(chosen):
            which, rank = wires.ranks(chosen)
            before = wires.readers_in(start.upper, chosen)[:, which] == rank
            left = (before & start.lower[:, wires.producer[chosen[which]]]) * wires.cost[chosen[which]]
            total += left @ (wires.readers_in(end.lower, chosen)[:, which] > rank).T.astype(np.float64)
        if wires.back.any():
            total += self._received_back(start, end, crossing)
        return total

    def _received_back(self, start: Sides, end: Sides, crossing: Floats) -> Floats:
        """Of the gradients that cross the end backwards, those that are not surely read before the start alone."""
        wires = self.wires
        late = ~end.all_upper[wires.producer] & wires.some(end.any_lower) & wires.some(start.any_upper)
        chosen = np.flatnonzero(wires.back & late)
        total = np.broadcast_to(crossing, (len(start.lower), len(end.lower)))
        if not len(chosen):
            return total
        which, rank = wires.ranks(chosen)
        before = (wires.readers_in(start.upper, chosen)[:, which] == rank + 1) * wires.cost[chosen[which]]
        read = wires.readers_in(end.lower, chosen)[:, which]
        no_more = (read > 0) & (read <= rank + 1) & ~end.upper[:, wires.producer[chosen[which]]]
        result: Floats = total - before @ no_more.T.astype(np.float64)
        return result

    def _sent(self, start: Sides, end: Sides, crossing: Floats) -> Floats:
        """The wires that the stage surely sends: of those that cross its end, the ones not made before its start."""
        wires = self.wires
        total = np.broadcast_to(crossing, (len(start.lower), len(end.lower)))
        if not len(wires):
            return total
        made = start.any_upper[wires.producer] & end.any_lower[wires.producer]
        chosen = np.flatnonzero(made & ~wires.every(end.all_upper))
        if len(chosen):
            crosses = wires.readers_in(end.upper, chosen) < wires.sizes[chosen]
            crosses &= end.lower[:, wires.producer[chosen]]
            total = total - (start.upper[:, wires.producer[chosen]] * wires.cost[chosen]) @ crosses.T.astype(np.float64)
        if wires.back.any():
            total = total + self._sent_back(start, end)
        return total

    def _sent_back(self, start: Sides, end: Sides) -> Floats:
        """The gradients that the stage surely makes for blocks before it, and that do not cross its end."""
        wires = self.wires
        made = ~start.all_upper[wires.producer] & end.any_lower[wires.producer]
        chosen = np.flatnonzero(wires.back & made & wires.some(start.any_lower))
        if not len(chosen):
            return np.zeros((len(start.lower), len(end.lower)))
        producer = wires.producer[chosen]
        left = (wires.readers_in(start.lower, chosen) > 0) & ~start.upper[:, producer]
        right = end.lower[:, producer] & (wires.readers_in(end.upper, chosen) == wires.sizes[chosen])
        result: Floats = (left * wires.cost[chosen]) @ right.T.astype(np.float64)
        return result


def _parts_ns(table: _Table, rows: slice, ends: Ints, sides: tuple[Sides, Sides]) -> tuple[Floats, Floats, Floats]:
    """By minimum cuts, what stages from rows to ends pay; of that, by cuts of the spans themselves; so with work."""
    start, end = sides
    part, fresh = table.spans.part, table.spans.fresh
    numbers, where = np.unique(part[ends], return_inverse=True)
    cuts, loads = _paid(table.parts_end, numbers, start.upper)
    ending = [values[:, where] for values in (cuts, cuts, loads)]
    numbers, where = np.unique(part[rows], return_inverse=True)
    cuts, loads = _paid(table.parts_start, numbers, ~end.lower)
    starting = [values[:, where].T for values in (cuts, cuts, loads)]
    keep = (1, fresh[ends], fresh[ends]), (1, fresh[rows, None], fresh[rows, None])
    cut, own_cut, own_load = (ending[i] * keep[0][i] + starting[i] * keep[1][i] for i in range(3))
    return cut, own_cut, own_load


def _paid(parts: Parts, numbers: Ints, barred: Bools) -> tuple[Floats, Floats]:
    """[rows, numbers], the transfers, and with work, of the parts of which no block is barred in the row."""
    chosen = parts.of_numbers(numbers)
    free = parts.free(chosen, barred)
    return parts.sums(numbers, free * parts.cut_ns[chosen]), parts.sums(numbers, free * parts.load_ns[chosen])


def _reachable(spans: Spans, rows: slice, ends: Ints, least: Floats, reach_ns: float) -> Ints:
    """The ends that hold what all rows hold, and less work beyond what any of them may hold than a device can do."""
    if len(ends) < _MANY:
        return ends
    every = np.flatnonzero(spans.lower[rows].all(axis=0))
    ends = ends[spans.upper[np.ix_(ends, every)].all(axis=1)]
    beyond = np.flatnonzero(~spans.upper[rows].any(axis=0))
    reachable: Ints = ends[spans.lower[np.ix_(ends, beyond)] @ least[beyond] <= reach_ns]
    return reachable


def _outside(start: Sides, end: Sides) -> Bools:
    """[starts, ends], whether no downset of the end holds one of the start."""
    columns = np.flatnonzero(start.any_lower & ~end.all_upper)
    missing = start.lower[:, columns].astype(np.float32) @ (~end.upper[:, columns]).T.astype(np.float32)
    outside: Bools = missing > 0
    return outside


def _joined(parts: list[tuple[Ints, ...]], kinds: int, tight: bool) -> Pairs:
    """The blocks of pairs as one."""
    none = np.zeros(0, dtype=np.int64)
    width = 3 + kinds + 2 * tight
    columns = [np.concatenate([none, *(part[c] for part in parts)]) for c in range(width)]
    held = columns[3 + kinds :] if tight else [none, none]
    return Pairs(columns[0], columns[1], columns[2], np.stack(columns[3 : 3 + kinds]), held[0], held[1])
