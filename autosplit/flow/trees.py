"""The search of Boykov and Kolmogorov: a tree from the source, a tree from the sink, and paths where they meet.

Arc a goes from ``tail[a]`` to ``head[a]``, its residual capacity is ``residual[a]``, and its sister ``a ^ 1`` is the
same arc seen from the other end. Arcs of the terminals are no arcs here: ``surplus[v]`` is what the source can still
send to v, or, below zero, what v can still send to the sink.

The loops below are the hot part of every cut, hence the local names: an attribute costs more than the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

SOURCE_TREE, SINK_TREE = 1, 2
_ROOT, _ORPHAN = -1, -2  # of ``link``, where others have the arc that joins them to their parent


class Arcs(NamedTuple):
    """The arcs by number, and by node those that leave it and those that enter it."""

    head: Sequence[int]
    tail: Sequence[int]
    leaving: Sequence[Sequence[int]]
    entering: Sequence[Sequence[int]]


class Search:
    """One maximum flow. ``residual`` and ``surplus`` are the caller's and are changed in place.

    Attributes:
        value: flow from the source to the sink so far; ``sent`` of it was there before.
        tree: by node SOURCE_TREE, SINK_TREE or 0. After a ``run`` without cutoff the source tree is exactly what the
            source reaches in the residual network, the sink tree exactly what reaches the sink.

    Source: Boykov, Kolmogorov 2004, An experimental comparison of min-cut/max-flow algorithms; the distances and
    time stamps that choose parents are those of Kolmogorov's thesis (2003) and of his code, version 3.
    """

    __slots__ = (
        "active",
        "arcs",
        "distance",
        "link",
        "orphans",
        "queued",
        "residual",
        "stamp",
        "surplus",
        "time",
        "tree",
        "value",
    )

    def __init__(self, arcs: Arcs, residual: list[int], surplus: list[int], sent: int = 0) -> None:
        count = len(surplus)
        self.arcs, self.residual, self.surplus = arcs, residual, surplus
        self.value = sent
        self.tree = [SOURCE_TREE if left > 0 else SINK_TREE if left else 0 for left in surplus]
        self.link = [_ROOT] * count
        self.distance = [1] * count
        self.stamp = [0] * count
        self.time = 0
        self.active = deque(v for v in range(count) if surplus[v])
        self.queued = bytearray(map(bool, surplus))
        self.orphans: deque[int] = deque()

    def run(self, cutoff: int | None = None) -> None:
        """Send flow until no more can be sent, or until ``value`` is at least ``cutoff``.

        O(nodes**2 x arcs x value) at worst (no such case is known from practice).
        """
        active, queued, tree, grow = self.active, self.queued, self.tree, self._grow
        while active and (cutoff is None or self.value < cutoff):
            node = active.popleft()
            queued[node] = 0
            if tree[node]:
                grow(node, cutoff)

    def _grow(self, node: int, cutoff: int | None) -> None:
        """Take the free neighbours of a node into its tree, and send flow where the other tree is met."""
        tree, link, stamp, distance = self.tree, self.link, self.stamp, self.distance
        residual, queued, arcs = self.residual, self.queued, self.arcs
        side = tree[node]
        if side == SOURCE_TREE:
            around, ends = arcs.leaving[node], arcs.head
        else:
            around, ends = arcs.entering[node], arcs.tail
        for arc in around:
            if not residual[arc]:
                continue
            other = ends[arc]
            there = tree[other]
            if there and there != side:
                self._meet(arc, cutoff)
                if tree[node] != side:
                    return
                there = tree[other]
                if not residual[arc]:
                    continue
            if not there:
                tree[other], link[other] = side, arc
                stamp[other], distance[other] = stamp[node], distance[node] + 1
                if not queued[other]:
                    queued[other] = 1
                    self.active.append(other)
            elif there == side and stamp[other] <= stamp[node] and distance[other] > distance[node] + 1:
                link[other], stamp[other], distance[other] = arc, stamp[node], distance[node] + 1

    def _meet(self, bridge: int, cutoff: int | None) -> None:
        """Send flow over an arc from the source tree to the sink tree for as long as it is one."""
        tree, residual = self.tree, self.residual
        start, end = self.arcs.tail[bridge], self.arcs.head[bridge]
        while residual[bridge] and tree[start] == SOURCE_TREE and tree[end] == SINK_TREE:
            if cutoff is not None and self.value >= cutoff:
                return
            self.time += 1
            self._augment(bridge)
            self._adopt()

    def _augment(self, bridge: int) -> None:
        """Send what fits over the path through ``bridge``; nodes whose arc to the parent is full become orphans."""
        head, tail, residual = self.arcs.head, self.arcs.tail, self.residual
        link, surplus, orphans = self.link, self.surplus, self.orphans
        flow = residual[bridge]
        above, first = [], tail[bridge]
        while (arc := link[first]) >= 0:
            above.append(arc)
            if residual[arc] < flow:  # noqa: PLR1730 - a call of min() costs as much as the rest of the loop
                flow = residual[arc]
            first = tail[arc]
        below, last = [], head[bridge]
        while (arc := link[last]) >= 0:
            below.append(arc)
            if residual[arc] < flow:  # noqa: PLR1730 - as above
                flow = residual[arc]
            last = head[arc]
        flow = min(flow, surplus[first], -surplus[last])
        residual[bridge] -= flow
        residual[bridge ^ 1] += flow
        for path, children in ((above, head), (below, tail)):
            for arc in path:
                residual[arc ^ 1] += flow
                left = residual[arc] = residual[arc] - flow
                if not left:
                    link[children[arc]] = _ORPHAN
                    orphans.appendleft(children[arc])
        surplus[first] -= flow
        surplus[last] += flow
        for root in (first, last):
            if not surplus[root]:
                link[root] = _ORPHAN
                orphans.appendleft(root)
        self.value += flow

    def _adopt(self) -> None:
        """Give each orphan a new parent in its tree, or set it free and make orphans of its children."""
        orphans, link, tree, stamp, distance = self.orphans, self.link, self.tree, self.stamp, self.distance
        arcs, time = self.arcs, self.time
        sides = ((arcs.entering, arcs.tail), (arcs.leaving, arcs.head))
        while orphans:
            orphan = orphans.popleft()
            around, ends = sides[tree[orphan] - 1]
            arc, far = self._parent(tree[orphan], around[orphan], ends)
            if arc < 0:
                self._release(orphan, around[orphan], ends)
            else:
                link[orphan], stamp[orphan], distance[orphan] = arc, time, far + 1

    def _parent(self, side: int, around: Sequence[int], ends: Sequence[int]) -> tuple[int, int]:
        """The arc to the neighbour in tree ``side`` that is nearest to its root, and how far that is; else -1."""
        tree, link, stamp, distance = self.tree, self.link, self.stamp, self.distance
        residual, time = self.residual, self.time
        best, least = -1, 0
        for arc in around:
            if not residual[arc] or tree[ends[arc]] != side:
                continue
            node, far = ends[arc], 0
            while stamp[node] != time and (up := link[node]) >= 0:
                node = ends[up]
                far += 1
            if stamp[node] != time:
                if link[node] == _ORPHAN:
                    continue
                stamp[node], distance[node] = time, 1
            far += distance[node]
            if best < 0 or far < least:
                best, least = arc, far
            node = ends[arc]
            while stamp[node] != time:  # what is known to hang on a root is not followed to it again
                stamp[node], distance[node] = time, far
                far -= 1
                node = ends[link[node]]
        return best, least

    def _release(self, orphan: int, around: Sequence[int], ends: Sequence[int]) -> None:
        """Set an orphan free: neighbours of its tree may take it again later, its children are orphans now."""
        tree, link, queued, residual = self.tree, self.link, self.queued, self.residual
        side = tree[orphan]
        for arc in around:
            other = ends[arc]
            if tree[other] != side:
                continue
            if residual[arc] and not queued[other]:
                queued[other] = 1
                self.active.append(other)
            up = link[other]
            if up >= 0 and ends[up] == orphan:
                link[other] = _ORPHAN
                self.orphans.append(other)
        tree[orphan] = 0
