"""Search: repair and polish by moves, and the exhaustive search that settles small problems."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

from autosplit.solvers.bounds import bundle_needs
from autosplit.solvers.problem import Answer, Pool, Problem

_MOST_BUNDLES = 14
_MOST_LEAVES = 40_000
_MOVED = ", moves"


def improve(pool: Pool, evaluations: int, bound: int) -> None:
    """Improve the best answer by moves: to a local optimum, then from random kicks of the best, again and again.

    A move takes one bundle, or a run of bundles at the edge of a stage, to another device. A kick takes a random run
    of bundles to a random device. Same answer every time: the generator has a fixed seed and no clock is read.

    Args:
        pool: with an answer in it.
        evaluations: at most this many placements are scored.
        bound: stop at this value.

    Source: iterated local search (Lourenço, Martin, Stützle 2003).
    """
    if pool.best is None:
        return
    rng = random.Random(0)
    problem, current = pool.problem, pool.best
    budget = _Budget(evaluations)
    while True:
        _descend(pool, current, budget)
        if budget.left <= 0 or (pool.fits and pool.best.score.value <= bound):
            return
        start = rng.randrange(len(problem.bundles))
        run = range(start, min(len(problem.bundles), start + rng.choice((1, 2, 4, 8))))
        current = _moved(pool, pool.best, run, rng.randrange(problem.k), budget)


class _Budget:
    """How many more placements may be scored."""

    def __init__(self, left: int) -> None:
        self.left = left


def _descend(pool: Pool, answer: Answer, budget: _Budget) -> None:
    """Sweep over the moves, taking each that improves, until a sweep takes none."""
    improved = True
    while improved:
        improved = False
        for run, device in _moves(pool.problem, answer):
            if budget.left <= 0:
                return
            found = _moved(pool, answer, run, device, budget)
            if found.score < answer.score:
                answer, improved = found, True


def _moved(pool: Pool, answer: Answer, run: range, device: int, budget: _Budget) -> Answer:
    labels = list(answer.labels)
    for b in run:
        for i in pool.problem.bundles[b]:
            labels[i] = device
    budget.left -= 1
    return pool.offer(labels, answer.method.removesuffix(_MOVED) + _MOVED)


def _moves(problem: Problem, answer: Answer) -> Iterator[tuple[range, int]]:
    """Moves from one answer: runs of 1, 2, 4, ... bundles before and after each edge, then single bundles."""
    device = [answer.labels[bundle[0]] for bundle in problem.bundles]
    edges = [b + 1 for b, (left, right) in enumerate(pairwise(device)) if left != right]
    length = 1
    while length < len(device):
        for edge in edges:
            yield range(max(0, edge - length), edge), device[edge]
            yield range(edge, min(len(device), edge + length)), device[edge - 1]
        length *= 2
    for b, current in enumerate(device):
        for other in problem.bundle_devices[b]:
            if other != current:
                yield range(b, b + 1), other


def exhaust(pool: Pool) -> bool:
    """Try every placement of a small problem that a bound does not rule out.

    Returns:
        True when the pool now has the optimum, or when it has no answer that fits because there is none; False when
        the problem is too large to say (more than 14 bundles, or 40,000 placements left after pruning).
    """
    if len(pool.problem.bundles) > _MOST_BUNDLES:
        return False
    search = _Exhaustive(pool)
    search.place(0, [])
    return search.leaves <= _MOST_LEAVES


class _Exhaustive:
    """Depth first over bundles; devices that are interchangeable and still empty are tried once."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.problem = pool, pool.problem
        self.needs = bundle_needs(pool.problem)
        self.leaves = 0

    def place(self, b: int, chosen: list[int]) -> None:
        """Place bundle ``b`` and those after it, given the devices of those before."""
        if self.leaves > _MOST_LEAVES:
            return
        if b == len(self.problem.bundles):
            self.leaves += 1
            self._leaf(chosen)
            return
        fresh: set[int] = set()
        for device in range(self.problem.k):
            if device not in chosen:
                kind = self.problem.classes[device]
                if kind in fresh:
                    continue
                fresh.add(kind)
            chosen.append(device)
            if device in self.problem.bundle_devices[b] and self._may_fit(chosen, device):
                self.place(b + 1, chosen)
            chosen.pop()

    def _may_fit(self, chosen: list[int], device: int) -> bool:
        mine = [need for need, where in zip(self.needs, chosen, strict=False) if where == device]
        update, working = sum(need.update for need in mine), max(need.working for need in mine)
        return sum(need.base for need in mine) + max(update, working) <= self.problem.capacity[device]

    def _leaf(self, chosen: list[int]) -> None:
        labels = [0] * self.problem.n
        for bundle, device in zip(self.problem.bundles, chosen, strict=True):
            for i in bundle:
                labels[i] = device
        self.pool.offer(labels, "exhaustive search")
