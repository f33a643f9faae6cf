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
from autosplit.solvers.fleet import Fleet
from autosplit.solvers.quotient import Bools, Ints, Quotient, Wire
from autosplit.solvers.spans import Closure, Floats, Spans
from autosplit.solvers.wires import Wires

_REACH = 0.3
_CHUNK = 1024


class Part(NamedTuple):
    """What stages pay at one part of a span.

    Attributes:
        blocks: a stage that ends in the span pays when none of these is before its start; a stage that starts in the
            span pays when all of these are before its end.
        cut_ns: the least transfers.
        load_ns: the least of the transfers and the work of the part's blocks that are in the stage.
    """

    blocks: Bools
    cut_ns: int
    load_ns: int


class Parts(NamedTuple):
    """Parts of many spans. Those of number i are from ``starts[i]`` to ``starts[i + 1]``."""

    starts: Ints
    blocks: Bools
    cut_ns: Floats
    load_ns: Floats

    @classmethod
    def of(cls, found: Sequence[Sequence[Part]], count: int) -> Parts:
        """For each number its parts, over ``count`` blocks."""
        flat = [part for parts in found for part in parts]
        return cls(
            np.cumsum([0, *map(len, found)]),
            np.array([part.blocks for part in flat], dtype=np.bool_).reshape(-1, count),
            np.array([part.cut_ns for part in flat], dtype=np.float64),
            np.array([part.load_ns for part in flat], dtype=np.float64),
        )

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
        blocks = np.arange(len(quotient))
        parts = [blocks[at : at + _CHUNK] for at in range(0, len(blocks), _CHUNK)]
        work = least_ns.astype(np.float64)
        self._earliest = np.concatenate([closure.before(part) @ work for part in parts]) - work
        self._latest = work.sum() - np.concatenate([closure.after(part) @ work for part in parts])
        self._found: list[tuple[list[Part], list[Part]]] = [([], [])]

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
        count = len(self._quotient)
        ends, starts = Parts.of([row[0] for row in found], count), Parts.of([row[1] for row in found], count)
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
        return end.parts(self._least, loads=loads, before=True), start.parts(self._least, loads=loads, before=False)


def _is_gradient(quotient: Quotient, closure: Closure, number: int) -> bool:
    """Whether all readers must come before the producer."""
    wire = quotient.wires[number]
    before = closure.before(np.array([wire.producer]))[0]
    return bool(before[list(wire.readers)].all())


class _Pay(NamedTuple):
    """What a wire costs when it is cut: ``block`` and all of ``others`` are nodes or terminals."""

    block: int
    others: tuple[int, ...]
    cost: int
    forwards: bool
    near: int | None


class _Boundary:
    """The network of one boundary in a span: what lies before it is on the source's side."""

    def __init__(self, quotient: Quotient, lower: Bools, upper: Bools) -> None:
        self._lower, self._upper = lower, upper
        self.free = np.flatnonzero(upper & ~lower)
        self._node = {block: node for node, block in enumerate(self.free.tolist())}
        self._ties: list[tuple[int, int]] = []
        self._pays: list[_Pay] = []
        self._root = list(range(len(self.free)))
        for block, node in self._node.items():
            for other in quotient.before[block]:
                if other in self._node:
                    self._ties.append((node, self._node[other]))
                    self._join(self._ties[-1])

    def forwards(self, wire: Wire, near: Bools, *, readers: bool) -> None:
        """Pay when the producer is before the boundary and a reader is not; only near readers, or a near producer."""
        sure = self._lower[wire.producer] and not self._upper[list(wire.readers)].all()
        if sure or not self._upper[wire.producer] or not (readers or near[wire.producer]):
            return
        ends = [r for r in wire.readers if not self._lower[r] and (not readers or near[r])]
        outside = [r for r in ends if not self._upper[r]]
        mark = wire.producer if not readers else min(outside, default=None)
        self._pay(wire, [outside[0]] if outside else ends, mark, forwards=True)

    def backwards(self, wire: Wire, near: Bools, *, readers: bool) -> None:
        """Pay when the producer is not before the boundary and a reader is; only near readers, or a near producer."""
        sure = not self._upper[wire.producer] and self._lower[list(wire.readers)].any()
        if sure or self._lower[wire.producer] or not (readers or near[wire.producer]):
            return
        ends = [r for r in wire.readers if self._upper[r] and (not readers or near[r])]
        inside = [r for r in ends if self._lower[r]]
        mark = wire.producer if not readers else max(inside, default=None)
        self._pay(wire, [inside[0]] if inside else ends, mark, forwards=False)

    def _pay(self, wire: Wire, ends: Sequence[int], near: int | None, *, forwards: bool) -> None:
        if ends:
            producer, *others = (self._place(block) for block in (wire.producer, *ends))
            self._pays.append(_Pay(producer, tuple(others), wire.cost, forwards, near))
            self._join([node for node in (producer, *others) if node >= 0])

    def _place(self, block: int) -> int:
        return SOURCE if self._lower[block] else self._node.get(block, SINK)

    def _join(self, nodes: Sequence[int]) -> None:
        for node in nodes[1:]:
            self._root[self._find(node)] = self._find(nodes[0])

    def _find(self, node: int) -> int:
        while self._root[node] != node:
            self._root[node] = node = self._root[self._root[node]]
        return node

    def parts(self, least: Ints, *, loads: bool, before: bool) -> list[Part]:
        """The parts for which there is something to pay.

        Args:
            least: [blocks], their times.
            loads: whether transfers and work add up.
            before: for stages that end here, in which are the blocks before the boundary; else those after it.
        """
        groups: dict[int, list[_Pay]] = {}
        for pay in self._pays:
            groups.setdefault(self._find(max(pay.block, *pay.others)), []).append(pay)
        found = []
        for root, pays in groups.items():
            nodes = [node for node in range(len(self.free)) if self._find(node) == root]
            cut = load = self._least(nodes, pays, [])
            if loads:
                work = [(node, int(least[self.free[node]])) for node in nodes]
                load = self._least(nodes, pays, [(n, SINK, c) if before else (SOURCE, n, c) for n, c in work])
            if load:
                blocks = np.zeros(len(least), dtype=np.bool_)
                blocks[self.free[nodes]] = True
                blocks[[pay.near for pay in pays if pay.near is not None]] = True
                found.append(Part(blocks, cut, load))
        return found

    def _least(self, nodes: Sequence[int], pays: Sequence[_Pay], more: Sequence[tuple[int, int, int]]) -> int:
        """The minimum cut of one part, with more arcs."""
        place = {node: number for number, node in enumerate(nodes)} | {SOURCE: SOURCE, SINK: SINK}
        network = FlowNetwork(len(nodes))
        for u, v in self._ties:
            if u in place:
                network.add_arc(place[u], place[v], None)
        for u, v, cost in more:
            network.add_arc(place[u], place[v], cost)
        for pay in pays:
            block, others = place[pay.block], [place[other] for other in pay.others]
            end = others[0]
            if len(others) > 1:
                end = network.add_node()
                for other in others:
                    network.add_arc(*((end, other) if pay.forwards else (other, end)), None)
            network.add_arc(*((block, end) if pay.forwards else (end, block)), pay.cost)
        return network.minimum_cut()[0]
