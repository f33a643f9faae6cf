"""From a problem to a placement that fits: solved again for less memory when the exact prediction says no."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from autosplit import estimate
from autosplit.api.problem import Candidate, Problem
from autosplit.device import HOST
from autosplit.emit import assign
from autosplit.errors import CapacityError, PlanError
from autosplit.graph import CostGraph
from autosplit.placement import Objective, Placement
from autosplit.solvers import solve
from autosplit.units import format_bytes

_SHARES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76)
_LOOSE = 1.25


def search(problem: Problem, may_go_on: Callable[[], bool] = lambda: True) -> Candidate:
    """The placement to plan: as asked by hand, on one device, or the best split that fits.

    ``may_go_on`` is asked before each try after the first; once it says no, the search gives up.

    Raises:
        CapacityError: nothing was found that fits.
        PlanError: a placement by hand names what is not there.
    """
    fixed = fixed_placement(problem)
    return _solve_until_it_fits(problem, may_go_on) if fixed is None else fitting(problem, fixed)


def fixed_placement(problem: Problem) -> Placement | None:
    """The only placement that what was asked leaves open; None when there is something to solve."""
    request = problem.request
    if request.placement is not None:
        return _by_hand(problem, request.placement)
    if request.strategy in ("single", "replicate"):
        return _on_one_device(problem)
    return None


def fitting(problem: Problem, placement: Placement) -> Candidate:
    """The placement run on fakes.

    Raises:
        CapacityError: it does not fit.
    """
    candidate = problem.evaluate(placement)
    if over(problem, candidate):
        raise does_not_fit(problem, candidate)
    return candidate


def _by_hand(problem: Problem, wanted: Mapping[str, str]) -> Placement:
    """A placement from node names or module paths; what they leave open follows its weights or inputs."""
    nodes = problem.graph.nodes.values()
    keys = {node.name: _key_of(node.name, node.module, wanted) for node in nodes}
    known = {*keys, *(path for module in {node.module for node in nodes} for path in _paths(module))}
    for key, device in wanted.items():
        problem.cluster.device(device)
        if key not in known:
            raise PlanError(f"placement key {key!r} is neither a node nor the path of a module that computes something")
    named = {name: wanted[key] for name, key in keys.items() if key is not None}
    assignment = assign(problem.program, named, {}, problem.cluster.names[0])
    devices = {problem.program.names[node]: assignment.devices[node] for node in problem.program.nodes}
    return _valued(problem, devices, "by hand")


def _key_of(node: str, module: str, wanted: Mapping[str, str]) -> str | None:
    """What places a node: its own name, else the longest path that it is within."""
    return next((key for key in (node, *_paths(module)) if key in wanted), None)


def _paths(module: str) -> Iterator[str]:
    """A module's path, and those of the modules around it, the model's own "" last."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _on_one_device(problem: Problem) -> Placement:
    """Everything on the device that runs it soonest."""
    options = [
        _valued(problem, dict.fromkeys(problem.graph.nodes, name), "one device") for name in problem.cluster.names
    ]
    return min(options, key=lambda placement: placement.value)


def _valued(problem: Problem, devices: dict[str, str], method: str) -> Placement:
    value = estimate.value(problem.graph, devices, problem.cluster, problem.objective, io_device=problem.io_device)
    return Placement(devices=devices, objective=problem.objective, value=value, bound=0, method=method)


def _solve_until_it_fits(problem: Problem, may_go_on: Callable[[], bool]) -> Candidate:
    """Solve with the fast estimate and check with the exact tracker; when that says no, solve for less memory.

    The estimate is near, but what the caching allocator reserves beyond it is not smooth in the placement: so several
    shares of the capacity are tried, and then other objectives, each placement once.
    """
    seen: set[tuple[str, ...]] = set()
    misses: list[Candidate] = []
    refused: list[CapacityError] = []
    for objective, share in _tries(problem.objective):
        if (misses or refused) and not may_go_on():
            break
        limits = {name: int(size * share) for name, size in problem.has_bytes().items()}
        try:
            placement = _solve(problem, objective, limits)
        except CapacityError as error:
            refused.append(error)
            if not misses and (error.proved or share == _LOOSE):
                break
            continue
        key = tuple(placement.devices.values())
        if key not in seen:
            seen.add(key)
            candidate = problem.evaluate(placement)
            if not over(problem, candidate):
                return candidate
            misses.append(candidate)
    if not misses:
        raise refused[0]
    raise does_not_fit(problem, min(misses, key=lambda candidate: sum(over(problem, candidate).values())))


def _tries(objective: Objective) -> Iterator[tuple[Objective, float]]:
    """Objective and share of each capacity, in the order in which they are tried."""
    for share in _SHARES:
        yield objective, share
    yield "memory", _LOOSE  # the estimate may err on the safe side: look beyond the capacity too
    for share in _SHARES:
        yield "throughput", share


def _solve(problem: Problem, objective: Objective, limits: Mapping[str, int]) -> Placement:
    placement = solve(
        problem.graph, problem.cluster, objective=objective, io_device=problem.io_device, capacities=limits
    )
    if problem.request.strategy == "split" and len(set(placement.devices.values())) == 1 and objective != "memory":
        return _solve(problem, "memory", limits)
    if len(set(placement.devices.values())) > 1 and problem.request.objective == problem.request.strategy == "auto":
        alone = fitting_alone(problem, limits)
        if alone is not None:
            return msgspec.structs.replace(alone, bound=placement.bound)
    return _from_the_first(problem, placement)


def fitting_alone(problem: Problem, limits: Mapping[str, int]) -> Placement | None:
    """The fastest device that by the fast estimate holds the whole model; None when none does.

    It is for who asked for nothing: a model that fits one device is replicated, though a split of its branches over the
    queues of several may be faster.
    """
    found, seen = None, set()
    for name, limit in limits.items():
        alike = (problem.cluster.first_alike[name], limit, name == problem.io_device)
        if alike in seen:
            continue
        seen.add(alike)
        devices = dict.fromkeys(problem.graph.nodes, name)
        if estimate.peak_bytes(problem.graph, devices, problem.cluster, problem.io_device)[name] <= limit:
            placement = _valued(problem, devices, "one device")
            found = placement if found is None or placement.value < found.value else found
    return found


def _from_the_first(problem: Problem, placement: Placement) -> Placement:
    """The same placement with identical devices used in their order, where nothing tells them apart."""
    cluster = problem.cluster
    if problem.io_device != HOST:
        return placement
    free: dict[str, list[str]] = {}
    for name in cluster.names:
        free.setdefault(cluster.first_alike[name], []).append(name)
    renamed: dict[str, str] = {}
    for name in placement.devices.values():
        if name not in renamed:
            renamed[name] = free[cluster.first_alike[name]].pop(0)
    devices = {node: renamed[name] for node, name in placement.devices.items()}
    return msgspec.structs.replace(placement, devices=devices)


def sketch(problem: Problem, graph: CostGraph, has_bytes: Mapping[str, int]) -> Placement | None:
    """The first placement that fits by the fast estimate, at the costs of ``graph``; None when none is found."""
    fixed = fixed_placement(problem)
    if fixed is not None:
        peaks = estimate.peak_bytes(graph, fixed.devices, problem.cluster, problem.io_device)
        return fixed if all(peaks[name] <= has for name, has in has_bytes.items()) else None
    try:
        return solve(
            graph, problem.cluster, objective=problem.objective, io_device=problem.io_device, capacities=has_bytes
        )
    except CapacityError:
        return None


def over(problem: Problem, candidate: Candidate) -> dict[str, int]:
    """Bytes missing by device."""
    has = problem.has_bytes()
    needs = {name: footprint.reserved_bytes for name, footprint in candidate.footprints.items()}
    return {name: need - has[name] for name, need in needs.items() if need > has[name]}


def does_not_fit(problem: Problem, candidate: Candidate) -> CapacityError:
    """The error that says what each device needs and has."""
    has = problem.has_bytes()
    needs = {name: footprint.reserved_bytes for name, footprint in candidate.footprints.items()}
    rows = [
        f"{name} needs {format_bytes(needs[name])} of {format_bytes(has[name])} (short {format_bytes(short)})"
        for name, short in over(problem, candidate).items()
    ]
    return CapacityError(
        f"{type(problem.model).__name__} does not fit, mode {problem.request.mode}: {'; '.join(rows)}; "
        "give fewer samples or more devices; ways_out() of this error plans what would fit",
        needs_bytes=needs,
        has_bytes=has,
    )
