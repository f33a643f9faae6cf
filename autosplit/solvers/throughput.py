"""The search for throughput: contiguous stages first, then any placement."""

from __future__ import annotations

from collections.abc import Callable

from autosplit.solvers.anneal import Budget, anneal
from autosplit.solvers.blocks import Blocks, blocks_of
from autosplit.solvers.contiguous import by_all_downsets, by_neighbours, by_orders
from autosplit.solvers.layout import loose_groups
from autosplit.solvers.line import NEVER, Line
from autosplit.solvers.plain import plain_splits
from autosplit.solvers.problem import Pool
from autosplit.solvers.shares import share_bound

_MOST_NEIGHBOURED = 2000
_MOVES, _MOVES_PER_BLOCK = 1_000, 2


def contiguous_stages(pool: Pool, may_go_on: Callable[[], bool]) -> int:
    """Offer the best contiguous stages that are found, and the plain splits.

    Returns:
        A value that no contiguous placement is below (0: none is known).
    """
    problem = pool.problem
    bound = _stages(pool, blocks_of(problem, ordered=True), may_go_on)
    loose = loose_groups(problem)
    if loose and not problem.contiguous:
        _stages(pool, blocks_of(problem, ordered=True, loose=loose), may_go_on)
    return bound


def _stages(pool: Pool, blocks: Blocks, may_go_on: Callable[[], bool]) -> int:
    """The same for one way to order the blocks."""
    for name, labels in plain_splits(blocks):
        pool.offer(blocks.labels(labels), name)
    line = by_orders(blocks.quotient, blocks.fleet, blocks.flight)
    if line is not None:
        _offer(pool, blocks, line, "stages, chain DP")
    better, proved = by_all_downsets(
        blocks.quotient, blocks.fleet, blocks.flight, NEVER if line is None else line.value - 1
    )
    if better is not None:
        line = better
        _offer(pool, blocks, line, "stages, all downsets")
    if proved:
        return NEVER if line is None else line.value
    if line is not None and len(blocks.quotient) <= _MOST_NEIGHBOURED:
        line = by_neighbours(blocks.quotient, blocks.fleet, blocks.flight, line, may_go_on)
        _offer(pool, blocks, line, "stages, neighbours")
    return 0


def any_placement(pool: Pool, effort: int, may_go_on: Callable[[], bool]) -> int:
    """Offer the best placement that is found without a thought to stages, from the best answer on.

    Args:
        pool: with an answer in it.
        effort: how much to try; about a second each for a thousand nodes.
        may_go_on: asked now and then; False ends the search.

    Returns:
        A value that no placement at all is below.
    """
    problem = pool.problem
    blocks = blocks_of(problem, ordered=False)
    bound = share_bound(blocks.quotient, blocks.fleet)
    affordable = _MOVES * effort > len(blocks.quotient) * _MOVES_PER_BLOCK
    if pool.best is not None and problem.k > 1 and affordable and not pool.reaches(bound):
        start = [pool.best.labels[members[0]] for members in blocks.quotient.members]
        budget = Budget(moves=_MOVES * effort, stop_ns=bound, expired=lambda: not may_go_on())
        pool.offer(blocks.labels(anneal(blocks.quotient, blocks.fleet, start, budget)), "annealing")
    return bound


def _offer(pool: Pool, blocks: Blocks, line: Line, method: str) -> None:
    pool.offer(blocks.labels(line.labels(blocks.quotient, blocks.fleet)), method)
