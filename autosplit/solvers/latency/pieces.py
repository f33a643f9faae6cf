"""The search for latency when a host offers whole pieces of the program to accelerators."""

from __future__ import annotations

from autosplit.solvers.blocks.compiled import nodes_of
from autosplit.solvers.latency.offload import offload
from autosplit.solvers.problem import Pool

_MOVES = 4_000


def offered_pieces(pool: Pool, effort: int) -> int:
    """Offer the best pieces that are found.

    Args:
        pool: of a problem with transfers through a host.
        effort: how much to try.

    Returns:
        A value that no placement is below; 0 when some node may not run on a host, or there is none: then no search is
        made.
    """
    problem = pool.problem
    host = problem.judge.is_host.index(True)
    if any(host not in devices for devices in problem.bundle_devices):
        return 0
    blocks = nodes_of(problem)
    found = offload(blocks.quotient, blocks.fleet, problem.bundles, moves=_MOVES * effort)
    pool.offer(blocks.labels(found.labels), "offloaded pieces")
    return found.bound_ns if blocks.is_exact else 0
