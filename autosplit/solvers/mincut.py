"""Min cuts: the cheapest boundary between two stages, and the exact cut for two devices.

A tensor is one arc (or one auxiliary node), because it is sent once however many nodes read it. Capacities are
integers and an arc of capacity None is infinite. Side S is the source's; of several cuts the one with the largest S is
taken.

The networks are ``autosplit.flow``'s. networkx's dispatch finds the same cut, but only in an environment where this
package is installed as a distribution, so it is not asked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autosplit.flow import SINK, SOURCE, FlowNetwork
from autosplit.solvers.blocks.quotient import Quotient, Wire
from autosplit.solvers.problem import Problem


class _Ends(dict[int, int]):
    """Where a node is in the network: at a terminal, or a node of its own, made when it is first asked for."""

    def __init__(self, flow: FlowNetwork, forced_in: set[int], forced_out: set[int]) -> None:
        self._flow, self._forced_in, self._forced_out = flow, forced_in, forced_out

    def __missing__(self, node: int) -> int:
        if node in self._forced_in:
            return SOURCE
        if node in self._forced_out:
            return SINK
        self[node] = self._flow.add_node()
        return self[node]


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
    flow = FlowNetwork()
    where = _Ends(flow, forced_in, forced_out)
    constant = 0
    for wire in wires:
        producer = where[wire.producer]
        readers = list(dict.fromkeys(map(where.__getitem__, wire.readers)))
        for reader in readers:
            if reader != SINK and producer != SOURCE:
                flow.add_arc(reader, producer, None)
        if SINK in readers and producer == SOURCE:
            constant += wire.cost
        elif producer != SINK:
            _pay(flow, wire.cost, producer, [reader for reader in readers if reader != SOURCE])
    for group in together:
        ends = list(dict.fromkeys(map(where.__getitem__, group)))
        for a, b in zip(ends, ends[1:] + ends[:1], strict=True):
            flow.add_arc(a, b, None)
    value, inside = flow.minimum_cut(largest=True)
    return value + constant, {node for node, number in where.items() if number in inside} | forced_in


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
    flow = FlowNetwork()
    where = _Ends(flow, forced_in, forced_out)
    free = [block for block in range(len(quotient)) if where[block] not in (SOURCE, SINK)]
    for block in free:
        for other in quotient.before[block]:
            if other not in forced_in:
                flow.add_arc(where[block], where[other], None)
    for number in dict.fromkeys(number for block in free for number in quotient.touching[block]):
        cost, made, read_by = quotient.wires[number]
        producer, readers = where[made], list(dict.fromkeys(where[reader] for reader in read_by))
        _pay(flow, cost, producer, [reader for reader in readers if reader != SOURCE])
        if not all(made in quotient.before[reader] for reader in read_by):
            _pay_back(flow, cost, producer, [reader for reader in readers if reader != SINK])
    _, inside = flow.minimum_cut(largest=True)
    return {block for block in free if where[block] in inside} | forced_in


def _pay(flow: FlowNetwork, cost: int, producer: int, readers: Sequence[int]) -> None:
    """Pay ``cost`` once when the producer is on side S and some reader is not."""
    if producer == SINK or (producer == SOURCE and SINK in readers):
        return
    if SINK in readers:
        flow.add_arc(producer, SINK, cost)
    elif len(readers) == 1:
        flow.add_arc(producer, readers[0], cost)
    elif readers and cost > 0:
        auxiliary = flow.add_node()
        flow.add_arc(producer, auxiliary, cost)
        for reader in readers:
            flow.add_arc(auxiliary, reader, None)


def _pay_back(flow: FlowNetwork, cost: int, producer: int, readers: Sequence[int]) -> None:
    """Pay ``cost`` once when the producer is not on side S and some reader is."""
    if producer == SOURCE or (producer == SINK and SOURCE in readers):
        return
    if SOURCE in readers:
        flow.add_arc(SOURCE, producer, cost)
    elif len(readers) == 1:
        flow.add_arc(readers[0], producer, cost)
    elif readers and cost > 0:
        auxiliary = flow.add_node()
        flow.add_arc(auxiliary, producer, cost)
        for reader in readers:
            flow.add_arc(reader, auxiliary, None)


def two_device_cut(problem: Problem) -> tuple[int, list[int]]:
    """The placement on two devices with the least work and transfers in all, when memory does not matter.

    Where nothing runs side by side (``Problem.is_serial``) that is the fastest one.

    Args:
        problem: with two devices; its capacities are not looked at.

    Returns:
        Its sum in ns, the least of all placements, and the labels. Exact; one maximum flow.

    Source: Stone 1977, Multiprocessor scheduling with the aid of network flow algorithms; a transfer is paid once per
    tensor, and the device that inputs and outputs use is a terminal.
    """
    flow, judge = FlowNetwork(problem.n), problem.judge
    ends = {0: SOURCE, 1: SINK}
    unary = judge.node_ns if judge.io in ends else problem.unary_ns
    for i in range(problem.n):
        flow.add_arc(SOURCE, i, unary[1][i])
        flow.add_arc(i, SINK, unary[0][i])
    for bundle, devices in zip(problem.bundles, problem.bundle_devices, strict=True):
        for a, b in zip(bundle, bundle[1:] + bundle[:1], strict=True):
            flow.add_arc(a, b, None)
        if len(devices) == 1:
            flow.add_arc(*((SOURCE, bundle[0]) if devices == [0] else (bundle[0], SINK)), None)
    for item in judge.items:
        to_b, to_a = judge.move_ns(item, 0, 1), judge.move_ns(item, 1, 0)
        readers = list(item.readers)
        if item.input and judge.io in ends:
            _pay_from_io(flow, ends[judge.io], to_b if judge.io == 0 else to_a, [item.producer, *readers])
            continue
        if item.output and judge.io in ends:
            readers.append(ends[judge.io])
        _pay(flow, to_b, item.producer, [reader for reader in readers if reader != SOURCE])
        _pay_back(flow, to_a, item.producer, [reader for reader in readers if reader != SINK])
    value, inside = flow.minimum_cut(largest=True)
    return value, [0 if i in inside else 1 for i in range(problem.n)]


def _pay_from_io(flow: FlowNetwork, terminal: int, cost: int, readers: Sequence[int]) -> None:
    """An input that arrives on one of the two devices is sent when anyone on the other reads it."""
    if terminal == SOURCE:
        _pay(flow, cost, SOURCE, readers)
    else:
        _pay_back(flow, cost, SINK, readers)
