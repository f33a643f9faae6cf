"""Candidates: the ways in which a first answer is made, from the plainest to the chain DP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, permutations

from autosplit.errors import CapacityError
from autosplit.solvers.bounds import bundle_needs
from autosplit.solvers.mincut import two_device_cut
from autosplit.solvers.orders.chain import Stages
from autosplit.solvers.orders.layout import layouts
from autosplit.solvers.problem import Answer, Pool, Problem
from autosplit.units import format_bytes

_MOST_PERMUTED = 6
_MOST_ORDERS = 24
_ROUNDS = 8
_MOST_CUT_NODES = 1500


def single_devices(pool: Pool) -> None:
    """Offer everything on one device, for each device."""
    problem = pool.problem
    for device in range(problem.k):
        if problem.classes[device] == device:
            pool.offer([device] * problem.n, "one device")


def two_devices(pool: Pool) -> int:
    """Offer the exact cut for two devices; returns its sum of times, which none is below (0: graph too large)."""
    if pool.problem.n > _MOST_CUT_NODES:
        return 0
    value, labels = two_device_cut(pool.problem)
    pool.offer(labels, "two-device cut")
    return value


def splits(pool: Pool) -> None:
    """Offer equal shares, sequential fill and the chain DP, over every layout and order of devices."""
    problem = pool.problem
    for layout in layouts(problem):
        stages = Stages(problem, layout)
        pins = range(problem.k) if layout.loose else range(1)
        for devices in device_orders(problem):
            for pin in pins:
                limits = _limits(problem, layout.loose, pin)
                for boundaries, name in (
                    (equal_shares(stages, devices), "equal shares"),
                    (sequential_fill(stages, devices, limits), "sequential fill"),
                ):
                    pool.offer(stages.labels(boundaries, devices, pin), f"{name}, {layout.name}")
                _chain(pool, stages, devices, pin, limits)


def device_orders(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Orders of the devices that differ in more than interchangeable devices: the given one first, at most 24."""
    if problem.k > _MOST_PERMUTED:
        yield tuple(range(problem.k))
        return
    yield from islice(_distinct(problem), _MOST_ORDERS)


def _distinct(problem: Problem) -> Iterator[tuple[int, ...]]:
    seen: set[tuple[int, ...]] = set()
    for order in permutations(range(problem.k)):
        kinds = tuple(problem.classes[device] for device in order)
        if kinds not in seen:
            seen.add(kinds)
            yield order


def _limits(problem: Problem, loose: Sequence[Sequence[int]], pin: int) -> list[int]:
    """Capacities, less what the loose groups take on the device that they are pinned to."""
    limits = list(problem.capacity)
    pinned = {tuple(bundle) for bundle in loose}
    for bundle, need in zip(problem.bundles, bundle_needs(problem), strict=True):
        if tuple(bundle) in pinned:
            limits[pin] -= need.base + need.update
    return limits


def equal_shares(stages: Stages, devices: Sequence[int]) -> list[int]:
    """Boundaries where each device has done its share of the compute, on the first device's times."""
    done = stages.compute_ns(devices[0])[0].tolist()
    cuts, boundaries, j = stages.layout.cuts, [0], 0
    for s in range(1, len(devices)):
        while j + 1 < len(cuts) and done[j + 1] * len(devices) <= done[-1] * s:
            j += 1
        boundaries.append(cuts[j])
    return [*boundaries, cuts[-1]]


def sequential_fill(stages: Stages, devices: Sequence[int], limits: Sequence[int]) -> list[int]:
    """Boundaries of filling each device before the next, as Accelerate's device map does. The last takes the rest."""
    cuts, boundaries, j = stages.layout.cuts, [0], 0
    for device in devices[:-1]:
        start = j
        while j + 1 < len(cuts) and stages.bytes[start, j + 1] <= limits[device]:
            j += 1
        boundaries.append(cuts[j])
    return [*boundaries, cuts[-1]]


def _chain(pool: Pool, stages: Stages, devices: Sequence[int], pin: int, limits: Sequence[int]) -> None:
    """Offer the chain DP's answers, with its limits corrected by what the judge finds, until one fits."""
    problem, bounds = pool.problem, list(limits)
    for _ in range(_ROUNDS):
        boundaries = stages.solve(devices, bounds)
        if boundaries is None:
            bounds = [bound + capacity // 8 for bound, capacity in zip(bounds, problem.capacity, strict=True)]
            continue
        answer = pool.offer(stages.labels(boundaries, devices, pin), f"chain DP, {stages.layout.name}")
        if answer.fits:
            return
        for s, device in enumerate(devices):
            over = answer.peaks[device] - problem.capacity[device]
            if over > 0:
                a, b = (stages.layout.cuts.index(boundaries[s + e]) for e in (0, 1))
                bounds[device] = min(bounds[device], int(stages.bytes[a, b])) - over


def does_not_fit(pool: Pool, *, proved: bool) -> CapacityError:
    """The error for a problem without an answer, with what the nearest miss needs."""
    problem, best = pool.problem, pool.best
    names = problem.cluster.names
    has = dict(zip(names, problem.capacity, strict=True))
    needs = dict(zip(names, best.peaks if best is not None else (0,) * problem.k, strict=True))
    rows = _shortages(best, names, problem.capacity)
    what = "no placement fits" if proved else "no placement that fits was found"
    return CapacityError(
        f"{what}: {problem.n} nodes on {problem.k} device(s); the nearest miss: {rows}; "
        "add a device, or use a smaller batch or type",
        needs_bytes=needs,
        has_bytes=has,
        proved=proved,
    )


def _shortages(best: Answer | None, names: Sequence[str], capacity: Sequence[int]) -> str:
    if best is None:
        return "none"
    return ", ".join(
        f"{name} needs {format_bytes(peak)} of {format_bytes(has)}"
        for name, peak, has in zip(names, best.peaks, capacity, strict=True)
        if peak > has
    )
