"""Solvers: a device for every node, so that everything fits and the objective is least. No torch here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import get_args

from msgspec import structs

from autosplit.checker import check
from autosplit.device import HOST, DescribedLike, cluster_of
from autosplit.errors import CapacityError
from autosplit.graph import CostGraph
from autosplit.placement import DIRECT, CostModel, Objective, Placement
from autosplit.solvers.bounds import check_possible, lower_bound
from autosplit.solvers.latency.pieces import offered_pieces
from autosplit.solvers.latency.side_by_side import side_by_side
from autosplit.solvers.orders.candidates import does_not_fit, single_devices, splits, two_devices
from autosplit.solvers.problem import NOTHING_FITS, Pool, Problem
from autosplit.solvers.search import exhaust, improve
from autosplit.solvers.stages.pipeline import Replicate, pipeline, shared_work_ns
from autosplit.solvers.throughput import any_placement, contiguous_stages

__all__ = ["solve"]

_FEW_PLACEMENTS = 1024
_NODE_EVALUATIONS = 60_000
_WORTH_IT = 100  # a split into many pieces must save one part in so many
_MOST_EVALUATIONS, _FEW_EVALUATIONS = 1000, 200


def solve(
    graph: CostGraph,
    devices: DescribedLike,
    *,
    objective: Objective = "latency",
    contiguous: bool = False,
    cost_model: CostModel = DIRECT,
    io_device: str = HOST,
    capacities: Mapping[str, int] | None = None,
    effort: int = 1,
    time_budget_s: float | None = None,
    replicate: Replicate = "none",
    recompute: bool = False,
) -> Placement:
    """Place every node on a device.

    Args:
        graph: what runs, and what it costs.
        devices: in the order of stages: a spec ("2x24GiB"), a path of a cluster.toml, a list of Device, or a Cluster.
        objective: "latency" (ns of one step: ``estimate.makespan``, or ``.pieces`` where transfers go through the
            host), "throughput" (ns of the busiest device) or "memory" (largest peak).
        contiguous: only pipelines: devices can be ordered so that nothing of the forward pass goes back.
        cost_model: what transfers cost, and micro-batches in flight.
        io_device: where inputs arrive and outputs return: a device, or "host".
        capacities: bytes by device name, in place of ``Device.memory_bytes``.
        effort: how much to search where no proof ends it, in units of about a second for a thousand nodes.
        time_budget_s: seconds after which no further search is begun; one that is under way ends first. Without it the
            answer does not depend on the clock.
        replicate: "stages": a stage may run on several devices of one kind, which share its micro-batches; "grid": all
            stages on equally many. Only for contiguous throughput, as ``recompute``.
        recompute: whether nodes that say what they take ``recomputed`` may be, where a stage does not fit else.

    Returns:
        A placement that keeps groups together and every device within its capacity (``checker.replay``), the same
        whatever the hash seed; never worse than the best single device, equal split or sequential fill that fits. Its
        bound is proved, over contiguous placements if ``contiguous``, and without replicas. docs/engine.md says where
        it is exact; elsewhere a gap is left. About a second for a thousand nodes.

    Raises:
        AutosplitError: a bug: the checker, which shares no code with the solvers, found another value, or a fault.
        CapacityError: nothing fits (``proved``), or nothing was found that does.
        GraphError: a node, or a group, has no device on which it may run, or no time for one of these.
        ValueError: an objective or an effort that there is not, or replicas or recomputation for anything else than
            ``objective="throughput", contiguous=True``.
        DeviceError: ``devices`` is none of that, or ``io_device`` or a name in ``capacities`` is not one of them.

    >>> from autosplit.graph import Node
    >>> solve(CostGraph([Node(name=name, fixed_bytes=600) for name in "ab"], []), "2x1KB").devices
    {'a': 'gpu:0', 'b': 'gpu:1'}
    """
    _check_arguments(graph, objective, effort)
    cluster = cluster_of(devices)
    problem = Problem(graph, cluster, objective, io_device, capacities, cost_model, contiguous=contiguous)
    may_go_on = _budget(time_budget_s)
    if (replicate != "none" or recompute) and len(graph):
        found = _replicated(problem, replicate, recompute, effort, may_go_on)
    else:
        found = _searched(problem, effort, may_go_on)
    _check(problem, found, io_device, capacities)
    return found


def _check(problem: Problem, found: Placement, io_device: str, capacities: Mapping[str, int] | None) -> None:
    """The checker's word on what was found."""
    check(
        problem.graph,
        found,
        problem.cluster,
        cost_model=problem.judge.model,
        io_device=io_device,
        capacities=capacities,
        contiguous=problem.contiguous,
    )


def _check_arguments(graph: object, objective: str, effort: int) -> None:
    if not isinstance(graph, CostGraph):
        raise TypeError(f"graph is a {type(graph).__name__}: pass a CostGraph; CostGraph.from_networkx reads a DiGraph")
    if objective not in get_args(Objective) or effort < 1:
        known = ", ".join(get_args(Objective))
        raise ValueError(
            f"objective {objective!r}, effort {effort}: expected one of {known}, and an effort of 1 or more"
        )


def _budget(seconds: float | None) -> Callable[[], bool]:
    """Whether there is time for another search."""
    ends = None if seconds is None else time.monotonic() + seconds
    return lambda: ends is None or time.monotonic() < ends


def _replicated(
    problem: Problem, replicate: Replicate, recompute: bool, effort: int, may_go_on: Callable[[], bool]
) -> Placement:
    """The best pipeline with replicas and recomputation; where that is not proved, never worse than without them."""
    try:
        placement = pipeline(problem, replicate, recompute=recompute, may_go_on=may_go_on)
    except CapacityError as miss:
        if miss.proved:
            raise
        try:
            plain = _searched(problem, effort, may_go_on)
        except CapacityError:
            raise miss from None
        return structs.replace(plain, bound=min(plain.value, shared_work_ns(problem)))
    if placement.gap == 0:
        return placement
    try:
        plain = _searched(problem, effort, may_go_on)
    except CapacityError:
        return placement
    return placement if placement.value <= plain.value else structs.replace(plain, bound=placement.bound)


def _searched(problem: Problem, effort: int, may_go_on: Callable[[], bool]) -> Placement:
    """The best placement of all searches, every node on one device."""
    check_possible(problem)
    pool = Pool(problem)
    bound = _Search(pool, effort, may_go_on).run(lower_bound(problem))
    best = pool.best
    if best is None or not best.fits:
        raise does_not_fit(pool, proved=bound == NOTHING_FITS)
    names, graph = problem.cluster.names, problem.graph
    placed = dict(zip(graph.nodes, (names[label] for label in best.labels), strict=True))
    value, method = best.score.value, best.method
    return Placement(devices=placed, objective=problem.objective, value=value, bound=bound, method=method)


class _Search:
    """The order in which the searches are tried.

    Args:
        pool: takes their answers.
        effort: how much to try.
        may_go_on: whether there is time for more.
    """

    def __init__(self, pool: Pool, effort: int, may_go_on: Callable[[], bool]) -> None:
        self.pool, self.problem, self.effort, self.may_go_on = pool, pool.problem, effort, may_go_on

    def run(self, bound: int) -> int:
        """Fill the pool until an answer reaches the bound. Returns the bound, raised by what turned out to be exact."""
        pool, problem = self.pool, self.problem
        single_devices(pool)
        if problem.offers_pieces:
            bound = max(bound, offered_pieces(pool, self.effort))
        if problem.k == 2 and problem.objective == "latency" and not pool.reaches(bound):
            cut_ns = two_devices(pool)
            if problem.is_serial and not problem.offers_pieces:
                bound = max(bound, cut_ns)
        if problem.k ** len(problem.bundles) > _FEW_PLACEMENTS and not pool.reaches(bound):
            bound = max(bound, self._heuristics(bound))
            if pool.fits:
                return bound
        if not pool.reaches(bound) and exhaust(pool):
            return pool.best.score.value if pool.best is not None and pool.best.fits else NOTHING_FITS
        return bound

    def _heuristics(self, bound: int) -> int:
        """Offer what the searches for large problems find. Returns a value that nothing is below."""
        if self.problem.objective == "throughput":
            bound = self._throughput(bound)
        if not self.pool.fits or (self.problem.objective != "throughput" and self.may_go_on()):
            splits(self.pool)
        simple = self.pool.best
        if not self.may_go_on() and self.pool.fits:
            return bound
        if self.problem.runs_side_by_side and not self.pool.reaches(bound * _WORTH_IT // (_WORTH_IT - 1)):
            side_by_side(self.pool, bound)
        self._improve(bound)
        if self.problem.runs_side_by_side:
            self.pool.prefer(simple, _WORTH_IT)
        return bound

    def _throughput(self, bound: int) -> int:
        proved = contiguous_stages(self.pool, self.effort, self.may_go_on)
        if self.problem.contiguous:
            return max(bound, proved)
        return max(bound, any_placement(self.pool, self.effort, self.may_go_on))

    def _improve(self, bound: int) -> None:
        """Moves, unless there are so few in the effort that annealing has done more already."""
        tries = min(self.effort, 4) * min(_MOST_EVALUATIONS, max(16, _NODE_EVALUATIONS // max(1, self.problem.n)))
        searched = self.problem.objective == "throughput" and self.pool.fits and tries < _FEW_EVALUATIONS
        if not searched and not self.pool.reaches(bound) and self.may_go_on():
            improve(self.pool, tries, bound)
