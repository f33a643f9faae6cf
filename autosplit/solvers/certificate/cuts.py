"""Cuts: the least that stages pay at a boundary that lies anywhere in a span, by minimum cuts.

A span of many downsets holds cheap boundaries and dear ones, and little of what a stage pays there is sure; but every
boundary cuts wires, and the minimum cut is paid in any case. The free blocks of a span fall into parts that no wire
joins, each with a cut of its own. A stage that ends in the span pays for the wires across that it made itself, which
depends on where it starts: a part counts only wires that are made near it, and holds for all stages that start before
their makers. The same from the other side, for the wires that a stage which starts in the span reads itself.

What surely crosses every boundary of the span is not counted here but in ``tolls``, so that both add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autosplit.flow import SINK, SOURCE, FlowNetwork
from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Bools, Ints, Quotient, Wire
from autosplit.solvers.certificate.spans import Closure, Floats, Spans
from autosplit.solvers.certificate.wires import Wires

_REACH = 0.3


class Part(NamedTuple):
    """What stages pay at one part of a span.

    Attributes:
        blocks: a stage that ends in the span pays when none of these is before its start; a stage that starts in the
            span pays when all of these are before its end.
        cut_ns: the least transfers.
        load_ns: the least of the transfers and the work of the part's blocks that are in the stage.
    """

    blocks: tuple[int, ...]
    cut_ns: int
    load_ns: int


class Parts(NamedTuple):
    """Parts of many spans. Those of number i are from ``starts[i]`` to ``starts[i + 1]``."""

    starts: Ints
    sizes: Ints
    blocks: Ints
    cut_ns: Floats
    load_ns: Floats

    @classmethod
    def of(cls, found: Sequence[Sequence[Part]]) -> Parts:
        """For each number its parts."""
        flat = [part for parts in found for part in parts]
        return cls(
            np.cumsum([0, *map(len, found)]),
            np.array([len(part.blocks) for part in flat], dtype=np.int64),
            np.array([block for part in flat for block in part.blocks], dtype=np.int64),
            np.array([part.cut_ns for part in flat], dtype=np.float64),
            np.array([part.load_ns for part in flat], dtype=np.float64),
        )

    def free(self, chosen: Ints, barred: Bools) -> Bools:
        """[rows of barred, chosen parts], whether no block of the part is barred in the row."""
        free = np.ones((len(barred), len(chosen)), dtype=np.bool_)
        firsts = np.cumsum(self.sizes) - self.sizes
        if not len(chosen):
            return free
        touched = np.logical_or.reduceat(np.logical_or.reduce(barred)[self.blocks], firsts)
        some = np.flatnonzero(touched[chosen])
        if len(some):
            sizes = self.sizes[chosen[some]]
            into = np.cumsum(sizes) - sizes
            index = np.repeat(firsts[chosen[some]] - into, sizes) + np.arange(sizes.sum())
            free[:, some] = ~np.logical_or.reduceat(barred[:, self.blocks[index]], into, axis=1)
        return free

    def of_numbers(self, numbers: Ints) -> Ints:
        """All parts of some numbers."""
        sizes = self.starts[numbers + 1] - self.starts[numbers]
        return np.repeat(self.starts[numbers] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())

    def sums(self, numbers: Ints, values: Floats) -> Floats:
        """[rows, numbers] from [rows, parts of the numbers]."""
        sizes = self.starts[numbers + 1] - self.starts[numbers]
        running = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
        last = np.cumsum(sizes)
        result: Floats = running[:, last] - running[:, last - sizes]
        return result


class Cuts:
    """Minimum cuts for spans of one quotient.

    Args:
        quotient: the blocks.
        fleet: the devices.
        least_ns: [blocks], their times, each on its fastest kind.
        closure: of the blocks.
        wires: of the quotient.
    """

    def __init__(self, quotient: Quotient, fleet: Fleet, least_ns: Ints, closure: Closure, wires: Wires) -> None:
        self._quotient, self._fleet, self._least = quotient, fleet, least_ns
        self._forward = {int(n) for n, back in zip(wires.numbers, wires.back, strict=True) if not back}
        self._backward = {
            int(n) for n in wires.numbers if int(n) not in self._forward and _is_gradient(quotient, closure, n)
        }
        work = least_ns.astype(np.float64)
        earliest, latest = closure.sums(work)
        self._earliest, self._latest = earliest - work, work.sum() - latest
        self._known: dict[object, tuple[int, int]] = {}
        self._found: list[tuple[list[Part], list[Part]]] = [([], [])]

    @property
    def count(self) -> int:
        """For how many spans cuts were computed so far."""
        return len(self._found) - 1

    def refresh(self, spans: Spans, most_ns: int, most: int) -> Spans:
        """Spans with cuts of their own, where they had those of a larger span.

        Args:
            spans: any.
            most_ns: the longest time of a stage.
            most: at most so many spans, those with most free blocks first.
        """
        free = (spans.upper & ~spans.lower).sum(axis=1)
        stale = np.flatnonzero((free > 1) & ~spans.fresh)
        stale = stale[np.argsort(-free[stale], kind="stable")][:most]
        part, fresh = spans.part.copy(), spans.fresh.copy()
        for number in stale.tolist():
            part[number] = len(self._found)
            self._found.append(self._of(spans.lower[number], spans.upper[number], _REACH * most_ns))
        fresh[stale] = True
        return spans._replace(part=part, fresh=fresh)

    def parts(self, spans: Spans) -> tuple[Spans, Parts, Parts]:
        """The spans, their parts numbered anew, and these: what stages pay that end there, and that start there."""
        numbers, part = np.unique(spans.part, return_inverse=True)
        found = [self._found[number] for number in numbers.tolist()]
        ends, starts = Parts.of([row[0] for row in found]), Parts.of([row[1] for row in found])
        return spans._replace(part=part), ends, starts

    def _of(self, lower: Bools, upper: Bools, reach: float) -> tuple[list[Part], list[Part]]:
        """What is paid at each part of a span, by stages that end and that start there."""
        end = _Boundary(self._quotient, lower, upper)
        start = _Boundary(self._quotient, lower, upper)
        free = end.free
        near_before = self._earliest >= self._earliest[free].min() - reach
        near_after = self._latest <= self._latest[free].max() + reach
        for number in dict.fromkeys(number for block in free.tolist() for number in self._quotient.touching[block]):
            wire = self._quotient.wires[number]
            if number in self._backward:
                end.backwards(wire, near_before, readers=True)
                if self._fleet.sender_pays:
                    start.backwards(wire, near_after, readers=False)
                continue
            if wire.cost and wire.readers:
                start.forwards(wire, near_after, readers=True)
            if self._fleet.sender_pays and number in self._forward:
                end.forwards(wire, near_before, readers=False)
        loads = not self._fleet.overlap
        return (
            end.parts(self._least, self._known, loads=loads, before=True),
            start.parts(self._least, self._known, loads=loads, before=False),
        )


def _is_gradient(quotient: Quotient, closure: Closure, number: int) -> bool:
    """Whether all readers must come before the producer."""
    wire = quotient.wires[number]
    before = closure.before(np.array([wire.producer]))[0]
    return bool(before[list(wire.readers)].all())


class _Pay(NamedTuple):
    """What a wire costs when it is cut. Its ends are free blocks or terminals; ``near``, unless -1, joins the part."""

    producer: int
    readers: tuple[int, ...]
    cost: int
    forwards: bool
    near: int

    def paid(self, before: bool) -> bool:
        """Whether it is paid when its free blocks, if any, are all before the boundary, or all after it."""
        ends = {end == SOURCE or (before and end != SINK) for end in self.readers}
        made = self.producer == SOURCE or (before and self.producer != SINK)
        return (made and False in ends) if self.forwards else (not made and True in ends)


class _Boundary:
    """The network of one boundary in a span: what lies before it is on the source's side."""

    def __init__(self, quotient: Quotient, lower: Bools, upper: Bools) -> None:
        self._quotient, self._lower, self._upper = quotient, lower, upper
        self.free = np.flatnonzero(upper & ~lower)
        self._pays: list[_Pay] = []
        self._root = {block: block for block in self.free.tolist()}
        for block in self._root:
            self._join([block, *(other for other in quotient.before[block] if other in self._root)])

    def forwards(self, wire: Wire, near: Bools, *, readers: bool) -> None:
        """Pay when the producer is before the boundary and a reader is not; only near readers, or a near producer."""
        upper, lower = self._upper, self._lower
        sure = lower[wire.producer] and not all(upper[reader] for reader in wire.readers)
        if sure or not upper[wire.producer] or not (readers or near[wire.producer]):
            return
        ends = [reader for reader in wire.readers if not lower[reader] and (not readers or near[reader])]
        outside = [reader for reader in ends if not upper[reader]]
        self._pay(wire, outside[:1] or ends, min(outside, default=-1) if readers else wire.producer, forwards=True)

    def backwards(self, wire: Wire, near: Bools, *, readers: bool) -> None:
        """Pay when the producer is not before the boundary and a reader is; only near readers, or a near producer."""
        upper, lower = self._upper, self._lower
        sure = not upper[wire.producer] and any(lower[reader] for reader in wire.readers)
        if sure or lower[wire.producer] or not (readers or near[wire.producer]):
            return
        ends = [reader for reader in wire.readers if upper[reader] and (not readers or near[reader])]
        inside = [reader for reader in ends if lower[reader]]
        self._pay(wire, inside[:1] or ends, max(inside, default=-1) if readers else wire.producer, forwards=False)

    def _pay(self, wire: Wire, ends: Sequence[int], near: int, *, forwards: bool) -> None:
        if ends:
            producer, *readers = (self._place(block) for block in (wire.producer, *ends))
            self._pays.append(_Pay(producer, tuple(readers), wire.cost, forwards, near))
            self._join([block for block in (producer, *readers) if block >= 0])

    def _place(self, block: int) -> int:
        return block if block in self._root else SOURCE if self._lower[block] else SINK

    def _join(self, blocks: Sequence[int]) -> None:
        for block in blocks[1:]:
            self._root[self._find(block)] = self._find(blocks[0])

    def _find(self, block: int) -> int:
        root = self._root
        while root[block] != block:
            root[block] = block = root[root[block]]
        return block

    def parts(self, least: Ints, known: dict[object, tuple[int, int]], *, loads: bool, before: bool) -> list[Part]:
        """The parts for which there is something to pay.

        Args:
            least: [blocks], their times.
            known: what was found before; kept between calls, because cutting a span leaves most parts as they are.
            loads: whether transfers and work add up.
            before: for stages that end here, in which are the blocks before the boundary; else those after it.
        """
        inside: dict[int, list[int]] = {}
        for block in self._root:
            inside.setdefault(self._find(block), []).append(block)
        pays: dict[int, list[_Pay]] = {}
        for pay in self._pays:
            pays.setdefault(self._find(max(pay.producer, *pay.readers)), []).append(pay)
        found = []
        for root, group in pays.items():
            key = before, tuple(inside[root]), tuple(group)
            if key not in known:
                work = [(block, int(least[block])) for block in inside[root]] if loads else []
                known[key] = self._least(inside[root], group, []), self._least(inside[root], group, work, before)
            cut, load = known[key]
            if load:
                near = {pay.near for pay in group if pay.near >= 0}
                found.append(Part((*inside[root], *sorted(near.difference(inside[root]))), cut, load))
        return found

    def _least(
        self, blocks: Sequence[int], pays: Sequence[_Pay], work: Sequence[tuple[int, int]], before: bool = True
    ) -> int:
        """The minimum cut of one part, with the work of blocks before the boundary or after it."""
        if len(blocks) == 1:
            return min(
                sum(pay.cost for pay in pays if pay.paid(side)) + sum(cost for _, cost in work if side is before)
                for side in (True, False)
            )
        place = {block: number for number, block in enumerate(blocks)} | {SOURCE: SOURCE, SINK: SINK}
        network = FlowNetwork(len(blocks))
        for block in blocks:
            for other in self._quotient.before[block]:
                if other in place:
                    network.add_arc(place[block], place[other], None)
        for block, cost in work:
            network.add_arc(*((place[block], SINK) if before else (SOURCE, place[block])), cost)
        for pay in pays:
            end, readers = place[pay.readers[0]], [place[reader] for reader in pay.readers]
            if len(readers) > 1:
                end = network.add_node()
                for reader in readers:
                    network.add_arc(*((end, reader) if pay.forwards else (reader, end)), None)
            producer = place[pay.producer]
            network.add_arc(*((producer, end) if pay.forwards else (end, producer)), pay.cost)
        return network.minimum_cut()[0]
