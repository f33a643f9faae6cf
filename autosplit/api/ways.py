"""Ways out of a misfit: what would make the model fit, each planned again before it is offered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec

from autosplit import estimate
from autosplit.api.batch import Trials, largest
from autosplit.api.describe import describe
from autosplit.api.problem import Problem, Request
from autosplit.api.recompute import recomputing
from autosplit.api.search import search
from autosplit.device import Cluster
from autosplit.errors import AutosplitError, WayOut
from autosplit.placement import Plan
from autosplit.runtime import unsplit_class

_OPTIMIZERS = {"adafactor": "Adafactor", "sgd": "SGD without momentum"}
"""Those that keep less than Adam, by name."""

_COST = {"batch": 0, "recompute": 0, "optimizer": 1, "devices": 2}
"""What a kind costs before its time counts: nothing; another course of training; money."""


def find_ways_out(
    trials: Trials, samples: int | None, short_bytes: int, budget_s: float
) -> tuple[tuple[WayOut, ...], tuple[str, ...]]:
    """The ways out of a problem that does not fit, cheapest first.

    Each is planned as the problem was, to the exact check of memory; what does not fit either is not offered.

    Args:
        trials: the problem, as it was posed.
        samples: the batch that does not fit; None when the inputs have none.
        short_bytes: what all devices together lack.
        budget_s: no new plan or try is begun after so many seconds.

    Returns:
        The ways, and the kinds that there was no time for.
    """
    end_s = time.monotonic() + budget_s
    search_for = _Ways(trials, samples, short_bytes, end_s)
    found: list[WayOut] = []
    not_tried: list[str] = []
    kinds = search_for.kinds()
    for i, (kind, ways) in enumerate(kinds.items()):  # those that need no capture first: they are found soonest
        search_for.share_time(end_s, len(kinds) - i)
        try:
            found += ways()
        except _OutOfTimeError:
            not_tried.append(kind)
    return tuple(sorted(found, key=lambda way: (_COST[way.kind], way.relative_time))), tuple(not_tried)


class _OutOfTimeError(Exception):
    """The budget is spent."""


class _Ways:
    """Looks for the ways out of one problem."""

    def __init__(self, trials: Trials, samples: int | None, short_bytes: int, until_s: float) -> None:
        self.trials, self.samples, self.short_bytes, self.until_s = trials, samples, short_bytes, until_s
        self.base = trials.problem(samples)

    def kinds(self) -> dict[str, Callable[[], Iterator[WayOut]]]:
        """What can help here."""
        request = self.base.request
        kinds: dict[str, Callable[[], Iterator[WayOut]]] = {}
        if request.placement is None and request.strategy in ("auto", "split"):
            kinds["devices"] = self.more_devices
        if request.mode == "train":
            kinds["optimizer"] = self.other_optimizers
        if self.samples is not None and self.samples > 1:
            kinds["batch"] = self.fewer_samples
        if request.mode == "train" and request.placement is None:  # by hand: its names are of nodes that go away
            kinds["recompute"] = self.recompute
        return kinds

    def other_optimizers(self) -> Iterator[WayOut]:
        """The same step with an optimizer that keeps less."""
        for name, words in _OPTIMIZERS.items():
            plan = self.planned(self.posed(replace(self.base.request, optimizer=name)))
            if plan is not None:
                yield self.way("optimizer", f"optimizer={name!r}", f"train with {words}", plan)

    def more_devices(self) -> Iterator[WayOut]:
        """More of the largest device: first as many as have room for what is short, then twice and four times that."""
        cluster = self.base.cluster
        like = max(cluster.devices, key=lambda device: device.memory_bytes)
        count = len(cluster.devices)
        fewest = max(1, -(-self.short_bytes // like.memory_bytes))
        for more in (fewest, 2 * fewest, 4 * fewest):
            larger = _with_more(cluster, like.name, more)
            plan = self.planned(self.posed(replace(self.base.request, cluster=larger)))
            if plan is not None:
                used = len(set(plan.placement.values()) | set(cluster.names)) - count  # others were left over
                words = f"{'one' if used == 1 else used} more device{'s' if used > 1 else ''} like {like.name}"
                yield self.way("devices", words, f"give {count + used} devices in place of {count}", plan)
                return

    def recompute(self) -> Iterator[WayOut]:
        """The repeated blocks keep their inputs alone, and compute the rest again in the backward."""
        for changed in recomputing(self.trials.model):
            if self.is_late():
                raise _OutOfTimeError
            trials = replace(
                self.trials, model=changed.model, written=unsplit_class(changed.model), captured={}, posed={}
            )
            try:
                problem = trials.problem(self.samples)
            except AutosplitError:
                continue
            plan = self.planned(problem) if problem.captured.rung == self.base.captured.rung else None
            if plan is not None:
                yield self.way("recompute", changed.write, changed.how, plan)
                return

    def fewer_samples(self) -> Iterator[WayOut]:
        """As many samples at once as fit."""
        samples = self.samples or 0
        try:
            best = largest(self.accumulating(), samples - 1, may_go_on=lambda: not self.is_late())
            plan = describe(best.problem, best.candidate)
        except AutosplitError:
            if self.is_late():
                raise _OutOfTimeError from None
            return
        how, write = f"pass {best.batch} samples at once in place of {samples}", f"batch={best.batch}"
        if self.base.request.mode == "train":
            calls = -(-samples // best.batch) * self.base.request.accumulate
            how, write = f"{how}, and step after {calls} calls", f"{write}, accumulate={calls}"
        yield self.way("batch", write, how, plan, times=samples / best.batch)

    def accumulating(self) -> Trials:
        """The same trials, in training with gradients that are there already when the next samples come."""
        if self.base.request.mode == "infer":
            return self.trials
        calls = max(3, self.trials.request.accumulate)  # more are all like the third
        return replace(self.trials, request=replace(self.trials.request, accumulate=calls), posed={})

    def posed(self, request: Request) -> Problem:
        """The same capture, for another request."""
        return Problem(self.base.model, request, self.base.captured, self.base.io_device)

    def share_time(self, end_s: float, count: int) -> None:
        """The next of ``count`` kinds has as much of the time that is left until ``end_s`` as each after it."""
        now_s = time.monotonic()
        self.until_s = now_s + max(0.0, end_s - now_s) / count

    def is_late(self) -> bool:
        """Whether the time is spent."""
        return time.monotonic() >= self.until_s

    def planned(self, problem: Problem) -> Plan | None:
        """The plan of a changed problem; None when it does not fit either.

        Raises:
            _OutOfTimeError: the budget was spent before.
        """
        if self.is_late():
            raise _OutOfTimeError
        try:
            return describe(problem, search(problem, lambda: not self.is_late()))
        except AutosplitError:
            if self.is_late():
                raise _OutOfTimeError from None
            return None

    def way(self, kind: str, write: str, how: str, plan: Plan, times: float = 1.0) -> WayOut:
        """What is offered for a plan that fits; the same work takes ``times`` steps of it."""
        devices = plan.prediction.devices
        return WayOut(
            kind=kind,
            write=write,
            how=how,
            strategy=plan.strategy,
            peak_bytes={name: predicted.peak_bytes for name, predicted in devices.items()},
            reserved_bytes={name: predicted.reserved_bytes for name, predicted in devices.items()},
            step_ns=plan.prediction.step_ns,
            relative_time=times * plan.prediction.step_ns / max(1, self.unbounded_ns()),
        )

    def unbounded_ns(self) -> int:
        """One step on the fastest device, were its memory without end."""
        graph, cluster = self.base.graph, self.base.cluster
        return min(
            estimate.step_ns(graph, dict.fromkeys(graph.nodes, name), cluster, self.base.io_device)
            for name in cluster.names
        )


def _with_more(cluster: Cluster, like: str, more: int) -> Cluster:
    """The cluster with devices added that are, and are linked, as one that it has."""
    device, kind = cluster.device(like), like.partition(":")[0]
    devices, links = list(cluster.devices), list(cluster.links)
    number = 0
    for _ in range(more):
        while f"{kind}:{number}" in {known.name for known in devices}:
            number += 1
        name = f"{kind}:{number}"
        links += [msgspec.structs.replace(link, src=name) for link in cluster.links if link.src == like]
        links += [msgspec.structs.replace(link, dst=name) for link in cluster.links if link.dst == like]
        devices.append(msgspec.structs.replace(device, name=name))
    return msgspec.structs.replace(cluster, devices=tuple(devices), links=tuple(links))
