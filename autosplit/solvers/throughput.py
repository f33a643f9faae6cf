"""The search for throughput: contiguous stages first, then any placement."""

from __future__ import annotations

from autosplit.solvers.blocks import Blocks, blocks_of
from autosplit.solvers.contiguous import by_all_downsets, by_neighbours, by_orders
from autosplit.solvers.line import NEVER, Line
from autosplit.solvers.plain import plain_splits
from autosplit.solvers.problem import Pool

_MOST_NEIGHBOURED = 2000


def contiguous_stages(pool: Pool) -> int:
    """Offer the best contiguous stages that are found, and the plain splits.

    Returns:
        A value that no contiguous placement is below (0: none is known).
    """
    blocks = blocks_of(pool.problem, ordered=True)
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
        line = by_neighbours(blocks.quotient, blocks.fleet, blocks.flight, line, lambda: True)
        _offer(pool, blocks, line, "stages, neighbours")
    return 0


def _offer(pool: Pool, blocks: Blocks, line: Line, method: str) -> None:
    pool.offer(blocks.labels(line.labels(blocks.quotient, blocks.fleet)), method)
