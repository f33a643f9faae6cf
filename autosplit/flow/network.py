"""A flow network in flat lists, its minimum cut and its maximum flow."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import networkx as nx

from autosplit.flow.trees import SINK_TREE, SOURCE_TREE, Arcs, Search

SOURCE, SINK = -1, -2
"""The terminals, as ends of an arc; they are not among the nodes."""


class FlowNetwork:
    """Arcs with capacities between nodes 0 to n-1 and the two terminals.

    Capacities are integers of any size, None is infinite; arcs between the same nodes add up. It is a graph to
    networkx: ``nx.minimum_cut(network, SOURCE, SINK)`` is dispatched to it where autosplit is installed.

    >>> network = FlowNetwork(2)
    >>> network.add_arc(SOURCE, 0, 9)
    >>> network.add_arc(0, 1, 4, back=1)
    >>> network.add_arc(1, SINK, None)
    >>> network.minimum_cut()
    (4, {0})
    """

    __networkx_backend__ = "autosplit"

    def __init__(self, nodes: int = 0) -> None:
        self._head: list[int] = []
        self._tail: list[int] = []
        self._capacity: list[int | None] = []
        self._leaving: list[list[int]] = []
        self._entering: list[list[int]] = []
        self._arc_to: list[dict[int, int]] = []  # by lesser end: the arc to the greater one
        self._supply: dict[int, int | None] = {}
        self._demand: dict[int, int | None] = {}
        self._across: int | None = 0  # from the source straight to the sink
        self._finite = 0  # sum of all finite capacities ever added
        for _ in range(nodes):
            self.add_node()

    def __len__(self) -> int:
        return len(self._leaving)

    def __contains__(self, node: object) -> bool:
        return isinstance(node, int) and (0 <= node < len(self) or node in (SOURCE, SINK))

    def is_directed(self) -> bool:
        """True, as networkx asks."""
        return True

    def is_multigraph(self) -> bool:
        """False, as networkx asks: parallel arcs add up."""
        return False

    def add_node(self) -> int:
        """Add the next node and return it."""
        self._leaving.append([])
        self._entering.append([])
        self._arc_to.append({})
        return len(self._leaving) - 1

    def add_arc(self, u: int, v: int, capacity: int | None, back: int | None = 0) -> None:
        """Pay ``capacity`` when u is on the source's side and v is not, ``back`` when v is and u is not.

        Args:
            u: a node, SOURCE or SINK.
            v: another; an arc from a node to itself is never paid.
            capacity: not below zero; None when the two may never be parted so.
            back: the same from v to u. Into the source and out of the sink nothing is ever paid.

        Raises:
            NetworkXError: a node is unknown, or a capacity is negative or no integer.
        """
        if capacity.__class__ is not int or capacity < 0:
            capacity = _checked(capacity, u, v)
        if back and (back.__class__ is not int or back < 0):
            back = _checked(back, v, u)
        if u > v:
            u, v, capacity, back = v, u, back, capacity
        if u < 0 or v >= len(self._leaving):
            self._add_terminal_arc(u, v, capacity, back)
        elif u != v and (capacity != 0 or back != 0):
            arc = self._arc_to[u].get(v)
            if arc is None:
                self._add_pair(u, v, capacity, back)
            else:
                self._capacity[arc] = self._sum(self._capacity[arc], capacity)
                self._capacity[arc + 1] = self._sum(self._capacity[arc + 1], back)

    def _add_pair(self, u: int, v: int, capacity: int | None, back: int | None) -> None:
        arc = len(self._head)
        self._arc_to[u][v] = arc
        self._head += (v, u)
        self._tail += (u, v)
        self._capacity += (capacity, back)
        self._finite += (capacity or 0) + (back or 0)
        self._leaving[u].append(arc)
        self._entering[v].append(arc)
        self._leaving[v].append(arc + 1)
        self._entering[u].append(arc + 1)

    def _add_terminal_arc(self, u: int, v: int, capacity: int | None, back: int | None) -> None:
        """Keep what leaves the source or enters the sink; u is not above v."""
        if u < SINK or v >= len(self):
            wrong = u if u < SINK else v
            raise nx.NetworkXError(f"arc {u}, {v}: no node {wrong}, there are 0 to {len(self) - 1}; use add_node()")
        if u == v:
            return
        if v == SOURCE:
            self._across = self._sum(self._across, back)
        elif u == SOURCE:
            self._supply[v] = self._sum(self._supply.get(v, 0), capacity)
        else:
            self._demand[v] = self._sum(self._demand.get(v, 0), back)

    def _sum(self, a: int | None, b: int | None) -> int | None:
        """Capacity of two arcs between the same ends, of which b is new."""
        if a is None or b is None:
            return None
        self._finite += b
        return a + b

    def arcs(self) -> Iterator[tuple[int, int, int | None]]:
        """All arcs (u, v, capacity) that have a capacity, each pair of ends once; terminals' first."""
        if self._across != 0:
            yield SOURCE, SINK, self._across
        yield from ((SOURCE, v, capacity) for v, capacity in self._supply.items() if capacity != 0)
        yield from ((v, SINK, capacity) for v, capacity in self._demand.items() if capacity != 0)
        for u, v, capacity in zip(self._tail, self._head, self._capacity, strict=True):
            if capacity != 0:
                yield u, v, capacity

    def minimum_cut(self, *, largest: bool = False) -> tuple[int, set[int]]:
        """The least that can be paid to part the source from the sink.

        Args:
            largest: of all minimum cuts take the one with the greatest source side, not the least. Both exist, and
                neither depends on the order in which arcs were added.

        Returns:
            The sum of the capacities from the source's side to the other, and the nodes on the source's side,
            without the terminals. Exact.

        Raises:
            NetworkXUnbounded: a path of infinite capacity joins the terminals.

        Complexity: O(nodes**2 x arcs x value) at worst; on windows of a DAG about linear, on whole DAGs more.
        Source: Boykov, Kolmogorov 2004 (``autosplit.flow.trees``).
        """
        search = self._solve()[0]
        if largest:
            return search.value, {node for node, tree in enumerate(search.tree) if tree != SINK_TREE}
        return search.value, {node for node, tree in enumerate(search.tree) if tree == SOURCE_TREE}

    def maximum_flow(self, *, cutoff: int | None = None) -> tuple[int, list[tuple[int, int, int]]]:
        """The greatest flow, or the first found of at least ``cutoff``.

        Returns:
            The value, and the arcs (u, v, flow) with flow above zero, net of the flow from v to u.

        Raises:
            NetworkXUnbounded: a path of infinite capacity joins the terminals.
        """
        search, capacity, supply, demand = self._solve(cutoff)
        flows = [(SOURCE, SINK, self._across or 0)]
        for node in dict.fromkeys([*supply, *demand]):
            left = search.surplus[node]
            flows.append((SOURCE, node, supply.get(node, 0) - max(left, 0)))
            flows.append((node, SINK, demand.get(node, 0) + min(left, 0)))
        for arc in range(0, len(capacity), 2):
            sent, u, v = capacity[arc] - search.residual[arc], self._tail[arc], self._head[arc]
            flows.append((u, v, sent) if sent > 0 else (v, u, -sent))
        return search.value, [flow for flow in flows if flow[2]]

    def _solve(self, cutoff: int | None = None) -> tuple[Search, list[int], dict[int, int], dict[int, int]]:
        """The finished search, and what capacities it was given: of arcs, from the source, to the sink."""
        infinite = self._finite + 1  # no finite cut costs so much, and no finite flow fills an arc of it
        capacity = [infinite if c is None else c for c in self._capacity]
        supply = {node: infinite if c is None else c for node, c in self._supply.items()}
        demand = {node: infinite if c is None else c for node, c in self._demand.items()}
        surplus = [0] * len(self)
        for node, most in supply.items():
            surplus[node] = most
        sent = infinite if self._across is None else self._across
        for node, most in demand.items():
            sent += min(surplus[node], most)
            surplus[node] -= most
        search = Search(Arcs(self._head, self._tail, self._leaving, self._entering), capacity[:], surplus, sent)
        search.run(cutoff)
        if search.value >= infinite:
            raise nx.NetworkXUnbounded("Infinite capacity path, flow unbounded above.")
        return search, capacity, supply, demand


def _checked(capacity: Any, u: int, v: int) -> int | None:
    """The capacity as an integer of Python, or None."""
    if capacity is None:
        return None
    try:
        whole = operator.index(capacity)
    except TypeError:
        raise nx.NetworkXError(
            f"arc {u}, {v}: capacity {capacity!r} is no integer; scale all capacities to integers"
        ) from None
    if whole < 0:
        raise nx.NetworkXError(f"arc {u}, {v}: capacity {whole} is below zero; a minimum cut pays no less than 0")
    return whole
