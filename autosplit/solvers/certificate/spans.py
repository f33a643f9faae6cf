"""Spans: many downsets at once, all that lie between two of them, and how to cut one span in two.

A set of spans that holds every downset stands for all boundaries that a contiguous plan may have; what is true of
every downset of a span can then be proved once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autosplit.solvers.blocks.quotient import Bools, Ints, Quotient

Floats = npt.NDArray[np.float64]
_ROWS = 64
_QUANTILES = (0.35, 0.5, 0.65)


class Spans(NamedTuple):
    """Spans in a row; the first is that of the empty downset alone, the last that of all blocks alone.

    Attributes:
        lower: [spans, blocks], the blocks that every downset of the span holds; a downset itself.
        upper: [spans, blocks], the blocks that some downset of the span holds; a downset itself.
        alive: [states, spans], whether a plan that is looked for may have its boundary there, with these devices after.
        part: [spans], the number under which ``cuts`` keeps what stages pay at such a boundary, or at one of a larger
            span that holds it; 0 is nothing.
        fresh: [spans], whether that was found for the span itself.
    """

    lower: Bools
    upper: Bools
    alive: Bools
    part: Ints
    fresh: Bools

    @property
    def size(self) -> int:
        """How many spans."""
        return len(self.lower)

    def take(self, chosen: Ints) -> Spans:
        """Some of the spans, in the order given."""
        return Spans(
            self.lower[chosen], self.upper[chosen], self.alive[:, chosen], self.part[chosen], self.fresh[chosen]
        )

    @property
    def single(self) -> Bools:
        """[spans], whether the span is one downset."""
        same: Bools = (self.lower == self.upper).all(axis=1)
        return same


def all_downsets(blocks: int, states: int) -> Spans:
    """Three spans: none, every downset, all. ``states`` are numbered from 0, where no device is left."""
    lower = np.zeros((3, blocks), dtype=np.bool_)
    upper = np.ones((3, blocks), dtype=np.bool_)
    upper[0], lower[2] = False, True
    alive = np.ones((states, 3), dtype=np.bool_)
    alive[0, :2] = False
    alive[1:, 2] = False
    return Spans(lower, upper, alive, np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.bool_))


class Closure:
    """What must come before and after each block, as packed bits: 2 x blocks^2 / 8 bytes."""

    def __init__(self, quotient: Quotient) -> None:
        self._quotient = quotient
        self._count = len(quotient)

    def _alone(self) -> npt.NDArray[np.uint8]:
        """Each block with itself only."""
        bits, blocks = np.zeros((self._count, -(-self._count // 8)), dtype=np.uint8), np.arange(self._count)
        bits[blocks, blocks // 8] = 128 >> blocks % 8
        return bits

    @cached_property
    def _before(self) -> npt.NDArray[np.uint8]:
        bits = self._alone()
        for block, others in enumerate(self._quotient.before):
            for other in others:
                bits[block] |= bits[other]
        return bits

    @cached_property
    def _after(self) -> npt.NDArray[np.uint8]:
        bits = self._alone()
        for block in reversed(range(self._count)):
            for other in self._quotient.before[block]:
                bits[other] |= bits[block]
        return bits

    def sums(self, values: Floats) -> tuple[Floats, Floats]:
        """For each block the sum of the values of what it needs, and of what needs it, itself too. O(blocks^2 / 8)."""
        padded = np.zeros(-(-self._count // 8) * 8)
        padded[: self._count] = values
        patterns = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
        of_byte = (padded.reshape(-1, 8) @ patterns.T.astype(np.float64)).ravel()
        return _looked_up(of_byte, self._before), _looked_up(of_byte, self._after)

    def before(self, blocks: Ints) -> Bools:
        """[len(blocks), all blocks], what each needs, itself too."""
        return np.unpackbits(self._before[blocks], axis=1, count=self._count).view(np.bool_)

    def after(self, blocks: Ints) -> Bools:
        """[len(blocks), all blocks], what needs each, itself too."""
        return np.unpackbits(self._after[blocks], axis=1, count=self._count).view(np.bool_)


def never_apart(spans: Spans) -> list[int]:
    """For each block a number: the same for blocks of which every downset of every span holds all or none.

    Returns:
        The numbers of the groups, from 0 up, in a topological order. A group holds what lies between its blocks, too.
    """
    free: Bools = np.logical_or.reduce(spans.upper & ~spans.lower)
    known = np.flatnonzero(~free)
    _, first, same = np.unique(
        np.packbits(spans.lower[:, known], axis=0), axis=1, return_index=True, return_inverse=True
    )
    leader = np.arange(len(free))
    leader[known] = known[first[same.ravel()]]
    leaders = np.unique(leader)
    held = spans.lower.sum(axis=0) + spans.upper.sum(axis=0)  # falls along every path that leads out of a group
    number = np.empty(len(free), dtype=np.int64)
    number[leaders[np.lexsort((leaders, -held[leaders]))]] = np.arange(len(leaders))
    groups: list[int] = number[leader].tolist()
    return groups


def spans_of_groups(spans: Spans, groups: Sequence[int], quotient: Quotient) -> Spans:
    """Spans of the downsets of groups of blocks that lie in the spans given.

    Args:
        spans: of blocks; the first is that of the empty downset, the last that of all.
        groups: for each block the number of its group, from 0 up.
        quotient: the groups, which may have more to keep to than their blocks.

    Returns:
        No two that are the same, the first and the last as before; what was known of their cuts is lost.
    """
    into = np.array(groups, dtype=np.int64)
    order, firsts = np.argsort(into, kind="stable"), np.searchsorted(np.sort(into), np.arange(into.max() + 1))
    low = np.logical_or.reduceat(spans.lower.T[order], firsts)
    high = np.logical_and.reduceat(spans.upper.T[order], firsts)
    for group in reversed(range(len(quotient))):
        for other in quotient.before[group]:
            low[other] |= low[group]
    for group in range(len(quotient)):
        for other in quotient.before[group]:
            high[group] &= high[other]
    lower, upper = np.ascontiguousarray(low.T), np.ascontiguousarray(high.T)
    there = np.flatnonzero((lower <= upper).all(axis=1))
    rows = np.packbits(np.concatenate([lower, upper], axis=1)[there], axis=1)
    _, first, same = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    alive = np.zeros((len(spans.alive), len(first)), dtype=np.bool_)
    np.logical_or.at(alive.T, same.ravel(), spans.alive.T[there])
    kept = np.argsort(first)
    chosen, none = there[first[kept]], np.zeros(len(first), dtype=np.int64)
    return Spans(lower[chosen], upper[chosen], alive[:, kept], none, none.astype(np.bool_))


def _looked_up(of_byte: Floats, bits: npt.NDArray[np.uint8]) -> Floats:
    """For each row the sum over its bytes of what the table has for them."""
    at = np.arange(bits.shape[1]) * 256
    chunks = range(0, len(bits), 4 * _ROWS)
    return np.concatenate([np.zeros(0), *(of_byte[bits[row : row + 4 * _ROWS] + at].sum(axis=1) for row in chunks)])


def split(spans: Spans, chosen: Ints, closure: Closure, weight: Floats) -> Spans:
    """Some spans cut in two each, at a block: the downsets that hold it, and those that do not; the others unchanged.

    Args:
        spans: some of them; those that are chosen are more than one downset.
        chosen: numbers, ascending.
        closure: of the blocks.
        weight: [blocks], what it is worth to know of a block on which side it is. The block is the one for which the
            lesser of the two gains is the greatest among a few.
    """
    keep = np.ones(spans.size, dtype=np.bool_)
    keep[chosen] = False
    parts = [spans.take(np.flatnonzero(keep))]
    for at in range(0, len(chosen), _ROWS):
        old = spans.take(chosen[at : at + _ROWS])
        old.fresh[:] = False
        blocks = _middle(old, closure, weight)
        parts.append(old._replace(lower=old.lower | closure.before(blocks)))
        parts.append(old._replace(upper=old.upper & ~closure.after(blocks)))
    return Spans(
        np.concatenate([part.lower for part in parts]),
        np.concatenate([part.upper for part in parts]),
        np.concatenate([part.alive for part in parts], axis=1),
        np.concatenate([part.part for part in parts]),
        np.concatenate([part.fresh for part in parts]),
    )


def _middle(spans: Spans, closure: Closure, weight: Floats) -> Ints:
    """For each span the block to cut at."""
    free = spans.upper & ~spans.lower
    columns = np.flatnonzero(free.any(axis=0))
    free = free[:, columns]
    worth = free * weight[columns]
    running = worth.cumsum(axis=1)
    tried = [worth.argmax(axis=1)]
    for quantile in _QUANTILES:
        tried.append(((running >= quantile * running[:, -1:]) & free).argmax(axis=1))
    best = np.full(spans.size, -1.0)
    found: Ints = columns[tried[0]]
    for candidate in tried:
        blocks = columns[candidate]
        with_it = np.einsum("ij,ij->i", worth, closure.before(blocks)[:, columns])
        without = np.einsum("ij,ij->i", worth, closure.after(blocks)[:, columns])
        gain = np.minimum(with_it, without)
        found = np.where(gain > best, blocks, found)
        best = np.maximum(gain, best)
    return found
