"""Solvers: a device for every node, so that everything fits and the objective is least. No torch here."""

from __future__ import annotations

from collections.abc import Mapping

from autosplit.device import HOST, Cluster
from autosplit.graph import CostGraph
from autosplit.placement import Objective, Placement, check_placement
from autosplit.solvers.bounds import check_possible, lower_bound
from autosplit.solvers.candidates import does_not_fit, single_devices, splits, two_devices
from autosplit.solvers.latency import side_by_side
from autosplit.solvers.problem import NOTHING_FITS, Pool, Problem
from autosplit.solvers.search import exhaust, improve

__all__ = ["solve"]

_FEW_PLACEMENTS = 1024
_NODE_EVALUATIONS = 60_000
_MOST_EVALUATIONS = 1000


def solve(
    graph: CostGraph,
    cluster: Cluster,
    *,
    objective: Objective = "latency",
    io_device: str = HOST,
    capacities: Mapping[str, int] | None = None,
) -> Placement:
    """Place every node on a device.

    The best is taken of: each device alone; for two devices the exact cut; equal shares of the work; devices filled
    in turn; in program order and in the order of nested min cuts, the best contiguous split; and for latency, where the
    queues of devices run side by side, list schedules and annealing on the makespan. Then moves improve it.

    Args:
        graph: what runs, and what it costs.
        cluster: the devices, in the order in which stages are laid out.
        objective: "latency" (ns of one step, ``autosplit.estimate.makespan``), "throughput" (ns of the busiest device)
            or "memory" (largest peak).
        io_device: where inputs arrive and outputs return: a device, or "host".
        capacities: bytes by device name, in place of ``Device.memory_bytes``.

    Returns:
        A placement that keeps groups together and, by ``estimate.peak_bytes``, every device within its capacity. Its
        bound is proved. It is the same whatever the hash seed.

        Never worse than the best single device, equal split or sequential fill that fits. Exact for one device,
        for latency on two synchronous devices when memory does not bind, and for up to some 10 nodes.
        Else a heuristic with a proved bound. About 1 s for 1,000 nodes and 2 s for 5,000, and another second or two
        for latency where queues run side by side.

    Raises:
        CapacityError: nothing fits (``proved``), or nothing was found that does.
        DeviceError: ``io_device`` or a name in ``capacities`` is not a device of the cluster.

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node, Tensor
    >>> graph = CostGraph(
    ...     [Node(name=name, forward_ns={"*": 10}) for name in "ab"],
    ...     [Tensor(name=f"w{name}", producer=name, size_bytes=600, kind="parameter") for name in "ab"],
    ... )
    >>> solve(graph, parse_cluster("2x1KB")).devices
    {'a': 'gpu:0', 'b': 'gpu:1'}
    """
    problem = Problem(graph, cluster, objective, io_device, capacities)
    check_possible(problem)
    pool = Pool(problem)
    bound = _search(pool, lower_bound(problem))
    best = pool.best
    if best is None or not best.fits:
        raise does_not_fit(pool, proved=bound == NOTHING_FITS)
    devices = dict(zip(graph.nodes, (cluster.names[label] for label in best.labels), strict=True))
    check_placement(graph, devices, cluster)
    return Placement(devices=devices, objective=objective, value=best.score.value, bound=bound, method=best.method)


def _search(pool: Pool, bound: int) -> int:
    """Fill the pool until an answer reaches the bound. Returns the bound, raised by what turned out to be exact."""
    problem = pool.problem
    single_devices(pool)
    if problem.k == 2 and problem.objective == "latency" and not pool.reaches(bound):
        cut_ns = two_devices(pool)
        if problem.is_serial:
            bound = max(bound, cut_ns)
    if pool.reaches(bound):
        return bound
    if problem.k ** len(problem.bundles) > _FEW_PLACEMENTS:
        splits(pool)
        if problem.objective == "latency" and not problem.is_serial:
            side_by_side(pool, bound)
        improve(pool, min(_MOST_EVALUATIONS, max(16, _NODE_EVALUATIONS // problem.n)), bound)
        if pool.fits:
            return bound
    if exhaust(pool):
        return pool.best.score.value if pool.best is not None and pool.best.fits else NOTHING_FITS
    return bound
