"""Families of downsets, and what the stages between any two of them cost.

A solver over stages asks a family one thing: for a stage that starts at downset i, at which downsets j may it end, and
what does it receive and send then? Work and bytes add up, so they are differences of two figures; transfers are not:
a tensor that is read on both sides of a boundary is paid on both, but only once on each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autosplit.solvers.blocks.quotient import Bools, Ints, Quotient


class Row(NamedTuple):
    """The stages that start at one downset.

    Attributes:
        ends: numbers of the downsets at which they end, ascending.
        in_ns: what each receives, in the order of ``ends``.
        out_ns: what each sends.
    """

    ends: Ints
    in_ns: Ints
    out_ns: Ints


class Family(ABC):
    """Downsets in an order in which a downset comes after all those that it contains; none is first, all is last.

    Attributes:
        quotient: the blocks.
        work_ns: [kinds, downsets], the work of each downset on each kind of device.
        least_ns: [downsets], ascending: the work of each downset where each block runs on its fastest kind.
        fixed_bytes, stash_bytes: [downsets].
        banned: [kinds, downsets], how many of its blocks may not run on that kind.
        gradient_ns: [kinds, downsets], as in Quotient; 0 where it has none.
    """

    def __init__(self, quotient: Quotient) -> None:
        """To be called when ``total`` can be."""
        self.quotient = quotient
        self.work_ns, self.least_ns = self.total(quotient.work_ns), self.total(_least_ns(quotient))
        self.fixed_bytes, self.stash_bytes = self.total(quotient.fixed_bytes), self.total(quotient.stash_bytes)
        self.banned = self.total((~quotient.allowed).astype(np.int64))
        gradients = quotient.gradient_ns
        self.gradient_ns = self.total(np.zeros_like(quotient.work_ns) if gradients is None else gradients)

    def __len__(self) -> int:
        return int(self.least_ns.shape[-1])

    @abstractmethod
    def total(self, values: Ints) -> Ints:
        """From [..., blocks] to [..., downsets]: the sum over the blocks of each."""

    @abstractmethod
    def row(self, start: int, first: int, last: int) -> Row:
        """The stages from a downset to those from number ``first`` to before ``last`` that hold it."""

    @abstractmethod
    def blocks(self, start: int, end: int) -> list[int]:
        """The blocks of a stage."""

    @abstractmethod
    def holds(self, start: int, ends: Ints) -> tuple[Ints, Bools]:
        """The blocks of any of several stages, and [stages, blocks] whether the stage holds the block."""

    def reach(self, least_ns: int, most_ns: int) -> tuple[int, int]:
        """The first number, and one past the last, of the downsets whose work is between two figures."""
        first = int(np.searchsorted(self.least_ns, least_ns, side="left"))
        return first, int(np.searchsorted(self.least_ns, most_ns, side="right"))


class Prefixes(Family):
    """The prefixes of one order of the blocks.

    Args:
        quotient: the blocks.
        order: all blocks, in an order that keeps ``before``.
        cuts: lengths of the prefixes, ascending, from 0 to the number of blocks; all of them when not given.

    Two matrices are made once, O(reads + cuts^2); a row is a view of them.
    """

    def __init__(self, quotient: Quotient, order: Sequence[int], cuts: Sequence[int] | None = None) -> None:
        self.order = tuple(order)
        self._ordered = np.array(self.order, dtype=np.int64)
        self.cuts = np.arange(len(order) + 1) if cuts is None else np.asarray(cuts, dtype=np.int64)
        super().__init__(quotient)
        self._in, self._out = self._transfers()

    def total(self, values: Ints) -> Ints:
        """See Family."""
        sums = np.zeros((*values.shape[:-1], len(self.order) + 1), dtype=np.int64)
        values[..., self._ordered].cumsum(axis=-1, out=sums[..., 1:])
        return sums[..., self.cuts]

    def row(self, start: int, first: int, last: int) -> Row:
        """See Family."""
        first = max(start + 1, first)
        return Row(np.arange(first, last), self._in[start, first:last], self._out[start, first:last])

    def blocks(self, start: int, end: int) -> list[int]:
        """See Family."""
        return list(self.order[self.cuts[start] : self.cuts[end]])

    def holds(self, start: int, ends: Ints) -> tuple[Ints, Bools]:
        """See Family."""
        places = np.arange(self.cuts[start], self.cuts[ends].max())
        return self._ordered[places], places < self.cuts[ends][:, None]

    def _transfers(self) -> tuple[Ints, Ints]:
        """What the stage between any two prefixes receives and sends: sums over rectangles of (start, end)."""
        position = np.empty(len(self.order), dtype=np.int64)
        position[list(self.order)] = np.arange(len(self.order))
        segment = (np.searchsorted(self.cuts, position, side="right") - 1).tolist()
        m = len(self.cuts) - 1
        received: list[tuple[int, int, int, int, int]] = []
        sent: list[tuple[int, int, int, int, int]] = []
        for cost, producer, readers in self.quotient.wires:
            p = segment[producer]
            reads = sorted({segment[reader] for reader in readers} - {p})
            if not reads or not cost:
                continue
            before = -1
            for read in reads:  # the first read of a stage that starts after the read before it, without the producer
                if read < p:
                    received.append((before + 1, read, read + 1, p, cost))
                else:
                    received.append((max(before, p) + 1, read, read + 1, m, cost))
                before = read
            sent.append((0, p, p + 1, m, cost))
            sent.append((0, min(p, reads[0]), max(p, reads[-1]) + 1, m, -cost))
        return _rectangles(received, m + 1), _rectangles(sent, m + 1)


def _rectangles(rectangles: Sequence[tuple[int, int, int, int, int]], size: int) -> Ints:
    """The sum of (first row, last row, first column, last column, value), ends included."""
    total = np.zeros((size + 1, size + 1), dtype=np.int64)
    if rectangles:
        top, bottom, left, right, value = np.array(rectangles, dtype=np.int64).T
        np.add.at(total, (top, left), value)
        np.add.at(total, (bottom + 1, left), -value)
        np.add.at(total, (top, right + 1), -value)
        np.add.at(total, (bottom + 1, right + 1), value)
    np.cumsum(total, axis=0, out=total)
    np.cumsum(total, axis=1, out=total)
    return total[:size, :size]


class Downsets(Family):
    """Any downsets.

    Args:
        quotient: the blocks.
        members: [downsets, blocks], the blocks of each; none and all are added, repeats are dropped.

    A row is O(downsets within reach x (blocks / 8 + wires across its start)).
    """

    def __init__(self, quotient: Quotient, members: Bools) -> None:
        ends = np.array([[False] * len(quotient), [True] * len(quotient)])
        packed = np.unique(np.packbits(np.concatenate([ends, members]), axis=1), axis=0)
        members = np.unpackbits(packed, axis=1, count=len(quotient)).astype(np.bool_)
        self.members = members[np.lexsort((members.sum(axis=1), members @ _least_ns(quotient)))]
        super().__init__(quotient)
        self._words = _words(self.members)
        self._wires()

    def total(self, values: Ints) -> Ints:
        """See Family."""
        return np.ascontiguousarray((self.members @ values.T).T)

    def _wires(self) -> None:
        """For each downset and wire: whether the producer is in it, and how many readers are."""
        wires = [wire for wire in self.quotient.wires if wire.cost and wire.readers]
        count = len(wires)
        self._cost = np.array([wire.cost for wire in wires], dtype=np.int64)
        self._readers = np.array([len(wire.readers) for wire in wires], dtype=np.int32)
        self._made = self.members[:, [wire.producer for wire in wires]]
        self._read = np.zeros((len(self), count), dtype=np.int32)
        for number, wire in enumerate(wires):
            self._read[:, number] = self.members[:, list(wire.readers)].sum(axis=1)
        self._across = (self._made | (self._read > 0)) & ~(self._made & (self._read == self._readers))
        self._across_in = (self._across & ~self._made) @ self._cost
        self._across_out = (self._across & self._made) @ self._cost

    def row(self, start: int, first: int, last: int) -> Row:
        """See Family.

        A wire that has an end before the stage is looked at for itself. Every other wire that crosses the stage's end
        is paid there once: as sent when its producer is inside, as received when only readers are.
        """
        own, first = self._words[start], max(start + 1, first)
        ends = first + np.flatnonzero(((self._words[first:last] & own) == own).all(axis=1))
        crossing = np.flatnonzero(self._across[start])
        cost = self._cost[crossing]
        inside = self._made[np.ix_(ends, crossing)]
        read = self._read[np.ix_(ends, crossing)]
        still = self._across[np.ix_(ends, crossing)]
        made_before = self._made[start, crossing]
        makes = inside & ~made_before
        reads = (read > self._read[start, crossing]) & ~makes
        elsewhere = read - self._read[start, crossing] < self._readers[crossing]
        in_ns = self._across_in[ends] - (still & ~inside) @ cost + reads @ cost
        out_ns = self._across_out[ends] - (still & inside) @ cost + (makes & elsewhere) @ cost
        return Row(ends, in_ns, out_ns)

    def blocks(self, start: int, end: int) -> list[int]:
        """See Family."""
        return np.flatnonzero(self.members[end] & ~self.members[start]).tolist()

    def holds(self, start: int, ends: Ints) -> tuple[Ints, Bools]:
        """See Family."""
        added = self.members[ends] & ~self.members[start]
        blocks = np.flatnonzero(added.any(axis=0))
        return blocks, added[:, blocks]


def _least_ns(quotient: Quotient) -> Ints:
    """The time of each block on its fastest kind."""
    return np.asarray(np.where(quotient.allowed, quotient.work_ns, quotient.work_ns.max()).min(axis=0), dtype=np.int64)


def _words(members: Bools) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Each downset as bits in 64-bit words."""
    packed = np.packbits(members, axis=1)
    padded = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)
