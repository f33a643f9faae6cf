"""What the solvers share: one problem compiled to numbers, and the best answer to it so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from autosplit.device import HOST, Cluster
from autosplit.errors import DeviceError
from autosplit.estimate.judge import Judge
from autosplit.graph import CostGraph
from autosplit.placement import Objective

NOTHING_FITS = 2**63
"""A bound above every value: no placement fits at all."""


class Score(NamedTuple):
    """How good a placement is; smaller is better. Bytes over capacity come first, ties go to the emptier devices."""

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

    Raises:
        DeviceError: ``capacities`` or ``io_device`` names a device that the cluster does not have.
    """

    def __init__(
        self,
        graph: CostGraph,
        cluster: Cluster,
        objective: Objective = "latency",
        io_device: str = HOST,
        capacities: Mapping[str, int] | None = None,
    ) -> None:
        given = dict(capacities or {})
        for name in given:
            if name not in cluster.names:
                raise DeviceError(f"capacity of unknown device {name!r}: known are {', '.join(cluster.names)}")
        self.graph, self.cluster, self.objective = graph, cluster, objective
        self.judge = Judge(graph, cluster, io_device)
        self.n, self.k = self.judge.n, self.judge.k
        self.capacity = [given.get(device.name, device.memory_bytes) for device in cluster.devices]

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
            first.setdefault((alike[name], self.capacity[d], d == self.judge.io), d)
            for d, name in enumerate(self.cluster.names)
        ]

    def answer(self, labels: Sequence[int], method: str) -> Answer:
        """Score a placement with the judge."""
        peaks = self.judge.peaks(labels)
        pairs = list(zip(peaks, self.capacity, strict=True))
        value = self.judge.value(labels, self.objective, peaks)
        memory = self.objective == "memory"
        tie = self.judge.step_ns(labels) if memory else max(peak / max(1, has) for peak, has in pairs)
        excess = sum(max(0, peak - has) for peak, has in pairs)
        return Answer(Score(excess, value, tie), tuple(labels), tuple(peaks), method)


class Answer(NamedTuple):
    """A placement as labels by node position, its score, its peak bytes by device, and who found it."""

    score: Score
    labels: tuple[int, ...]
    peaks: tuple[int, ...]
    method: str

    @property
    def fits(self) -> bool:
        """Whether it is within every capacity."""
        return self.score.excess_bytes == 0


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

    @property
    def fits(self) -> bool:
        """Whether some answer is within every capacity."""
        return self.best is not None and self.best.fits

    def reaches(self, bound: int) -> bool:
        """Whether some answer fits and has the value ``bound``."""
        return self.best is not None and self.best.fits and self.best.score.value <= bound
