"""Latency where queues run side by side: list schedules, and annealing on the makespan."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from autosplit.solvers.latency.track import Track
from autosplit.solvers.problem import Pool, Problem

_VISITS, _MOVES_EACH = 1_200_000, 60
_HEATS, _COLD = (0.3, 0.1), 1e-3
_MOST_OFFERS = 8


def side_by_side(pool: Pool, bound: int) -> None:
    """Offer list schedules, and anneal the best answer, until one reaches ``bound``."""
    track = Track(pool.problem)
    schedules(pool, track)
    anneal(pool, track, bound)


def schedules(pool: Pool, track: Track) -> None:
    """Offer list schedules: each node in turn on the device that is done with it first.

    The turns are those of the upward rank (Topcuoglu, Hariri, Wu 2002, HEFT) and those of the program, in which the
    nodes are issued in any case. A transfer occupies both its ends; a device takes no more weights than it can hold.
    O(devices * (nodes + reads)).
    """
    problem = pool.problem
    ranks = upward_ranks(problem)
    by_rank = sorted(range(problem.n), key=lambda i: (-ranks[i], i))
    pool.offer(_Greedy(track).run(by_rank), "earliest finish by rank")
    pool.offer(_Greedy(track).run(range(problem.n)), "earliest finish in program order")


def upward_ranks(problem: Problem) -> list[int]:
    """For each node the longest path from it to the end, in mean times and transfers; above the rank of its readers."""
    judge, k = problem.judge, problem.k
    ranks = [sum(times) // k for times in zip(*judge.node_ns, strict=True)]
    reads: list[list[tuple[int, int]]] = [[] for _ in range(problem.n)]
    for item in judge.items:
        cost = judge.move_ns(item, 0, k - 1) if k > 1 else 0
        for reader in item.readers:
            reads[item.producer].append((reader, cost))
    for i in range(problem.n - 1, -1, -1):
        ranks[i] += max((cost + ranks[reader] + 1 for reader, cost in reads[i]), default=0)
    return ranks


class _Greedy:
    """A list schedule in the making."""

    def __init__(self, track: Track) -> None:
        self.track, self.problem, self.judge = track, track.problem, track.judge
        problem = self.problem
        self.labels = [-1] * problem.n
        self.at = [0] * (problem.k + 1)
        self.there: list[set[int]] = [{self.judge.io} if item.input else set() for item in self.judge.items]
        self.reads: list[list[int]] = [[] for _ in range(problem.n)]
        for tensor, item in enumerate(self.judge.items):
            for node in (item.producer, *item.readers):
                self.reads[node].append(tensor)
        self.held = [0] * problem.k

    def run(self, order: Sequence[int]) -> list[int]:
        """Place the nodes in this order; a node's block goes with it."""
        for node in order:
            if self.labels[node] < 0:
                self.settle(node)
            self.at = self.after(node, self.labels[node])
            self.keep(node)
        return self.labels

    def settle(self, node: int) -> None:
        block = self.track.block_of[node]
        size = self.track.static_bytes[block]
        free = [has - held for has, held in zip(self.problem.capacity, self.held, strict=True)]
        may = self.track.devices[block]
        room = [d for d in may if size <= free[d]] or [max(may, key=free.__getitem__)]
        device = min(room, key=lambda d: (self.after(node, d)[self.track.queue[d]], d))
        self.held[device] += size
        for i in self.track.blocks[block]:
            self.labels[i] = device

    def after(self, node: int, device: int) -> list[int]:
        """The clocks when ``node`` has run there."""
        judge, queue, at = self.judge, self.track.queue, self.at.copy()
        for tensor in self.reads[node]:
            item = judge.items[tensor]
            home = self.labels[item.producer] if item.producer != node else judge.io if item.input else device
            if home in (-1, device) or device in self.there[tensor]:
                continue
            a, b = queue[home], queue[device]
            at[a] = at[b] = max(at[a], at[b]) + judge.move_ns(item, home, device)
        at[queue[device]] += judge.node_ns[device][node]
        return at

    def keep(self, node: int) -> None:
        for tensor in self.reads[node]:
            self.there[tensor].add(self.labels[node])


def anneal(pool: Pool, track: Track, bound: int) -> None:
    """Improve the best answer by simulated annealing of blocks on the makespan; weights stay within the capacities.

    The best found is offered, and if it does not fit some that were the best before. The same each time: seeds are
    fixed, and moves are counted, not seconds (about a second).

    Source: Kirkpatrick, Gelatt, Vecchi 1983.
    """
    if pool.best is None:
        return
    enough = _MOVES_EACH * len(track.blocks) * track.problem.k
    moves = min(enough, _VISITS // max(1, len(track.segments) * (1 + track.judge.train)))
    for seed, hot in enumerate(_HEATS):
        if pool.reaches(bound):
            return
        found = _Annealing(track, track.labels(pool.best.labels), random.Random(seed)).run(moves // len(_HEATS), hot)
        for labels in found[: -_MOST_OFFERS - 1 : -1]:
            if pool.offer(track.spread(labels), "annealing").fits:
                break


class _Annealing:
    """Labels of blocks, and what they hold."""

    def __init__(self, track: Track, labels: list[int], rng: random.Random) -> None:
        self.track, self.labels, self.rng = track, labels, rng
        self.held = [0] * track.problem.k
        for block, label in enumerate(labels):
            self.held[label] += track.static_bytes[block]

    def run(self, moves: int, hot: float) -> list[list[int]]:
        """Each best so far, in the order in which they were found."""
        rng, track = self.rng, self.track
        current = best = track.makespan(self.labels)
        found: list[list[int]] = [self.labels.copy()]
        scale = max(1, best) / len(self.labels)
        for step in range(moves):
            heat = hot * (_COLD / hot) ** (step / moves) * scale
            change = self.propose()
            undo = [(block, self.labels[block]) for block, _ in change]
            if not change or not self.apply(change):
                continue
            value = track.makespan(self.labels)
            if value <= current - heat * math.log(1.0 - rng.random()):
                current = value
                if value < best:
                    best = value
                    found.append(self.labels.copy())
            else:
                self.set(undo)
        return found

    def propose(self) -> list[tuple[int, int]]:
        """A run of connected blocks of one device, and the device of a neighbour or any."""
        rng, labels, near = self.rng, self.labels, self.track.near
        start = rng.randrange(len(labels))
        here = labels[start]
        around = [labels[block] for block in near[start] if labels[block] != here]
        there = rng.choice(around) if around and rng.random() < 0.7 else rng.randrange(self.track.problem.k)
        if there == here:
            return []
        wanted, run, at = rng.choice((1, 1, 2, 3, 5, 8, 16, 64)), [start], 0
        seen = {start}
        while at < len(run) < wanted:
            for block in near[run[at]]:
                if labels[block] == here and block not in seen and len(run) < wanted:
                    seen.add(block)
                    run.append(block)
            at += 1
        return [(block, there) for block in run if there in self.track.devices[block]]

    def apply(self, change: list[tuple[int, int]]) -> bool:
        """Make the change if the device that gains can hold it."""
        there = change[0][1]
        more = sum(self.track.static_bytes[block] for block, _ in change)
        if more and self.held[there] + more > self.track.problem.capacity[there]:
            return False
        self.set(change)
        return True

    def set(self, change: list[tuple[int, int]]) -> None:
        """Give blocks their labels."""
        for block, label in change:
            size = self.track.static_bytes[block]
            self.held[self.labels[block]] -= size
            self.held[label] += size
            self.labels[block] = label
