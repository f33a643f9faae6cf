"""What the solvers share: one problem compiled to numbers, and the best answer to it so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import networkx as nx

from autosplit.device import HOST, Cluster
from autosplit.errors import DeviceError, GraphError
from autosplit.estimate.judge import Judge
from autosplit.estimate.pieces import NEVER_NS
from autosplit.graph import CostGraph
from autosplit.placement import DIRECT, CostModel, Objective

NOTHING_FITS = 2**63
"""A bound above every value: no placement fits at all."""


class Score(NamedTuple):
    """How good a placement is; smaller is better.

    Nodes where they may not be come first, then bytes over capacity; ties go to the emptier devices.
    """

    misplaced: int
    excess_bytes: int
    value: int
    tie: float


class Problem:
    """A graph, a cluster, an objective, and the memory that may be used.

    Args:
        graph: what runs.
        cluster: where; its order of devices is the order of stages.
        objective: what to minimise.
        io_device: where inputs arrive and outputs return.
        capacities: bytes by device name, in place of the device's own memory.
        model: what transfers cost, and micro-batches in flight.
        contiguous: only runs of nodes may be stages.

    Raises:
        DeviceError: ``capacities`` or ``io_device`` names a device that the cluster does not have.
        GraphError: a node or a group has no device on which it may run.
    """

    def __init__(
        self,
        graph: CostGraph,
        cluster: Cluster,
        objective: Objective = "latency",
        io_device: str = HOST,
        capacities: Mapping[str, int] | None = None,
        model: CostModel = DIRECT,
        *,
        contiguous: bool = False,
    ) -> None:
        given = dict(capacities or {})
        for name in given:
            if name not in cluster.names:
                raise DeviceError(f"capacity of unknown device {name!r}: known are {', '.join(cluster.names)}")
        self.graph, self.cluster, self.objective = graph, cluster, objective
        self.judge, self.contiguous = Judge(graph, cluster, io_device, model), contiguous
        self.n, self.k = self.judge.n, self.judge.k
        self.offers_pieces = objective == "latency" and model.transfers == "host"
        self.capacity = [given.get(device.name, device.memory_bytes) for device in cluster.devices]
        self.allowed = _allowed(graph, cluster)

    def check_devices(self) -> None:
        """Refuse nodes without a device or a time.

        Raises:
            GraphError: a node or a group may run nowhere, or a node has times, but none for a kind on which it may run.
        """
        kinds = [device.kind for device in self.cluster.devices]
        names = list(self.graph.nodes)
        for bundle, devices in zip(self.bundles, self.bundle_devices, strict=True):
            asked = dict.fromkeys(kinds[device] for device in devices)
            for node in (self.graph.nodes[names[i]] for i in bundle):
                missing = [kind for kind in asked if kind not in node.forward_ns]
                if node.forward_ns and missing and "*" not in node.forward_ns:
                    raise GraphError(
                        f"node {node.name!r} has no time for devices of kind {missing[0]!r}, only for "
                        f'{", ".join(node.forward_ns)}; give one, or one for "*", every other kind'
                    )

    @cached_property
    def bundle_devices(self) -> list[list[int]]:
        """For each bundle the devices on which it may run.

        Raises:
            GraphError: there is none.
        """
        names, found = list(self.graph.nodes), []
        for bundle in self.bundles:
            common = set(range(self.k))
            for i in bundle:
                common &= self.allowed.get(i, common)
                if not common:
                    node = self.graph.nodes[names[i]]
                    of_group = f" of group {node.group!r}" if len(bundle) > 1 else ""
                    raise GraphError(
                        f"node {node.name!r}{of_group} may run on {', '.join(node.devices)}; of the devices "
                        f"{', '.join(self.cluster.names)} none is that and open to its whole group; add one, or let "
                        "the node run elsewhere"
                    )
            found.append(sorted(common))
        return found

    @property
    def runs_side_by_side(self) -> bool:
        """Whether the latency depends on what runs beside what, in the emitted program."""
        return self.objective == "latency" and not self.is_serial and not self.offers_pieces

    @cached_property
    def is_serial(self) -> bool:
        """Whether nothing runs beside anything else: every device is synchronous, or there is one."""
        return self.k == 1 or all(device.is_synchronous for device in self.cluster.devices)

    @cached_property
    def bundles(self) -> list[list[int]]:
        """Nodes that must be on one device, in the order of their first node: the groups, and every other node."""
        home: dict[str, list[int]] = {}
        bundles: list[list[int]] = []
        for i, node in enumerate(self.graph.nodes.values()):
            if node.group is not None and node.group in home:
                home[node.group].append(i)
                continue
            bundles.append([i])
            if node.group is not None:
                home[node.group] = bundles[-1]
        return bundles

    @cached_property
    def unary_ns(self) -> list[list[int]]:
        """By device and node: its own time, and the transfers to and from ``io_device`` that it costs there."""
        judge = self.judge
        unary = [list(times) for times in judge.node_ns]
        for item in judge.items:
            for device in range(self.k):
                if device != judge.io and item.input:
                    unary[device][item.producer] += judge.move_ns(item, judge.io, device)
                elif device != judge.io and item.output:
                    unary[device][item.producer] += judge.move_ns(item, device, judge.io)
        return unary

    @cached_property
    def classes(self) -> list[int]:
        """For each device the first device that is interchangeable with it."""
        alike = self.cluster.first_alike
        first: dict[tuple[object, ...], int] = {}
        return [
            first.setdefault((alike[name], self.capacity[d], d == self.judge.io, self._guests[d]), d)
            for d, name in enumerate(self.cluster.names)
        ]

    @cached_property
    def _guests(self) -> list[tuple[int, ...]]:
        """For each device the nodes that may run there and not everywhere."""
        return [tuple(i for i, devices in self.allowed.items() if d in devices) for d in range(self.k)]

    def answer(self, labels: Sequence[int], method: str) -> Answer:
        """Score a placement with the judge."""
        peaks = self.judge.peaks(labels)
        pairs = list(zip(peaks, self.capacity, strict=True))
        value = self.judge.value(labels, self.objective, peaks)
        memory = self.objective == "memory"
        tie = self.judge.step_ns(labels) if memory else max(peak / max(1, has) for peak, has in pairs)
        excess = sum(max(0, peak - has) for peak, has in pairs)
        misplaced = sum(labels[i] not in devices for i, devices in self.allowed.items())
        misplaced += value >= NEVER_NS
        misplaced += self.contiguous and not self.is_contiguous(labels)
        return Answer(Score(misplaced, excess, value, tie), tuple(labels), tuple(peaks), method)

    def is_contiguous(self, labels: Sequence[int]) -> bool:
        """Whether the devices can be ordered so that no forward tensor goes back. O(reads)."""
        follows: nx.DiGraph[int] = nx.DiGraph()
        for a, b in self.forward_edges:
            if labels[a] != labels[b]:
                follows.add_edge(labels[a], labels[b])
        return bool(nx.is_directed_acyclic_graph(follows))

    @cached_property
    def forward_edges(self) -> list[tuple[int, int]]:
        """Who is read by whom, among the nodes that are not of a backward pass."""
        backward = [node.is_backward for node in self.graph.nodes.values()]
        edges = {(item.producer, reader) for item in self.judge.items for reader in item.readers}
        return sorted((a, b) for a, b in edges if not backward[a] and not backward[b])


def _allowed(graph: CostGraph, cluster: Cluster) -> dict[int, frozenset[int]]:
    """The devices of each node that may not run everywhere."""
    names: dict[str, set[int]] = {}
    for d, device in enumerate(cluster.devices):
        names.setdefault(device.name, set()).add(d)
        names.setdefault(device.kind, set()).add(d)
    return {
        i: frozenset().union(*(names.get(name, ()) for name in node.devices))
        for i, node in enumerate(graph.nodes.values())
        if node.devices
    }


class Answer(NamedTuple):
    """A placement as labels by node position, its score, its peak bytes by device, and who found it."""

    score: Score
    labels: tuple[int, ...]
    peaks: tuple[int, ...]
    method: str

    @property
    def fits(self) -> bool:
        """Whether every node is where it may be, within every capacity."""
        return self.score.misplaced == self.score.excess_bytes == 0


class Pool:
    """The best answer so far. The first of equals stays, so the order of offers decides, never a hash."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.best: Answer | None = None
        self._seen: dict[tuple[int, ...], Answer] = {}

    def offer(self, labels: Sequence[int], method: str) -> Answer:
        """Score a placement and keep it when it is the best."""
        key = tuple(labels)
        answer = self._seen.get(key)
        if answer is None:
            answer = self._seen[key] = self.problem.answer(key, method)
        if self.best is None or answer.score < self.best.score:
            self.best = answer
        return answer

    def prefer(self, simpler: Answer | None, parts: int) -> None:
        """Go back to an earlier best that fits, unless the best saves more than one in ``parts`` of it."""
        if simpler is None or self.best is None or not simpler.fits:
            return
        if self.best.score.value * parts > simpler.score.value * (parts - 1):
            self.best = simpler

    @property
    def fits(self) -> bool:
        """Whether some answer is within every capacity."""
        return self.best is not None and self.best.fits

    def reaches(self, bound: int) -> bool:
        """Whether some answer fits and has the value ``bound``."""
        return self.best is not None and self.best.fits and self.best.score.value <= bound
