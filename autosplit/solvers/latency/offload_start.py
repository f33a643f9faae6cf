"""First answers for ``offload``: pieces that are runs of a topological order, by dynamic programming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from autosplit.solvers.latency.offload_state import Offer

Ints = npt.NDArray[np.int64]

_MOST_BOUNDARIES = 1200
_NEVER = 2**60


def runs(offer: Offer) -> Iterator[list[int]]:
    """Labels, for each of two orders of the blocks: as numbered, and as late as their readers allow.

    A run on an accelerator takes its load; blocks on the host between two runs take as long as the host alone would
    need to come from one boundary to the other. Exact for chains. O(boundaries^2 * accelerators) for each order.
    """
    for order in (list(range(offer.count)), _late(offer)):
        yield from _runs(offer, order)


def _late(offer: Offer) -> list[int]:
    """Each block right before the first block that reads it, where that is possible."""
    order: list[int] = []
    placed = [False] * offer.count
    before = offer.quotient.before
    for last in range(offer.count):
        if offer.after[last] and last != offer.count - 1:
            continue
        stack = [(last, False)]
        while stack:
            block, opened = stack.pop()
            if placed[block]:
                continue
            if opened:
                placed[block] = True
                order.append(block)
            else:
                stack.append((block, True))
                stack.extend((u, False) for u in reversed(before[block]) if not placed[u])
    return order


def _runs(offer: Offer, order: Sequence[int]) -> Iterator[list[int]]:
    step = -(-offer.count // _MOST_BOUNDARIES)
    ends = np.array([*range(0, offer.count, step), offer.count])
    held = np.array([0, *accumulate(offer.bytes[v] for v in order)])[ends]
    progress = _progress(offer, order)[ends]
    traffic = _traffic(offer, order, ends)
    stages = []
    for label in range(offer.pieces):
        work = np.array([0, *accumulate(offer.work_ns[label][v] for v in order)])[ends]
        load = work[None, :] - work[:, None] + traffic
        fits = held[None, :] - held[:, None] <= offer.capacity[label]
        load = np.where(fits, load, _NEVER) + np.tril(np.full_like(load, _NEVER), -1)
        np.fill_diagonal(load, 0)  # an accelerator without a piece
        stages.append(load)
    for cuts in _paths(progress, stages):
        labels = [offer.host] * offer.count
        for label, a, b in cuts:
            for v in order[ends[a] : ends[b]]:
                labels[v] = label
        yield _whole(offer, labels, follow=True)
        yield _whole(offer, labels, follow=False)


def _progress(offer: Offer, order: Sequence[int]) -> Ints:
    """When the host alone would have done all blocks before each boundary."""
    done = [0] * offer.count
    for v in order:
        done[v] = offer.host_ns[v] + max((done[u] for u in offer.quotient.before[v]), default=0)
    return np.array([0, *accumulate((done[v] for v in order), max)], dtype=np.int64)


def _traffic(offer: Offer, order: Sequence[int], ends: Ints) -> Ints:
    """Transfers of every run, by first and last boundary."""
    position = np.empty(offer.count, dtype=np.int64)
    position[list(order)] = np.arange(offer.count)
    segment = (np.searchsorted(ends, position, side="right") - 1).tolist()
    size = len(ends) + 1
    total = np.zeros((size, size), dtype=np.int64)
    for wire in offer.quotient.wires:
        made = segment[wire.producer]
        reads = sorted({segment[r] for r in wire.readers} - {made})
        before = made
        for read in reads:
            total[before + 1, read + 1] += wire.cost
            total[read + 1, read + 1] -= wire.cost
            before = read
        if reads and offer.fleet.sender_pays:
            total[0, made + 1] += wire.cost
            total[0, reads[-1] + 1] -= wire.cost
            total[made + 1, made + 1] -= wire.cost
            total[made + 1, reads[-1] + 1] += wire.cost
    summed: Ints = total.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
    return summed


def _paths(progress: Ints, stages: Sequence[Ints]) -> Iterator[list[tuple[int, int, int]]]:
    """(label, first, last boundary) of the runs, for each number of accelerators used, in their order."""
    best = progress.copy()
    history: list[tuple[Ints, Ints]] = []
    for stage in stages:
        through = best[:, None] + stage
        source = through.argmin(axis=0)
        ended = np.minimum(through.min(axis=0), _NEVER)
        # afterwards the host goes on from the best end
        since = _least_so_far(ended - progress)
        best = ended[since] + progress - progress[since]
        history.append((source, since))
        yield _back(history)


def _least_so_far(values: Ints) -> Ints:
    """For each place the first place up to it that has the least value."""
    running = np.minimum.accumulate(values)
    fresh = np.concatenate([[True], running[1:] < running[:-1]])
    found: Ints = np.maximum.accumulate(np.where(fresh, np.arange(len(values)), 0))
    return found


def _back(history: Sequence[tuple[Ints, Ints]]) -> list[tuple[int, int, int]]:
    cuts = []
    at = len(history[0][0]) - 1
    for label in range(len(history) - 1, -1, -1):
        source, since = history[label]
        end = int(since[at])
        at = int(source[end])
        if at < end:
            cuts.append((label, at, end))
    return cuts


def _whole(offer: Offer, found: Sequence[int], *, follow: bool) -> list[int]:
    """Units that lie in several runs follow their longest block, or go to the host; as do those not allowed there."""
    labels = list(found)
    for unit, blocks in enumerate(offer.units):
        label = labels[max(blocks, key=lambda block: offer.host_ns[block])]
        if len({labels[block] for block in blocks}) > 1 and not follow:
            label = offer.host
        if not offer.allowed[label][unit]:
            label = offer.host
        for block in blocks:
            labels[block] = label
    return labels
