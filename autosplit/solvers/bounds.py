"""Proofs: what no placement can beat, and what no placement can fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from autosplit.errors import CapacityError
from autosplit.estimate.makespan import queues
from autosplit.solvers.problem import Problem
from autosplit.units import format_bytes

_SPEED = 10**18


def lower_bound(problem: Problem) -> int:
    """A value that no placement that fits is below.

    latency: what the host and the queues must do between them, and the longest path. throughput: every bundle on its
    best device, spread evenly, or the largest bundle. memory: the weights (in training their gradients and optimizer
    state too) spread as evenly as the capacities allow, or the most that one bundle needs at once.
    O(devices * nodes + reads).
    """
    if problem.objective == "memory":
        needs = bundle_needs(problem)
        even = _level(sum(need.base + need.update for need in needs), sorted(problem.capacity))
        return max(even, max((need.alone for need in needs), default=0))
    if problem.objective == "latency":
        offered = problem.judge.model.transfers == "host"  # a host has as many cores as it needs
        return max(0 if offered else shared_work(problem), critical_path(problem))
    plain = problem.judge.model.transfers == "direct" and not problem.judge.model.overlap
    unary = problem.unary_ns if plain else problem.judge.node_ns
    least = [
        min(sum(unary[device][i] for i in bundle) for device in devices)
        for bundle, devices in zip(problem.bundles, problem.bundle_devices, strict=True)
    ]
    return max(-(-sum(least) // problem.k), max(least, default=0))


def shared_work(problem: Problem) -> int:
    """The latency that no sharing of the work between the host and the queues is below. O(devices * nodes).

    A bundle on device d takes its time of d's queue and some time of the host, which does a synchronous device's work
    and starts an accelerator's. For weights w of the clocks, whose sum is 1, no makespan is below the sum over bundles
    of the least, over devices, of the weighted times: weak duality of the linear program of unrelated machines
    (Lenstra, Shmoys, Tardos 1990). Tried are all weight on the host (all there is when every device is synchronous),
    equal weights of the queues, and weights as the speeds.
    """
    judge = problem.judge
    clock = queues(judge)
    queued, hosted = _work(problem)
    speeds = [0] * (judge.k + 1)
    for device, times in enumerate(queued):
        total = sum(times)
        speeds[clock[device]] = max(speeds[clock[device]], _SPEED // total if total else 0)
    plain = [0] * (judge.k + 1)
    for used in set(clock[: judge.k]):
        plain[used] = 1
    best = 0
    for weight in ([0] * judge.k + [1], plain, speeds):
        total = sum(weight)
        if total:
            rows = []
            for d in range(judge.k):
                on_host = weight[judge.k] if clock[d] != judge.k else 0
                pairs = zip(queued[d], hosted[d], strict=True)
                rows.append([weight[clock[d]] * own + on_host * host for own, host in pairs])
            best = max(best, -(-sum(map(min, zip(*rows, strict=True))) // total))
    return best


def _work(problem: Problem) -> tuple[list[list[int]], list[list[int]]]:
    """By device and bundle: nanoseconds on the device's own clock, and what of the host's a queue costs besides."""
    judge = problem.judge
    clock = queues(judge)
    queued = [[sum(times[i] for i in bundle) for bundle in problem.bundles] for times in problem.unary_ns]
    hosted = [[0] * judge.n for _ in range(judge.k)]
    for d in range(judge.k):
        launch = judge.launch_ns[d]
        for i, (forward, total) in enumerate(zip(judge.forward_ns[d], judge.node_ns[d], strict=True)):
            hosted[d][i] += min(launch, forward) + min(launch, total - forward)
    if clock[judge.io] == judge.k:  # the host takes part in its own transfers
        for d, (own, both) in enumerate(zip(judge.node_ns, problem.unary_ns, strict=True)):
            for i in range(judge.n):
                hosted[d][i] += both[i] - own[i]
    return queued, [[sum(row[i] for i in bundle) for bundle in problem.bundles] for row in hosted]


def critical_path(problem: Problem) -> int:
    """The longest chain of nodes, each on its fastest device, transfers free; O(devices * nodes + reads).

    In training a chain goes forward to some node, and from its backward on against the gradients.
    """
    judge = problem.judge
    forward = [min(times) for times in zip(*judge.forward_ns, strict=True)]
    both = zip(zip(*judge.node_ns, strict=True), zip(*judge.forward_ns, strict=True), strict=True)
    backward = [min(map(int.__sub__, total, first)) for total, first in both]
    before: list[list[int]] = [[] for _ in range(judge.n)]
    after: list[list[int]] = [[] for _ in range(judge.n)]
    for item in judge.items:
        if not item.weight and not item.input:
            for reader in item.readers:
                before[reader].append(item.producer)
                if item.grad:
                    after[reader].append(item.producer)
    there = [0] * judge.n
    back = [0] * judge.n
    for i in range(judge.n):
        there[i] = forward[i] + max((there[j] for j in before[i]), default=0)
        back[i] = backward[i] + max((back[j] for j in after[i]), default=0)
    return max(map(int.__add__, there, back), default=0)


def _level(total: int, capacities: Sequence[int]) -> int:
    """The least level to which devices, in order of capacity, must be filled to hold ``total`` bytes."""
    level = 0
    for i, capacity in enumerate(capacities):
        level = -(-total // (len(capacities) - i))
        if level <= capacity:
            return level
        total -= capacity
    return level


class Need(NamedTuple):
    """What one bundle takes at least, in bytes, on the device that it is placed on.

    Attributes:
        base: weights and optimizer state, there for good; additive over the bundles of a device.
        update: parameters' gradients and the optimizer's own bytes at the step; additive too.
        working: activations that its hungriest node has at hand.
        alone: all that the bundle takes when it has a device for itself.
    """

    base: int
    update: int
    working: int
    alone: int


_NEEDS: WeakKeyDictionary[Problem, list[Need]] = WeakKeyDictionary()  # several searches ask


def bundle_needs(problem: Problem) -> list[Need]:
    """A lower bound of what each bundle takes. O(reads), once for each problem."""
    if problem not in _NEEDS:
        _NEEDS[problem] = _needs(problem)
    return _NEEDS[problem]


def _needs(problem: Problem) -> list[Need]:
    judge = problem.judge
    bundle_of = {i: b for b, bundle in enumerate(problem.bundles) for i in bundle}
    base = [sum(judge.fixed[i] + judge.stash[i] for i in bundle) for bundle in problem.bundles]
    update = [0] * len(problem.bundles)
    home: dict[int, int] = {}
    least: dict[int, int] = {}
    touched: list[set[int]] = [set() for _ in range(problem.n)]
    for item in judge.items:
        # A node may find a storage as its allocation or as a copy of any tensor in it: the smallest counts.
        least[item.storage] = min(item.copy, item.bytes, least.get(item.storage, item.copy))
        for i in (item.producer, *item.readers):
            touched[i].add(item.storage)
        if item.weight:
            b = bundle_of[item.producer]
            base[b] += item.state * judge.train
            update[b] += (item.copy * item.grad + item.step) * judge.train
            if item.storage not in home:  # tied weights count once, so that sums stay lower bounds
                home[item.storage] = b
                base[b] += item.bytes
    needs = []
    for b, bundle in enumerate(problem.bundles):
        working, alone = 0, 0
        for i in bundle:
            ours = [storage for storage in touched[i] if storage not in home]
            foreign = [storage for storage in touched[i] if home.get(storage, b) != b]
            size = judge.workspace[i] + sum(least[storage] for storage in ours)
            working = max(working, size)
            alone = max(alone, size + sum(least[storage] for storage in foreign))
        needs.append(Need(base[b], update[b], working, base[b] + max(update[b], alone)))
    return needs


def check_possible(problem: Problem) -> None:
    """Refuse a problem that a bound proves impossible.

    Raises:
        CapacityError: proved; the weights need more than all devices together have, or one bundle needs more than the
            largest device has.
    """
    problem.check_devices()
    needs = bundle_needs(problem)
    names, has = problem.cluster.names, dict(zip(problem.cluster.names, problem.capacity, strict=True))
    what = "weights, gradients and optimizer state" if problem.judge.train else "weights"
    total, room = sum(need.base + need.update for need in needs), sum(problem.capacity)
    if total > room:
        share = -(-total // problem.k)
        raise CapacityError(
            f"{problem.n} nodes on {problem.k} device(s): {what} alone need {format_bytes(total)}, "
            f"all devices together have {format_bytes(room)}; add a device or use a smaller type",
            needs_bytes={name: max(share, has[name]) for name in names},
            has_bytes=has,
            proved=True,
        )
    largest = max(problem.capacity)
    for bundle, need in zip(problem.bundles, needs, strict=True):
        if need.alone > largest:
            name = list(problem.graph.nodes)[bundle[0]]
            raise CapacityError(
                f"node {name!r}{' and its group' if len(bundle) > 1 else ''} needs {format_bytes(need.alone)} "
                f"on one device, the largest has {format_bytes(largest)}; use a larger device or a smaller batch",
                needs_bytes=dict.fromkeys(names, need.alone),
                has_bytes=has,
                proved=True,
            )
