"""The search for throughput: contiguous stages first, then any placement."""

from __future__ import annotations

from collections.abc import Callable

from autosplit.solvers.anywhere.anneal import Budget, anneal
from autosplit.solvers.anywhere.settle import settle
from autosplit.solvers.anywhere.shares import share_bound
from autosplit.solvers.blocks.compiled import Blocks, blocks_of
from autosplit.solvers.blocks.contract import contracted
from autosplit.solvers.certificate.certify import certify
from autosplit.solvers.orders.layout import loose_groups
from autosplit.solvers.problem import NOTHING_FITS, Pool
from autosplit.solvers.stages.contiguous import by_all_downsets, by_neighbours, by_orders
from autosplit.solvers.stages.line import NEVER, Line
from autosplit.solvers.stages.plain import equal_compute, plain_splits

_STAGES, _USUAL, _LEAST_STAGES = (
    60_000,
    1_000,
    10_000,
)  # stages between spans that the certificate looks at; fewer of more blocks
_MOST_NEIGHBOURED = 300
_MOVES, _MOVES_PER_BLOCK, _TWICE, _VISITS = 1_000, 2, 4, 2_500


def contiguous_stages(pool: Pool, effort: int, may_go_on: Callable[[], bool]) -> int:
    """Offer the best contiguous stages that are found, and the plain splits.

    Args:
        pool: takes them.
        effort: how much to try; about a second each for a few thousand nodes.
        may_go_on: asked now and then; False ends the search.

    Returns:
        A value that no contiguous placement is below.
    """
    problem = pool.problem
    bound = _stages(pool, blocks_of(problem, ordered=True), effort, may_go_on)
    loose = loose_groups(problem)
    if loose and not problem.contiguous:
        _stages(pool, blocks_of(problem, ordered=True, loose=loose), effort, may_go_on)
    return bound


def _stages(pool: Pool, blocks: Blocks, effort: int, may_go_on: Callable[[], bool]) -> int:
    """The same for one way to order the blocks."""
    fewer, _ = contracted(blocks.quotient, blocks.fleet, blocks.flight)
    bound = _searched(pool, blocks._replace(quotient=fewer), effort, may_go_on)
    if not pool.reaches(bound):  # nothing contiguous is below it, so no plain split
        for name, labels in plain_splits(blocks):
            pool.offer(blocks.labels(labels), name)
    return bound


def _searched(pool: Pool, blocks: Blocks, effort: int, may_go_on: Callable[[], bool]) -> int:
    """Offer the best contiguous stages; returns a value that none is below."""
    quotient, fleet, flight = blocks.quotient, blocks.fleet, blocks.flight
    line = by_orders(quotient, fleet, flight)
    if line is None:
        line, proved = by_all_downsets(quotient, fleet, flight, NEVER)
        if line is None:
            return NOTHING_FITS if proved else 0
    _offer(pool, blocks, line, "stages, chain DP")
    found = certify(
        quotient,
        fleet,
        line.value,
        flight=flight,
        effort=effort * max(_LEAST_STAGES, _STAGES * _USUAL // max(_USUAL, len(quotient))),
        stop=lambda: not may_go_on(),
        merged=True,
    )
    if found.labels is not None:
        pool.offer(blocks.labels(found.labels), "stages, nested cuts")
    elif not found.proved and len(quotient) <= _MOST_NEIGHBOURED * effort and may_go_on():
        _offer(pool, blocks, by_neighbours(quotient, fleet, flight, line, may_go_on), "stages, neighbours")
    return found.bound_ns


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
    quotient, fleet = blocks.quotient, blocks.fleet
    bound = share_bound(quotient, fleet)
    affordable = _MOVES * effort > len(quotient) * _MOVES_PER_BLOCK
    if pool.best is None or problem.k == 1 or not affordable or pool.reaches(bound):
        return bound
    bound = _settle(pool, blocks, bound, _VISITS * effort)
    if pool.reaches(bound) or not pool.fits:
        return bound
    moves, labels = _MOVES * effort, _by_block(pool, blocks)
    parts = [(labels, _MOVES)]  # what less effort does is done first, so that more is never worse
    if effort > 1:
        parts.append((labels, moves) if effort < _TWICE else (equal_compute(quotient, fleet), moves))
    for start, share in parts:  # from the best; and from afar, as one long run finds what many short ones do not
        budget = Budget(share, stop_ns=bound, expired=lambda: not may_go_on())
        pool.offer(blocks.labels(anneal(quotient, fleet, start, budget)), "annealing")
        if pool.reaches(bound) or not may_go_on():
            return bound
    return _settle(pool, blocks, bound, _VISITS * effort)


def _by_block(pool: Pool, blocks: Blocks) -> list[int]:
    """The best answer, device by block."""
    assert pool.best is not None
    return [pool.best.labels[members[0]] for members in blocks.quotient.members]


def _settle(pool: Pool, blocks: Blocks, bound: int, visits: int) -> int:
    """Offer what branch and bound makes of the best answer; returns what it proves."""
    if not pool.fits:
        return bound
    settled = settle(blocks.quotient, blocks.fleet, _by_block(pool, blocks), bound, visits=visits)
    pool.offer(blocks.labels(settled.labels), "branch and bound")
    return max(bound, settled.bound_ns)


def _offer(pool: Pool, blocks: Blocks, line: Line, method: str) -> None:
    pool.offer(blocks.labels(line.labels(blocks.quotient, blocks.fleet)), method)
