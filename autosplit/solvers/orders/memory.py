"""Memory of every stage of a layout, for the chain DP. The judge has the last word on each result.

The order of the layout is taken as time. In program order the figures are those of ``estimate.peak_bytes``, save that
a copy of a tensor that skips over a stage is taken to stay to the tensor's last reader anywhere, that all readers of a
shared weight are taken to be in its stage, and that what arrives from or returns to ``io_device`` is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autosplit.estimate.judge import Item, Judge

Ints = npt.NDArray[np.int64]


class _Made(NamedTuple):
    """Storages that a stage makes: one row each, sorted by ``born``. In ``end`` and ``kept`` n means to the end."""

    born: Ints
    end: Ints  # last forward slot
    kept: Ints  # first saver, whose backward frees it; n + 1 when nothing keeps it
    size: Ints


class _Arrival(NamedTuple):
    """Copies: a stage that starts after ``after`` and not after ``first`` reads the tensor at ``first``."""

    after: Ints
    first: Ints
    end: Ints
    size: Ints
    saved: Ints  # 1 when a later reader saves it
    last: Ints  # last reader, where its gradient begins; -1 when it has none


class _Gradient(NamedTuple):
    """Gradients of activations that a stage makes, held in the backwards from ``last`` down to ``born``."""

    born: Ints
    last: Ints
    size: Ints


def stage_bytes(judge: Judge, position: Ints, cuts: Ints, pinned: set[int]) -> Ints:
    """Peak bytes of each stage by (first boundary, last boundary). O(cuts * (nodes + reads)), in numpy.

    Args:
        judge: the compiled graph.
        position: place of each node in the layout.
        cuts: boundaries, sorted, from 0 to n.
        pinned: nodes that are in no stage.
    """
    n, place = judge.n, [int(p) for p in position]
    free = [item for item in judge.items if item.producer not in pinned]
    weights = [item for item in free if item.weight]
    forever = _prefix(n, ((place[w.producer], w.bytes + w.state * judge.train) for w in _once(weights)))
    forever += _prefix(n, ((place[i], judge.fixed[i] + judge.stash[i]) for i in range(n) if i not in pinned))
    update, grads = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=np.int64)
    if judge.train:
        update = _prefix(n, ((place[w.producer], w.step) for w in weights))
        grads = _prefix(n, ((_last(w, place, pinned), w.copy) for w in weights if w.grad))
    made = _storages(judge, free, place, pinned)
    arrivals = _arrivals(judge, free, place, pinned)
    gradients = _gradients(judge, free, place, pinned)
    workspace = np.zeros(n, dtype=np.int64)
    workspace[position] = [0 if i in pinned else size for i, size in enumerate(judge.workspace)]
    rows = np.zeros((len(cuts), len(cuts)), dtype=np.int64)
    for r, start in enumerate(cuts[:-1].tolist()):
        ends = cuts[r + 1 :]
        forward, backward = _live(start, made, arrivals, gradients, workspace)
        peak = np.maximum.accumulate(forward[start:])[ends - start - 1]
        if judge.train:
            behind = np.maximum.accumulate((backward - grads[:-1])[start:])[ends - start - 1] + grads[ends]
            step = grads[ends] - grads[start] + update[ends] - update[start]
            peak = np.maximum(np.maximum(peak, behind), step)
        rows[r, r + 1 :] = forever[ends] - forever[start] + peak
    return rows


def _live(start: int, made: _Made, arrivals: _Arrival, gradients: _Gradient, workspace: Ints) -> tuple[Ints, Ints]:
    """Bytes held in the forward and in the backward of each node, for a stage that begins at ``start``."""
    n = len(workspace)
    forward, backward = np.zeros(n + 2, dtype=np.int64), np.zeros(n + 2, dtype=np.int64)
    mine = made.born >= start
    _span(forward, made.born[mine], np.where(made.kept[mine] <= n, n, made.end[mine]), made.size[mine])
    _span(backward, made.kept[mine], n, made.size[mine])
    here = (arrivals.after < start) & (start <= arrivals.first)
    saved = here & (arrivals.saved == 1)
    _span(
        forward, arrivals.first[here], np.where(arrivals.saved[here] == 1, n, arrivals.end[here]), arrivals.size[here]
    )
    _span(backward, arrivals.first[saved], n, arrivals.size[saved])
    returned = here & (arrivals.last >= 0)
    _span(backward, arrivals.first[returned], arrivals.last[returned], arrivals.size[returned])
    ours = gradients.born >= start
    _span(backward, gradients.born[ours], gradients.last[ours], gradients.size[ours])
    return forward.cumsum()[:n] + workspace, backward.cumsum()[:n] + workspace


def _span(delta: Ints, first: Ints, last: Ints | int, size: Ints) -> None:
    """Add ``size`` from ``first`` to ``last``, both included, to a difference array."""
    limit = len(delta)
    ends = np.minimum(np.broadcast_to(np.asarray(last) + 1, first.shape), limit - 1)
    delta += np.bincount(np.minimum(first, limit - 1), weights=size, minlength=limit).astype(np.int64)
    delta -= np.bincount(np.maximum(ends, np.minimum(first, limit - 1)), weights=size, minlength=limit).astype(np.int64)


def _prefix(n: int, sizes: Iterable[tuple[int, int]]) -> Ints:
    at = np.zeros(n, dtype=np.int64)
    for place, size in sizes:
        at[place] += size
    return np.concatenate([np.zeros(1, dtype=np.int64), at.cumsum()])


def _once(weights: Iterable[Item]) -> list[Item]:
    """One weight of each storage."""
    return list({weight.storage: weight for weight in weights}.values())


def _last(item: Item, place: list[int], pinned: set[int]) -> int:
    return max(place[i] for i in (item.producer, *item.readers) if i == item.producer or i not in pinned)


def _storages(judge: Judge, items: list[Item], place: list[int], pinned: set[int]) -> _Made:
    n = judge.n
    weights = {item.storage for item in judge.items if item.weight}
    rows: dict[int, list[int]] = {}
    for item in items:
        if item.storage in weights:
            continue
        row = rows.setdefault(item.storage, [place[item.producer], 0, n + 1, item.bytes])
        row[0] = min(row[0], place[item.producer])
        row[1] = max(row[1], n if item.output else _last(item, place, pinned))
        if item.output:
            row[2] = min(row[2], place[item.producer])
        elif judge.train:
            row[2] = min([row[2], *(place[s] for s in item.savers if s not in pinned)])
    return _Made(*_columns(sorted(rows.values()), 4))


def _arrivals(judge: Judge, items: list[Item], place: list[int], pinned: set[int]) -> _Arrival:
    rows = []
    for item in items:
        reads = sorted(place[reader] for reader in item.readers if reader not in pinned)
        before = place[item.producer]
        saves = max((place[s] for s in item.savers if s not in pinned), default=-1) if judge.train else -1
        for read in reads:
            last = reads[-1] if judge.train and item.grad else -1
            rows.append([before, read, reads[-1], item.copy, int(saves >= read), last])
            before = read
    return _Arrival(*_columns(rows, 6))


def _gradients(judge: Judge, items: list[Item], place: list[int], pinned: set[int]) -> _Gradient:
    rows = []
    for item in items:
        if judge.train and item.grad and not item.weight and (item.readers or item.output):
            last = judge.n if item.output else _last(item, place, pinned)
            rows.append([place[item.producer], last, item.copy])
    return _Gradient(*_columns(rows, 3))


def _columns(rows: list[list[int]], width: int) -> list[Ints]:
    return list(np.array(rows, dtype=np.int64).reshape(-1, width).T)
