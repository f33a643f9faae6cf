"""Min cuts over networkx: the cheapest boundary between two stages, and the exact cut for two devices.

A tensor is one arc (or one auxiliary node), because it is sent once however many nodes read it. Capacities are
integers and an arc without a capacity is infinite. Side S is the source's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov

from autosplit.solvers.problem import Problem
from autosplit.solvers.quotient import Quotient, Wire

_SOURCE, _SINK = -1, -2


class _Flow:
    """A flow network whose parallel arcs add up."""

    def __init__(self) -> None:
        self.net: nx.DiGraph[int] = nx.DiGraph()
        self.net.add_nodes_from((_SOURCE, _SINK))
        self._auxiliary = _SINK

    def arc(self, u: int, v: int, capacity: int) -> None:
        """Pay ``capacity`` when u is on side S and v is not."""
        if capacity <= 0:
            return
        if self.net.has_edge(u, v):
            arc = self.net.edges[u, v]
            if "capacity" in arc:
                arc["capacity"] += capacity
        else:
            self.net.add_edge(u, v, capacity=capacity)

    def tie(self, u: int, v: int) -> None:
        """Never u on side S without v."""
        if u == v:
            return
        self.net.add_edge(u, v)
        self.net.edges[u, v].pop("capacity", None)

    def auxiliary(self) -> int:
        """A new node of no meaning of its own."""
        self._auxiliary -= 1
        return self._auxiliary

    def cut(self) -> tuple[int, set[int]]:
        """The least cut and its side S."""
        flow: Any = boykov_kolmogorov
        value, (inside, _) = nx.minimum_cut(self.net, _SOURCE, _SINK, flow_func=flow)
        return int(value), set(inside)


def boundary_cut(
    wires: Iterable[Wire], forced_in: set[int], forced_out: set[int], together: Sequence[Sequence[int]] = ()
) -> tuple[int, set[int]]:
    """The cheapest set of nodes that is closed under predecessors.

    Args:
        wires: the tensors; a wire that costs nothing still orders its ends.
        forced_in: nodes that must be in the set; closed under predecessors.
        forced_out: nodes that must not be; closed under successors, apart from ``forced_in``.
        together: groups of nodes that must be on one side.

    Returns:
        The total cost of the wires from inside to outside, and the nodes inside, ``forced_in`` included.
        Exact; one maximum flow over the free nodes.

    Source: closure by infinite arcs (Picard 1976); one auxiliary node per tensor (Lawler 1973).

    >>> boundary_cut([Wire(9, 0, (1, 2)), Wire(2, 1, (3,)), Wire(2, 2, (3,))], {0}, {3})
    (4, {0, 1, 2})
    """
    flow = _Flow()

    def where(node: int) -> int:
        return _SOURCE if node in forced_in else _SINK if node in forced_out else node

    constant = 0
    for wire in wires:
        producer = where(wire.producer)
        readers = list(dict.fromkeys(map(where, wire.readers)))
        for reader in readers:
            if reader != _SINK and producer != _SOURCE:
                flow.tie(reader, producer)
        if _SINK in readers and producer == _SOURCE:
            constant += wire.cost
        elif producer != _SINK:
            _pay(flow, wire.cost, producer, [reader for reader in readers if reader != _SOURCE])
    for group in together:
        ends = list(dict.fromkeys(map(where, group)))
        for a, b in zip(ends, ends[1:] + ends[:1], strict=True):
            flow.tie(a, b)
    value, inside = flow.cut()
    return value + constant, {node for node in inside if node >= 0} | forced_in


def cheapest_boundary(quotient: Quotient, forced_in: set[int], forced_out: set[int]) -> set[int]:
    """The downset that is cheapest to cut off, gradients counted like any other tensor.

    Args:
        quotient: the blocks.
        forced_in: blocks that must be in it; closed under predecessors.
        forced_out: blocks that must not be; closed under successors.

    Returns:
        Its blocks. Exact; one maximum flow over the blocks in between.

    >>> wires = [(9, 0, [1, 2]), (2, 1, [3]), (2, 2, [3])]
    >>> cheapest_boundary(Quotient.of_numbers([[1, 1, 1, 1]], wires), {0}, {3})
    {0, 1, 2}
    """
    flow = _Flow()

    def where(block: int) -> int:
        return _SOURCE if block in forced_in else _SINK if block in forced_out else block

    free = [block for block in range(len(quotient)) if where(block) == block]
    for block in free:
        for other in quotient.before[block]:
            if other not in forced_in:
                flow.tie(block, other)
    for number in dict.fromkeys(number for block in free for number in quotient.touching[block]):
        cost, made, read_by = quotient.wires[number]
        producer, readers = where(made), list(dict.fromkeys(map(where, read_by)))
        _pay(flow, cost, producer, [reader for reader in readers if reader != _SOURCE])
        if not all(made in quotient.before[reader] for reader in read_by):
            _pay_back(flow, cost, producer, [reader for reader in readers if reader != _SINK])
    _, inside = flow.cut()
    return {block for block in inside if block >= 0} | forced_in


def _pay(flow: _Flow, cost: int, producer: int, readers: Sequence[int]) -> None:
    """Pay ``cost`` once when the producer is on side S and some reader is not."""
    if producer == _SINK or (producer == _SOURCE and _SINK in readers):
        return
    if _SINK in readers:
        flow.arc(producer, _SINK, cost)
    elif len(readers) == 1:
        flow.arc(producer, readers[0], cost)
    elif readers and cost > 0:
        auxiliary = flow.auxiliary()
        flow.arc(producer, auxiliary, cost)
        for reader in readers:
            flow.tie(auxiliary, reader)


def _pay_back(flow: _Flow, cost: int, producer: int, readers: Sequence[int]) -> None:
    """Pay ``cost`` once when the producer is not on side S and some reader is."""
    if producer == _SOURCE or (producer == _SINK and _SOURCE in readers):
        return
    if _SOURCE in readers:
        flow.arc(_SOURCE, producer, cost)
    elif len(readers) == 1:
        flow.arc(readers[0], producer, cost)
    elif readers and cost > 0:
        auxiliary = flow.auxiliary()
        flow.arc(auxiliary, producer, cost)
        for reader in readers:
            flow.tie(reader, auxiliary)


def two_device_cut(problem: Problem) -> tuple[int, list[int]]:
    """The fastest placement on two devices when memory does not matter.

    Args:
        problem: with two devices; its capacities are not looked at.

    Returns:
        The latency in ns, the least of all placements, and the labels. Exact; one maximum flow.

    Source: Stone 1977, Multiprocessor scheduling with the aid of network flow algorithms; a transfer is paid once per
    tensor, and the device that inputs and outputs use is a terminal.
    """
    flow, judge = _Flow(), problem.judge
    ends = {0: _SOURCE, 1: _SINK}
    unary = judge.node_ns if judge.io in ends else problem.unary_ns
    for i in range(problem.n):
        flow.arc(_SOURCE, i, unary[1][i])
        flow.arc(i, _SINK, unary[0][i])
    for bundle, devices in zip(problem.bundles, problem.bundle_devices, strict=True):
        for a, b in zip(bundle, bundle[1:] + bundle[:1], strict=True):
            flow.tie(a, b)
        if devices == [0]:
            flow.tie(_SOURCE, bundle[0])
        elif devices == [1]:
            flow.tie(bundle[0], _SINK)
    for item in judge.items:
        to_b, to_a = judge.move_ns(item, 0, 1), judge.move_ns(item, 1, 0)
        readers = list(item.readers)
        if item.input and judge.io in ends:
            _pay_from_io(flow, ends[judge.io], to_b if judge.io == 0 else to_a, [item.producer, *readers])
            continue
        if item.output and judge.io in ends:
            readers.append(ends[judge.io])
        _pay(flow, to_b, item.producer, [reader for reader in readers if reader != _SOURCE])
        _pay_back(flow, to_a, item.producer, [reader for reader in readers if reader != _SINK])
    value, inside = flow.cut()
    return value, [0 if i in inside else 1 for i in range(problem.n)]


def _pay_from_io(flow: _Flow, terminal: int, cost: int, readers: Sequence[int]) -> None:
    """An input that arrives on one of the two devices is sent when anyone on the other reads it."""
    if terminal == _SOURCE:
        _pay(flow, cost, _SOURCE, readers)
    else:
        _pay_back(flow, cost, _SINK, readers)
