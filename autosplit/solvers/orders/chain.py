"""Chain DP: the best split of one order of the nodes into stages on a sequence of devices.

Everything about a stage is a matrix over (first boundary, last boundary): its time, the transfers that it receives and
sends, and the memory that it takes. The matrices are made once for an order; each DP over them is O(devices * cuts^2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autosplit.solvers.orders.layout import Layout
from autosplit.solvers.orders.memory import stage_bytes
from autosplit.solvers.problem import Problem

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

IMPOSSIBLE = 2**60


class Stages:
    """Costs of every stage of one layout.

    Args:
        problem: graph, cluster and objective.
        layout: order and boundaries.
    """

    def __init__(self, problem: Problem, layout: Layout) -> None:
        self.problem, self.layout = problem, layout
        self.pinned = {i for bundle in layout.loose for i in bundle}
        self.cuts = np.array(layout.cuts, dtype=np.int64)
        self.position = np.empty(problem.n, dtype=np.int64)
        self.position[list(layout.order)] = np.arange(problem.n)
        self.bytes = stage_bytes(problem.judge, self.position, self.cuts, self.pinned)
        self._traffic: dict[tuple[int, ...], tuple[Ints, Ints]] = {}

    def compute_ns(self, device: int) -> Ints:
        """Time of each stage on a device, with its inputs from and outputs to ``io_device``."""
        unary = np.array(self.problem.unary_ns[device], dtype=np.int64)
        unary[list(self.pinned)] = 0
        prefix = np.concatenate([[0], np.cumsum(unary[list(self.layout.order)])])[self.cuts]
        return _upper(prefix[None, :] - prefix[:, None])

    def traffic_ns(self, src: int, dst: int) -> tuple[Ints, Ints]:
        """Transfers that each stage receives and sends, at the speed of one link. O(reads + cuts^2).

        A stage pays once for a tensor that it reads, and once for a tensor that later stages read.
        """
        transfer = self.problem.cluster.transfer_ns
        a, b = self.problem.cluster.names[src], self.problem.cluster.names[dst]
        key = tuple(transfer(*ends, size) for ends in ((a, b), (b, a)) for size in (0, 2**40))
        if key not in self._traffic:
            self._traffic[key] = self._measure(src, dst)
        return self._traffic[key]

    def _measure(self, src: int, dst: int) -> tuple[Ints, Ints]:
        m = len(self.cuts) - 1
        segment = (np.searchsorted(self.cuts, self.position, side="right") - 1).tolist()
        received = np.zeros((m + 2, m + 2), dtype=np.int64)
        sent = np.zeros((m + 2, m + 2), dtype=np.int64)
        for item in self.problem.judge.items:
            if item.producer in self.pinned:
                continue
            made = segment[item.producer]
            reads = sorted({segment[r] for r in item.readers if r not in self.pinned} - {made})
            if not reads:
                continue
            cost = self.problem.judge.move_ns(item, src, dst)
            before = made
            for read in reads:  # the first read of a stage that starts after the read before this one
                received[before + 1, read + 1] += cost
                received[read + 1, read + 1] -= cost
                before = read
            sent[0, made + 1] += cost
            sent[0, reads[-1] + 1] -= cost
            sent[made + 1, made + 1] -= cost
            sent[made + 1, reads[-1] + 1] += cost
        received = received.cumsum(axis=0).cumsum(axis=1)
        sent = sent.cumsum(axis=0).cumsum(axis=1)
        return _upper(received[: m + 1, : m + 1]), _upper(sent[: m + 1, : m + 1])

    def times(self, devices: Sequence[int]) -> list[Ints]:
        """What each stage adds to the latency, or its load, for a sequence of devices."""
        times = []
        for s, device in enumerate(devices):
            before = devices[s - 1] if s else devices[(s + 1) % len(devices)]
            after = devices[s + 1] if s + 1 < len(devices) else before
            time = self.compute_ns(device) + self.traffic_ns(before, device)[0]
            if self.problem.objective == "throughput":
                time = time + self.traffic_ns(device, after)[1]
            times.append(time)
        return times

    def solve(self, devices: Sequence[int], limits: Sequence[int]) -> list[int] | None:
        """The best boundaries for a sequence of devices, or None when none is within the limits.

        Args:
            devices: distinct, in the order of the stages.
            limits: bytes by device.

        Returns:
            len(devices) + 1 boundaries of the order, from 0 to n; equal ones leave a device unused. Optimal over the
            layout's boundaries for the matrices' costs; ties go to the least full devices.
        """
        times = self.times(devices)
        inside = [(self.bytes <= max(0, limits[device])) & self._allowed(device) for device in devices]
        fill = [self.bytes / max(1, self.problem.capacity[device]) for device in devices]
        if self.problem.objective == "memory":
            sizes = [np.where(ok, _blocked(self.bytes), IMPOSSIBLE) for ok in inside]
            least = bottleneck(sizes)
            inside = [ok & (size <= least) for ok, size in zip(inside, sizes, strict=True)]
        masked = [np.where(ok, _blocked(time), IMPOSSIBLE) for ok, time in zip(inside, times, strict=True)]
        if self.problem.objective == "throughput":
            least = min(bottleneck(masked), IMPOSSIBLE - 1)
            masked = [np.where(time <= least, 0, IMPOSSIBLE) for time in masked]
        path = shortest(masked, fill)
        return None if path is None else [int(self.cuts[j]) for j in path]

    def _allowed(self, device: int) -> Bools:
        """Whether each stage has only nodes that may run on a device."""
        banned = np.zeros(self.problem.n + 1, dtype=np.int64)
        for node, devices in self.problem.allowed.items():
            banned[self.position[node] + 1] = device not in devices and node not in self.pinned
        before = banned.cumsum()[self.cuts]
        allowed: Bools = before[None, :] == before[:, None]
        return allowed

    def labels(self, boundaries: Sequence[int], devices: Sequence[int], pin: int) -> list[int]:
        """Device by node: those of the stages, and ``pin`` for the loose groups."""
        labels = [pin] * self.problem.n
        for s, device in enumerate(devices):
            for node in self.layout.order[boundaries[s] : boundaries[s + 1]]:
                if node not in self.pinned:
                    labels[node] = device
        return labels


def _upper(matrix: Ints) -> Ints:
    upper: Ints = np.triu(matrix, 1)
    return upper


def _blocked(matrix: Ints) -> Ints:
    """The matrix with stages that would end before they start made impossible."""
    below = np.tril(np.full_like(matrix, IMPOSSIBLE), -1)
    blocked: Ints = matrix + below
    return blocked


def bottleneck(costs: Sequence[Ints]) -> int:
    """The least possible maximum of the stages' costs; IMPOSSIBLE when there is none. O(stages * cuts^2).

    Args:
        costs: for each stage in order, cost by (first boundary, last boundary); IMPOSSIBLE where not allowed.
    """
    best = np.full(len(costs[0]), IMPOSSIBLE, dtype=np.int64)
    best[0] = 0
    for cost in costs:
        best = np.maximum(best[:, None], cost).min(axis=0)
    return int(best[-1])


def shortest(costs: Sequence[Ints], ties: Sequence[Floats]) -> list[int] | None:
    """Boundaries of least total cost and, among those, of least maximum tie. O(stages * cuts^2).

    Exact in both: an end of a best path is reached by a best path, and a maximum only grows.

    Args:
        costs: for each stage in order, cost by (first boundary, last boundary); IMPOSSIBLE where not allowed.
        ties: likewise, the second criterion.

    Returns:
        Numbers of the boundaries, one more than there are stages; None when no path is allowed.
    """
    count = len(costs[0])
    best = np.full(count, IMPOSSIBLE, dtype=np.int64)
    best[0] = 0
    second = np.zeros(count)
    came_from = []
    columns = np.arange(count)
    for cost, tie in zip(costs, ties, strict=True):
        total = best[:, None] + cost
        best = np.minimum(total.min(axis=0), IMPOSSIBLE)
        worst = np.where(total == best, np.maximum(second[:, None], tie), np.inf)
        choice = worst.argmin(axis=0)
        second = worst[choice, columns]
        came_from.append(choice)
    if best[-1] >= IMPOSSIBLE:
        return None
    path = [count - 1]
    for choice in reversed(came_from):
        path.append(int(choice[path[-1]]))
    return path[::-1]
