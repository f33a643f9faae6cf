"""From a problem to blocks: the quotient and the fleet that the stage solvers work on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import networkx as nx
import numpy as np

from autosplit.device import HOST
from autosplit.errors import GraphError
from autosplit.estimate.judge import Item
from autosplit.solvers.blocks.fleet import Fleet, Kind
from autosplit.solvers.blocks.quotient import Ints, Quotient, Recomputed, Wire
from autosplit.solvers.bounds import bundle_needs
from autosplit.solvers.problem import Problem
from autosplit.solvers.stages.line import Flight

_MOST_NS = 2**60


class Blocks(NamedTuple):
    """A problem in blocks.

    Attributes:
        quotient: the blocks; their times, transfers and bytes are never above those of the problem.
        fleet: the devices.
        flight: micro-batches in flight.
        is_exact: whether loads are those of the problem, and not below it.
        is_exact_in_bytes: likewise for the bytes.
    """

    quotient: Quotient
    fleet: Fleet
    flight: Flight
    is_exact: bool
    is_exact_in_bytes: bool

    def labels(self, by_block: Sequence[int]) -> list[int]:
        """Device by node, from device by block."""
        labels = [0] * sum(map(len, self.quotient.members))
        for members, device in zip(self.quotient.members, by_block, strict=True):
            for node in members:
                labels[node] = device
        return labels


def blocks_of(problem: Problem, *, ordered: bool, loose: Iterable[tuple[int, ...]] = ()) -> Blocks:
    """The problem in blocks.

    Args:
        problem: what to solve.
        ordered: for contiguous stages: blocks that are on a cycle through groups become one, and numbers are in a
            topological order.
        loose: groups that need not be contiguous: they are taken to be in the first stage, whatever they read.

    Returns:
        O(nodes + reads), with a search for cycles when there are groups.
    """
    bundles = [tuple(bundle) for bundle in problem.bundles]
    before: list[set[int]] = [set() for _ in bundles]
    if ordered:
        bundles, before = _acyclic(problem, bundles, frozenset(loose))
    return _compiled(problem, bundles, before)


def _compiled(problem: Problem, bundles: list[tuple[int, ...]], before: list[set[int]]) -> Blocks:
    block_of = {node: b for b, bundle in enumerate(bundles) for node in bundle}
    kinds = _kinds(problem)
    wires, exact = _wires(problem, block_of)
    unary, paid = _unary(problem, kinds)
    fixed, stash, exact_bytes = _bytes(problem, block_of, len(bundles))
    quotient = Quotient(
        before=tuple(tuple(sorted(others)) for others in before),
        wires=wires,
        work_ns=np.array([_by_block(times, bundles) for times in unary], dtype=np.int64),
        fixed_bytes=np.array(fixed, dtype=np.int64),
        stash_bytes=np.array(stash, dtype=np.int64),
        allowed=_allowed(problem, kinds, bundles),
        members=tuple(bundles),
    )
    quotient = replace(quotient, gradient_ns=_gradient_ns(problem, kinds, block_of, len(bundles)))
    quotient = replace(quotient, recomputed=_recomputed(problem, kinds, quotient))
    model = problem.judge.model
    fleet = Fleet(kinds, sender_pays=model.transfers != "receiver", overlap=model.overlap)
    flight = Flight(model.microbatches, all_at_once=model.schedule == "gpipe")
    return Blocks(quotient, fleet, flight, exact and paid, exact_bytes)


def nodes_of(problem: Problem) -> Blocks:
    """The problem in blocks of one node each, whatever stays together. ``before`` is everything that a node reads."""
    count = problem.n
    bundles: list[tuple[int, ...]] = [(i,) for i in range(count)]
    before: list[set[int]] = [set() for _ in bundles]
    for item in problem.judge.items:
        for reader in item.readers:
            before[reader].add(item.producer)
    return _compiled(problem, bundles, before)


def _by_block(times: Sequence[int], bundles: Iterable[Sequence[int]]) -> list[int]:
    return [sum(times[node] for node in bundle) for bundle in bundles]


def _kinds(problem: Problem) -> tuple[Kind, ...]:
    judge, devices = problem.judge, range(problem.k)
    through_host = judge.model.transfers == "host"
    return tuple(
        Kind(
            tuple(d for d in devices if problem.classes[d] == first),
            problem.capacity[first],
            pays=not (through_host and judge.is_host[first]),
        )
        for first in dict.fromkeys(problem.classes)
    )


def _acyclic(
    problem: Problem, bundles: list[tuple[int, ...]], loose: frozenset[tuple[int, ...]]
) -> tuple[list[tuple[int, ...]], list[set[int]]]:
    """Blocks in a topological order, bundles on a cycle merged, and what comes before each."""
    bundle_of = {node: b for b, bundle in enumerate(bundles) for node in bundle}
    edges = {(bundle_of[a], bundle_of[b]) for a, b in problem.forward_edges}
    edges = {(a, b) for a, b in edges if a != b and bundles[b] not in loose}
    hints = _backward_edges(problem, bundles, bundle_of)
    if not hints and all(a < b for a, b in edges):
        before: list[set[int]] = [set() for _ in bundles]
        for a, b in edges:
            before[b].add(a)
        return [tuple(sorted(bundle)) for bundle in bundles], before
    return _condensed(bundles, sorted(edges), hints)


def _condensed(
    bundles: list[tuple[int, ...]], edges: list[tuple[int, int]], hints: list[tuple[int, int]]
) -> tuple[list[tuple[int, ...]], list[set[int]]]:
    """The same where bundles are on cycles, or not in order."""
    follows: nx.DiGraph[int] = nx.DiGraph()
    follows.add_nodes_from(range(len(bundles)))
    follows.add_edges_from(edges)
    parts = [sorted(part) for part in nx.strongly_connected_components(follows)]
    part_of = {b: p for p, part in enumerate(parts) for b in part}
    merged: nx.DiGraph[int] = nx.DiGraph()
    merged.add_nodes_from(range(len(parts)))
    merged.add_edges_from((part_of[a], part_of[b]) for a, b in follows.edges if part_of[a] != part_of[b])
    first = [min(bundles[b][0] for b in part) for part in parts]
    numbered = merged.copy()  # gradients the other way round bind nobody, but tell where a backward node belongs
    numbered.add_edges_from((part_of[a], part_of[b]) for a, b in hints)
    numbered.remove_edges_from(list(nx.selfloop_edges(numbered)))
    if not nx.is_directed_acyclic_graph(numbered):
        numbered = merged
    order = list(nx.lexicographical_topological_sort(numbered, key=first.__getitem__))
    number = {p: i for i, p in enumerate(order)}
    return (
        [tuple(sorted(node for b in parts[p] for node in bundles[b])) for p in order],
        [{number[q] for q in merged.pred[p]} for p in order],
    )


def _backward_edges(
    problem: Problem, bundles: Sequence[Sequence[int]], bundle_of: dict[int, int]
) -> list[tuple[int, int]]:
    """An order for backward nodes that no forward node ties: the gradients' way, turned round. Only a hint."""
    backward = [node.is_backward for node in problem.graph.nodes.values()]
    orphan = [all(backward[node] for node in bundle) for bundle in bundles]
    if not any(orphan):
        return []
    edges = {(item.producer, reader) for item in problem.judge.items for reader in item.readers}
    between = {(bundle_of[b], bundle_of[a]) for a, b in edges if backward[a] and backward[b]}
    return sorted((b, a) for b, a in between if orphan[a] or orphan[b])


def _wires(problem: Problem, block_of: dict[int, int]) -> tuple[tuple[Wire, ...], bool]:
    """The tensors between blocks, at the least cost that any pair of devices has; whether every pair has it."""
    links = _links(problem)
    through_host = problem.judge.model.transfers == "host"
    wires, exact = [], True
    for item in problem.judge.items:
        producer = block_of[item.producer]
        readers = tuple(sorted({block_of[reader] for reader in item.readers} - {producer}))
        if not readers:
            continue
        if item.input and (through_host or problem.judge.io < problem.k):
            exact = False  # some devices have it already, and nobody sends it
            continue
        costs = {problem.judge.move_ns(item, src, dst) for src, dst in links}
        exact = exact and len(costs) < 2 and (problem.judge.model.transfers != "direct" or len(readers) == 1)
        wires.append(Wire(min(costs, default=0), producer, readers))
    total = sum(wire.cost * (1 + len(wire.readers)) for wire in wires)
    if total > _MOST_NS:
        raise GraphError(
            f"the transfers of the graph may take {total} ns in all; the limit is 2**60: give faster links, or check "
            "size_bytes of the tensors"
        )
    return tuple(wires), exact


def _links(problem: Problem) -> list[tuple[int, int]]:
    """One pair of devices (or of a device and the host) for each speed that there is between two of them."""
    judge, cluster = problem.judge, problem.cluster
    if judge.model.transfers == "host":
        pairs = [pair for d in range(problem.k) if not judge.is_host[d] for pair in ((d, problem.k), (problem.k, d))]
    else:
        pairs = [(a, b) for a in range(problem.k) for b in range(problem.k) if a != b]
    places = (*cluster.names, HOST)
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    for a, b in pairs:
        there, back = cluster.link(places[a], places[b]), cluster.link(places[b], places[a])
        speed = (there.latency_ns, there.bandwidth_bytes_per_s, back.latency_ns, back.bandwidth_bytes_per_s)
        found.setdefault(speed, (a, b))
    return list(found.values())


def _unary(problem: Problem, kinds: Sequence[Kind]) -> tuple[list[list[int]], bool]:
    """By kind and node: its own time, and what it gets from and sends to ``io_device``; whether that is all of it."""
    judge = problem.judge
    unary = [list(judge.node_ns[kind.devices[0]]) for kind in kinds]
    apart = judge.io < problem.k or judge.model.overlap  # some devices pay nothing, or not in their compute time
    for row, kind in zip(unary, kinds, strict=True):
        for item in judge.items if kind.pays and not apart else ():
            row[item.producer] += _io_ns(problem, item, kind.devices[0])
    shared = any((item.input or item.output) and (apart or item.readers) for item in judge.items)
    return unary, not (shared and (apart or judge.model.transfers == "host"))


def _io_ns(problem: Problem, item: Item, device: int) -> int:
    judge = problem.judge
    if item.input:
        return judge.move_ns(item, judge.io, device)
    sends = item.output and judge.model.transfers != "receiver"
    if sends and not (judge.model.transfers == "host" and item.readers):
        return judge.move_ns(item, device, judge.io)
    return 0


def _bytes(problem: Problem, block_of: dict[int, int], count: int) -> tuple[list[int], list[int], bool]:
    """Bytes by block, held always and for each micro-batch in flight; whether that is all that a device holds."""
    judge = problem.judge
    fixed, stash = [0] * count, [0] * count
    for bundle, need in zip(problem.bundles, bundle_needs(problem), strict=True):
        saved = sum(judge.stash[node] for node in bundle)
        stash[block_of[bundle[0]]] += saved
        fixed[block_of[bundle[0]]] += need.base + need.update - saved
    timed = any(item.bytes and not item.weight for item in judge.items) or any(judge.workspace)
    return fixed, stash, not timed and not judge.train


def _gradient_ns(problem: Problem, kinds: Sequence[Kind], block_of: dict[int, int], count: int) -> Ints | None:
    """By kind and block: the time to send the gradients of its parameters from one device to another of the kind."""
    judge, names, link = problem.judge, problem.cluster.names, problem.cluster.link
    speeds = [
        link(*(names[d] for d in kind.devices[:2])).bandwidth_bytes_per_s if kind.devices[1:] else 0 for kind in kinds
    ]
    gradient_ns, seen = np.zeros((len(kinds), count), dtype=np.int64), set()
    for item in judge.items if judge.train else ():
        if item.weight and item.grad and item.storage not in seen:
            seen.add(item.storage)
            gradient_ns[:, block_of[item.producer]] += [speed and item.size * 10**9 // speed for speed in speeds]
    return gradient_ns if gradient_ns.any() else None


def _recomputed(problem: Problem, kinds: Sequence[Kind], quotient: Quotient) -> Recomputed | None:
    """What the blocks take with all their nodes recomputed that can be; None: no node can."""
    graph, nodes = problem.graph, list(problem.graph.nodes.values())
    again = [node.recomputed or node for node in nodes]
    if all(node.recomputed is None for node in nodes):
        return None

    def more(values: Sequence[int]) -> Ints:
        return np.array(_by_block(values, quotient.members), dtype=np.int64)

    places = [problem.cluster.devices[kind.devices[0]].kind for kind in kinds]
    longer = [[graph.recomputed_ns(n.name, place) - graph.node_ns(n.name, place) for n in nodes] for place in places]
    return Recomputed(
        work_ns=quotient.work_ns + np.array([more(row) for row in longer]),
        fixed_bytes=quotient.fixed_bytes
        + more([a.fixed_bytes - n.fixed_bytes for a, n in zip(again, nodes, strict=True)]),
        stash_bytes=quotient.stash_bytes
        + more([a.inflight_bytes - n.inflight_bytes for a, n in zip(again, nodes, strict=True)]),
    )


def _allowed(problem: Problem, kinds: Sequence[Kind], bundles: Sequence[Sequence[int]]) -> np.ndarray:
    allowed = np.ones((len(kinds), len(bundles)), dtype=np.bool_)
    for b, bundle in enumerate(bundles):
        for node in bundle:
            devices = problem.allowed.get(node)
            if devices is not None:
                allowed[:, b] &= [kind.devices[0] in devices for kind in kinds]
    return allowed
