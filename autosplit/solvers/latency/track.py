"""Track: a problem compiled for one purpose, the makespan of many placements of it.

Nodes that a placement need not separate are one *block*: a bundle, or a chain of bundles in which each is all that the
next one reads, and the next one all that reads it. A *segment* is a run of program order inside a block that only its
first node reads anything from outside; the host and a queue pass a segment in one step, whatever came before:
with h and q the clocks of the host and the queue, it makes q the later of q + work and h + lag, and h later by launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from autosplit.estimate.makespan import queues
from autosplit.solvers.bounds import bundle_needs
from autosplit.solvers.problem import Problem


class Step(NamedTuple):
    """What a segment does to the clocks, by device."""

    work: tuple[int, ...]
    lag: tuple[int, ...]
    launch: tuple[int, ...]


class Segment(NamedTuple):
    """A run of one block, what it fetches first (tensors by number), and its steps forward and backward."""

    block: int
    fetches: tuple[int, ...]
    there: Step
    back: Step


class Track:
    """Blocks, segments and the makespan of labels of blocks.

    Attributes:
        blocks: for each block its nodes, by position in program order.
        near: for each block those that it shares a tensor with.
        static_bytes: for each block what it holds for good.
        devices: for each block where it may be.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.judge = problem, problem.judge
        self.blocks, self.block_of = _blocks(problem)
        self.near = _near(self)
        self.static_bytes = [0] * len(self.blocks)
        self.devices: list[list[int]] = [[] for _ in self.blocks]
        for bundle, devices in zip(problem.bundles, problem.bundle_devices, strict=True):
            self.devices[self.block_of[bundle[0]]] = devices  # those of all bundles of a block are equal
        for bundle, need in zip(problem.bundles, bundle_needs(problem), strict=True):
            self.static_bytes[self.block_of[bundle[0]]] += need.base + need.update
        self.queue = queues(self.judge)
        self.segments = _segments(self)
        self.outputs = [t for t, item in enumerate(self.judge.items) if item.output]
        self.homes = [self.block_of[item.producer] for item in self.judge.items]
        self._arrived = [item.input << self.judge.io for item in self.judge.items]

    def labels(self, labels: Sequence[int]) -> list[int]:
        """Labels of nodes as labels of blocks; a block that was split goes where its first node is."""
        return [labels[block[0]] for block in self.blocks]

    def spread(self, labels: Sequence[int]) -> list[int]:
        """Labels of blocks as labels of nodes."""
        return [labels[block] for block in self.block_of]

    def makespan(self, labels: Sequence[int]) -> int:
        """``Judge.step_ns`` of labels of blocks. O(segments + reads between blocks)."""
        run = _Run(self, labels)
        run.forward()
        if self.judge.train:
            run.backward()
        return max(run.at)


class _Run:
    """The clocks of one placement: as ``autosplit.estimate.makespan``, a segment at a time."""

    def __init__(self, track: Track, labels: Sequence[int]) -> None:
        self.track, self.labels = track, labels
        self.at = [0] * (track.judge.k + 1)
        self.there = track._arrived.copy()
        self.sent: list[tuple[int, int, int, int]] = []

    def forward(self) -> None:
        """All segments in order, each after what it reads from outside: from the caller or from its home."""
        track, labels, at, there = self.track, self.labels, self.at, self.there
        queue, homes, io, host = track.queue, track.homes, track.judge.io, track.judge.k
        for number, (block, fetches, (works, lags, launches), _) in enumerate(track.segments):
            device = labels[block]
            for tensor in fetches:
                home = labels[homes[tensor]] if homes[tensor] != block else io
                if home != device and not there[tensor] >> device & 1:
                    self.send(number, tensor, home, device)
            q = queue[device]
            if q == host:
                at[host] += works[device]
                continue
            issued = at[host]
            worked, lagged = at[q] + works[device], issued + lags[device]
            at[q] = worked if worked > lagged else lagged
            at[host] = issued + launches[device]
        for tensor in track.outputs:
            home = labels[homes[tensor]]
            if home != io and not there[tensor] >> io & 1:
                self.send(len(track.segments), tensor, home, io)

    def send(self, number: int, tensor: int, src: int, dst: int) -> None:
        self.there[tensor] |= 1 << dst
        self.sent.append((number, tensor, src, dst))
        self.copy(tensor, src, dst)

    def copy(self, tensor: int, src: int, dst: int) -> None:
        judge, at, host = self.track.judge, self.at, self.track.judge.k
        a, b = self.track.queue[src], self.track.queue[dst]
        time_ns = judge.one_way_ns(src, dst, judge.items[tensor].size)
        issued = at[host]
        at[a] = at[b] = max(issued, at[a], at[b]) + time_ns
        if host not in (a, b):
            at[host] = issued + min(judge.launch_ns[src], time_ns)

    def backward(self) -> None:
        track, at, queue, host = self.track, self.at, self.track.queue, self.track.judge.k
        items = track.judge.items
        sent = [copied for copied in self.sent if items[copied[1]].grad]
        for number in range(len(track.segments), -1, -1):
            if number < len(track.segments):
                segment = track.segments[number]
                device, step = self.labels[segment.block], segment.back
                q, h = queue[device], at[host]
                if q == host:
                    at[host] = h + step.work[device]
                else:
                    at[q] = max(at[q] + step.work[device], h + step.lag[device])
                    at[host] = h + step.launch[device]
            while sent and sent[-1][0] == number:
                _, tensor, src, dst = sent.pop()
                self.copy(tensor, dst, src)


def _blocks(problem: Problem) -> tuple[list[list[int]], list[int]]:
    """Nodes by block, and the block of each node; chains of bundles are merged up to a 32nd of a device's share."""
    bundle_of = [0] * problem.n
    for b, bundle in enumerate(problem.bundles):
        for i in bundle:
            bundle_of[i] = b
    before: list[set[int]] = [set() for _ in problem.bundles]
    after: list[set[int]] = [set() for _ in problem.bundles]
    for item in problem.judge.items:
        made = bundle_of[item.producer]
        for read in {bundle_of[reader] for reader in item.readers} - {made}:
            before[read].add(made)
            after[made].add(read)
    time = problem.judge.node_ns[0]
    needs = bundle_needs(problem)
    work = [sum(time[i] for i in bundle) for bundle in problem.bundles]
    held = [need.base + need.update for need in needs]
    most_work, most_held = sum(work) // (32 * problem.k), min(problem.capacity) // 16
    home = list(range(len(problem.bundles)))
    for b in range(len(problem.bundles)):
        for u in before[b]:
            a = home[u]
            alone = len(before[b]) == 1 and len(after[u]) == 1 and a != b
            alone = alone and problem.bundle_devices[a] == problem.bundle_devices[b]
            if alone and work[a] + work[b] <= most_work and held[a] + held[b] <= most_held:
                home[b] = a
                work[a] += work[b]
                held[a] += held[b]
    order = {a: number for number, a in enumerate(dict.fromkeys(home))}
    block_of = [order[home[b]] for b in bundle_of]
    blocks: list[list[int]] = [[] for _ in order]
    for i, block in enumerate(block_of):
        blocks[block].append(i)
    return blocks, block_of


def _near(track: Track) -> list[list[int]]:
    near: list[dict[int, None]] = [{} for _ in track.blocks]
    for item in track.judge.items:
        made = track.block_of[item.producer]
        for reader in item.readers:
            read = track.block_of[reader]
            if read != made:
                near[made][read] = near[read][made] = None
    return [list(found) for found in near]


def _segments(track: Track) -> list[Segment]:
    judge = track.judge
    fetches: list[list[int]] = [[] for _ in range(judge.n)]
    for tensor, item in enumerate(judge.items):
        if item.input:
            fetches[item.producer].append(tensor)
        for reader in item.readers:
            if track.block_of[reader] != track.block_of[item.producer]:
                fetches[reader].append(tensor)
    runs: list[list[int]] = []
    for i in range(judge.n):
        if i and track.block_of[i] == track.block_of[i - 1] and not fetches[i]:
            runs[-1].append(i)
        else:
            runs.append([i])
    return [
        Segment(
            track.block_of[run[0]],
            tuple(fetches[run[0]]),
            _step(track, run, back=False),
            _step(track, run[::-1], back=True),
        )
        for run in runs
    ]


def _step(track: Track, run: Sequence[int], *, back: bool) -> Step:
    judge = track.judge
    rows = []
    for device in range(judge.k):
        work = lag = launched = 0
        for i in run:
            forward = judge.forward_ns[device][i]
            time_ns = judge.node_ns[device][i] - forward if back else forward
            work += time_ns
            lag = max(lag, launched) + time_ns
            launched += min(judge.launch_ns[device], time_ns)
        rows.append((work, lag, launched))
    return Step(*zip(*rows, strict=True))
