"""Cuts: the least that stages pay at a boundary that lies anywhere in a span, by minimum cuts.

A span of many downsets holds cheap boundaries and dear ones, and little of what a stage pays there is sure; but every
boundary cuts wires, and the minimum cut is paid in any case. A stage that ends there pays for the wires across that it
made itself, and a stage that starts there for those across that it reads itself; which these are depends on the other
end of the stage. So a cut counts only wires made by late blocks, or read by early ones, and holds for all stages that
are long enough to hold those blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from autosplit.flow import SINK, SOURCE, FlowNetwork
from autosplit.solvers.fleet import Fleet
from autosplit.solvers.quotient import Bools, Ints, Quotient, Wire
from autosplit.solvers.spans import Closure, Spans
from autosplit.solvers.wires import Wires

_REACH = 0.3
_CHUNK = 1024


class Row(IntEnum):
    """What is kept of each span, one row of ``Spans.cuts`` each."""

    MADE_AFTER = 0  # blocks whose earliest start is from here on count as makers of what a stage that ends here sends
    READ_BEFORE = (
        1  # blocks whose latest start is before this count as readers of what a stage that starts here receives
    )
    END = 2  # the least transfers of a stage that ends here
    START = 3  # the least transfers of a stage that starts here
    END_LOAD = 4  # the least of these transfers and the work of all blocks before the boundary
    START_LOAD = 5  # the most of the work of all blocks before the boundary, less these transfers
    FREE = 6  # how many blocks were free when it was computed


class Cuts:
    """Minimum cuts for spans of one quotient.

    Args:
        quotient: the blocks.
        fleet: the devices.
        least_ns: [blocks], their times, each on its fastest kind.
        closure: of the blocks.
        wires: of the quotient.

    Attributes:
        earliest: [blocks], the work that must come before each.
        latest: [blocks], all work but what must come after each, and its own.
    """

    def __init__(self, quotient: Quotient, fleet: Fleet, least_ns: Ints, closure: Closure, wires: Wires) -> None:
        self._quotient, self._fleet, self._least, self._wires = quotient, fleet, least_ns, wires
        self._back = frozenset(wires.numbers[wires.back].tolist())
        blocks = np.arange(len(quotient))
        parts = [blocks[at : at + _CHUNK] for at in range(0, len(blocks), _CHUNK)]
        work = least_ns.astype(np.float64)
        self.earliest = np.concatenate([closure.before(part) @ work for part in parts]) - work
        self.latest = work.sum() - np.concatenate([closure.after(part) @ work for part in parts])
        self._by_earliest = np.argsort(-self.earliest, kind="stable")
        self._by_latest = np.argsort(self.latest, kind="stable")

    def refresh(self, spans: Spans, most_ns: int, most: int) -> Spans:
        """Spans with their cuts computed anew where they have far fewer free blocks than when it was done last.

        Args:
            spans: any.
            most_ns: the longest time of a stage.
            most: at most so many spans, those with most free blocks first.
        """
        free = (spans.upper & ~spans.lower).sum(axis=1)
        stale = np.flatnonzero((free > 1) & (free <= 0.6 * spans.cuts[Row.FREE]))
        stale = stale[np.argsort(-free[stale], kind="stable")][:most]
        cuts = spans.cuts.copy()
        for number in stale.tolist():
            cuts[: Row.FREE, number] = self._of(spans.lower[number], spans.upper[number], most_ns)
            cuts[Row.FREE, number] = free[number]
        return spans._replace(cuts=cuts)

    def _of(self, lower: Bools, upper: Bools, most_ns: int) -> list[float]:
        """All rows but the last for one span."""
        reach = _REACH * most_ns
        order = self._by_earliest
        late = order[(np.cumsum(lower[order] * self._least[order]) >= reach)]
        made_after = float(self.earliest[late[0]]) if len(late) else -np.inf
        order = self._by_latest
        early = order[(np.cumsum(~upper[order] * self._least[order]) >= reach)]
        read_before = float(self.latest[early[0]]) if len(early) else np.inf
        makers, readers = self.earliest >= made_after, self.latest < read_before
        free = np.flatnonzero(upper & ~lower)
        end = _Boundary(self._quotient, lower, upper, free)
        start = _Boundary(self._quotient, lower, upper, free)
        for number in dict.fromkeys(number for block in free.tolist() for number in self._quotient.touching[block]):
            wire = self._quotient.wires[number]
            if number in self._back:
                end.backwards(wire, [reader for reader in wire.readers if makers[reader]])
                if self._fleet.sender_pays and readers[wire.producer]:
                    start.backwards(wire, wire.readers)
            elif self._fleet.sender_pays and makers[wire.producer]:
                end.forwards(wire, wire.readers)
            start.forwards(wire, [reader for reader in wire.readers if readers[reader]])
        if len(self._wires.cost):
            self._sure(end, start, (lower, upper), (makers, readers))
        work = self._least[free].tolist()
        return [
            made_after,
            read_before,
            end.least(),
            start.least(),
            float(self._least[lower].sum()) + end.least([(v, SINK, c) for v, c in enumerate(work)]),
            float(self._least[upper].sum()) - start.least([(SOURCE, v, c) for v, c in enumerate(work)]),
        ]

    def _sure(self, end: _Boundary, start: _Boundary, span: tuple[Bools, Bools], near: tuple[Bools, Bools]) -> None:
        """Add what is paid for wires that no free block makes or reads."""
        (lower, upper), (makers, readers), wires = span, near, self._wires
        free = upper & ~lower
        fixed = ~free[wires.producer] & ~wires.some(free)
        before, after = fixed & lower[wires.producer], fixed & ~upper[wires.producer]
        start.sure += int(wires.cost[before & wires.some(readers & ~upper)].sum())
        end.sure += int(wires.cost[wires.back & after & wires.some(makers & lower)].sum())
        if self._fleet.sender_pays:
            rest = before & ~wires.back & makers[wires.producer]
            end.sure += int(wires.cost[rest & ~wires.every(upper)].sum())
            start.sure += int(wires.cost[wires.back & after & readers[wires.producer] & wires.some(lower)].sum())


class _Boundary:
    """The network of one boundary: what lies before it is on the source's side."""

    def __init__(self, quotient: Quotient, lower: Bools, upper: Bools, free: Ints) -> None:
        self._where = np.where(lower, SOURCE, SINK)
        self._where[free] = np.arange(len(free))
        self._arcs: list[tuple[int, int, int | None]] = []
        self._nodes = len(free)
        self.sure = 0
        for block in free.tolist():
            node = int(self._where[block])
            self._arcs += [
                (node, int(self._where[other]), None) for other in quotient.before[block] if not lower[other]
            ]

    def forwards(self, wire: Wire, readers: Sequence[int]) -> None:
        """Pay when the producer is before the boundary and one of these readers is not."""
        producer = int(self._where[wire.producer])
        ends = {int(self._where[reader]) for reader in readers} - {SOURCE}
        if producer == SINK or not ends:
            return
        if SINK in ends:
            ends = {SINK}
        if producer == SOURCE and ends == {SINK}:
            self.sure += wire.cost
            return
        self._pay(producer, ends, wire.cost, forwards=True)

    def backwards(self, wire: Wire, readers: Sequence[int]) -> None:
        """Pay when the producer is not before the boundary and one of these readers is."""
        producer = int(self._where[wire.producer])
        ends = {int(self._where[reader]) for reader in readers} - {SINK}
        if producer == SOURCE or not ends:
            return
        if SOURCE in ends:
            ends = {SOURCE}
        if producer == SINK and ends == {SOURCE}:
            self.sure += wire.cost
            return
        self._pay(producer, ends, wire.cost, forwards=False)

    def _pay(self, producer: int, ends: set[int], cost: int, *, forwards: bool) -> None:
        node = min(ends)
        if len(ends) > 1:
            node = self._nodes
            self._nodes += 1
            self._arcs += [(node, end, None) if forwards else (end, node, None) for end in sorted(ends)]
        self._arcs.append((producer, node, cost) if forwards else (node, producer, cost))

    def least(self, more: Sequence[tuple[int, int, int | None]] = ()) -> float:
        """The minimum cut, with more arcs."""
        network = FlowNetwork(self._nodes)
        for u, v, capacity in (*self._arcs, *more):
            network.add_arc(u, v, capacity)
        return float(network.minimum_cut()[0] + self.sure)
