"""Weighing: what each strategy is predicted to take for one problem, as the options of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import msgspec

from autosplit import estimate
from autosplit.api.batch import Trials
from autosplit.api.pipelines import Pipelines, Sketch, on_some
from autosplit.api.problem import Candidate, Problem
from autosplit.api.search import fitting_alone, sketch
from autosplit.device import Cluster
from autosplit.errors import AutosplitError, CapacityError
from autosplit.estimate.replicas import exchange_ns, group_exchange_ns
from autosplit.placement import Option, Placement
from autosplit.units import format_ns

WORTH = 1.05
"""Another strategy than the first that works must be faster by so much: estimates are no better than that."""


@dataclass(frozen=True)
class Replicas:
    """Replicas of a split, or of a pipeline where there is a sketch: ``groups`` has the devices of each."""

    groups: tuple[tuple[str, ...], ...]
    problem: Problem
    placement: Placement
    sketch: Sketch | None
    step_ns: int
    busy_ns: int

    @property
    def words(self) -> str:
        """What they are, for people."""
        inner = f"a split over {len(self.groups[0])} devices" if self.sketch is None else self.sketch.words
        return f"{len(self.groups)} replicas of {inner}"


class Weighing:
    """The options for one problem; each is worked out when it is first asked for.

    Args:
        trials: the model at any batch.
        problem: the call as a whole.
        found: the best placement of a call as a whole that was run on fakes; None where nothing fits so.
    """

    def __init__(self, trials: Trials, problem: Problem, found: Candidate | None) -> None:
        self.trials, self.problem, self.found = trials, problem, found
        self.cluster, self.graph = problem.cluster, problem.graph
        self.devices = {device.name: device for device in self.cluster.devices}
        self.samples = trials.example.samples or None
        self.pipelines = Pipelines(trials, problem)
        self.sketch: Sketch | None = None
        self.replicas: Replicas | None = None

    @cached_property
    def by(self) -> Literal["step", "sample"]:
        """What is compared: the time of one request for latency, else that of a sample."""
        request = self.problem.request
        if request.mode == "train" or request.objective == "throughput":
            return "sample"
        return "sample" if request.objective == "auto" and self.alone is not None else "step"

    @cached_property
    def alone(self) -> Placement | None:
        """Everything on the fastest device that holds it."""
        return fitting_alone(self.problem, self.problem.has_bytes())

    @property
    def is_whole(self) -> bool:
        """Whether the call as a whole was placed on one device."""
        return self.found is not None and len(set(self.found.placement.devices.values())) == 1

    @cached_property
    def works_side_by_side(self) -> bool:
        """Whether devices can work at the same time in one process."""
        return not all(device.is_synchronous for device in self.cluster.devices)

    def time(self, option: Option) -> float:
        """What is compared, in ns; less is better."""
        step_ns = option.step_ns or 0
        return step_ns if self.by == "step" or not option.samples else step_ns / option.samples

    # ---------------------------------------------------------------- a call as a whole

    @cached_property
    def single(self) -> Option:
        """All on one device."""
        if self.alone is None:
            return self._misfit("single", 1)
        device = next(iter(self.alone.devices.values()))
        return self._option(
            "single",
            f"all on {device}",
            1,
            step_ns=self._step_ns(self.alone.devices),
            busy_ns=sum(estimate.busy_ns(self.graph, self.alone.devices, self.cluster).values()),
            needs=self._peaks(self.alone.devices),
        )

    @cached_property
    def replicate(self) -> Option:
        """A copy on each device that holds one."""
        if self.alone is None:
            return self._misfit("replicate", len(self.devices))
        copies = {name: dict.fromkeys(self.graph.nodes, name) for name in self.devices}
        needs = {name: self._peaks(copy)[name] for name, copy in copies.items()}
        held = [name for name, size in needs.items() if size <= self.devices[name].memory_bytes]
        exchanged_ns = exchange_ns(self.graph, self.cluster, held)
        words = f"a copy on each of {len(held)} devices"
        if self.problem.request.mode == "train":
            words += f", {format_ns(exchanged_ns)} of exchanging gradients after the backward"
        return self._option(
            "replicate",
            words,
            len(held),
            step_ns=max(self._step_ns(copies[name]) for name in held) + exchanged_ns,
            busy_ns=sum(estimate.busy_ns(self.graph, copies[name], self.cluster)[name] for name in held),
            needs={name: needs[name] for name in held},
            samples=self.samples and self.samples * len(held),
        )

    @cached_property
    def split(self) -> Option:
        """The call as a whole over several devices."""
        if self.found is None:
            return Option(strategy="split", words="no split was found that fits", devices=len(self.devices), by=self.by)
        devices = self.found.placement.devices
        used = len(set(devices.values()))
        if used == 1:
            return Option(
                strategy="split", words="not weighed: one device holds the model", devices=len(self.devices), by=self.by
            )
        words, step_ns = f"a call as a whole over {used} devices", self._step_ns(devices)
        if self.problem.request.mode == "infer" and self.found.placement.objective == "throughput":
            words += ", one call after another: the time of the busiest"
            step_ns = self.found.placement.value
        return self._option(
            "split",
            words,
            used,
            step_ns=step_ns,
            busy_ns=sum(estimate.busy_ns(self.graph, devices, self.cluster).values()),
            needs={name: print_.reserved_bytes for name, print_ in self.found.footprints.items()},
        )

    # ---------------------------------------------------------------- micro-batches

    @cached_property
    def pipeline(self) -> Option:
        """Stages on all devices that work on micro-batches side by side."""
        return self._pipeline(self.pipelines.obstacle() or self._hopeless())

    def _pipeline(self, obstacle: str | None) -> Option:
        if obstacle is not None:
            return Option(strategy="pipeline", words=obstacle, devices=len(self.devices), by=self.by)
        try:
            self.sketch = self.pipelines.sketch()
        except AutosplitError as error:
            return Option(strategy="pipeline", words=_first_line(error), devices=len(self.devices), by=self.by)
        return self.piped(self.sketch)

    def _hopeless(self) -> str | None:
        """Why no pipeline is worth a second capture; None when one may be."""
        if not self.works_side_by_side:
            return "not weighed: the devices work one at a time in one process, and micro-batches gain nothing"
        if not self.is_whole or self.samples is None:
            return None
        best_ns = self.pipelines.at_best_ns()
        if self.time(self.replicate) > WORTH * (best_ns if self.by == "step" else best_ns / self.samples):
            return None
        rate = f", {self.samples * 10**9 // max(1, best_ns):,} samples/s" if self.by == "sample" else ""
        return f"not weighed: with equal stages and free transfers a step would take {format_ns(best_ns)}{rate}"

    def piped(self, found: Sketch) -> Option:
        """The option of a pipeline over all devices."""
        return self._option(
            "pipeline",
            found.words,
            len(found.devices),
            step_ns=found.timed.makespan_ns,
            busy_ns=sum(found.busy_ns.values()),
            needs=found.peaks,
        )

    # ---------------------------------------------------------------- replicas of these

    @cached_property
    def hybrid(self) -> Option:
        """Replicas of a split or a pipeline, where devices remain."""
        count = len(self.devices)
        if self.problem.request.strategy != "hybrid" and (self.alone is not None or not self.works_side_by_side):
            words = "one device holds the model" if self.alone is not None else "the devices work one at a time"
            return Option(strategy="hybrid", words=f"not weighed: {words}", devices=count, by=self.by)
        found: list[Replicas] = []
        for size in range(2, count // 2 + 1):
            if not found or count % size == 0:
                found += self._replicas(size)
        if not found:
            words = "two replicas of two devices or more do not fit on these" if count >= 4 else "it needs four devices"
            return Option(strategy="hybrid", words=words, devices=count, by=self.by)
        best = min(found, key=lambda one: one.step_ns / len(one.groups))
        return self.settle_on(best)

    def settle_on(self, best: Replicas) -> Option:
        """The option of these replicas."""
        self.replicas = best
        count, size = len(best.groups), len(best.groups[0])
        inner = best.sketch
        peaks = inner.peaks if inner is not None else self._peaks(best.placement.devices)
        return self._option(
            "hybrid",
            best.words,
            count * size,
            step_ns=best.step_ns,
            busy_ns=count * best.busy_ns,
            needs={name: peaks[name] for name in best.groups[0]},
            samples=self.samples and (self.samples * count if self.by == "sample" else self.samples),
        )

    def _replicas(self, size: int) -> list[Replicas]:
        """As many replicas as there are devices for, each on ``size`` of them: of a split, and of a pipeline."""
        names = self.cluster.names
        groups = tuple(names[at : at + size] for at in range(0, len(names) - size + 1, size))
        groups = tuple(group for group in groups if self._are_alike(groups[0], group))
        if len(groups) < 2:
            return []
        problem = on_some(self.problem, _some(self.cluster, groups[0]))
        problem.request = replace(problem.request, strategy="split")
        found = []
        placement = sketch(problem, self.graph, problem.has_bytes())
        if placement is not None and len(set(placement.devices.values())) > 1:
            step_ns = estimate.step_ns(self.graph, placement.devices, problem.cluster, problem.io_device)
            busy = estimate.busy_ns(self.graph, placement.devices, problem.cluster)
            found.append(self._copies(groups, problem, placement, None, (step_ns, sum(busy.values()))))
        inner = self._inner(problem)
        if inner is not None:
            times = (inner.timed.makespan_ns, sum(inner.busy_ns.values()))
            found.append(self._copies(groups, problem, inner.placement, inner, times))
        return found

    def _inner(self, problem: Problem) -> Sketch | None:
        """The pipeline of one replica; None where there is none."""
        pipelines = Pipelines(self.trials, problem)
        if not self.works_side_by_side or pipelines.obstacle() is not None:
            return None
        try:
            return pipelines.sketch()
        except AutosplitError:
            return None

    def _copies(
        self,
        groups: tuple[tuple[str, ...], ...],
        problem: Problem,
        placement: Placement,
        inner: Sketch | None,
        times: tuple[int, int],
    ) -> Replicas:
        step_ns, busy_ns = times
        exchanged_ns = group_exchange_ns(self.graph, placement.devices, self.cluster, groups)
        return Replicas(groups, problem, placement, inner, step_ns + exchanged_ns, busy_ns)

    def _are_alike(self, first: tuple[str, ...], other: tuple[str, ...]) -> bool:
        pairs = [(self.devices[a], self.devices[b]) for a, b in zip(first, other, strict=True)]
        return all(a.kind == b.kind and a.memory_bytes <= b.memory_bytes for a, b in pairs)

    # ---------------------------------------------------------------- figures

    def _option(
        self,
        strategy: Literal["single", "replicate", "split", "pipeline", "hybrid"],
        words: str,
        devices: int,
        *,
        step_ns: int,
        busy_ns: int,
        needs: Mapping[str, int],
        samples: int | None = None,
    ) -> Option:
        fullest = max(needs, key=lambda name: needs[name] / max(1, self.devices[name].memory_bytes))
        return Option(
            strategy=strategy,
            words=words,
            devices=devices,
            step_ns=step_ns,
            samples=samples or self.samples,
            busy_ns=busy_ns,
            needs_bytes=needs[fullest],
            has_bytes=self.devices[fullest].memory_bytes,
            by=self.by,
        )

    def _misfit(self, strategy: Literal["single", "replicate"], devices: int) -> Option:
        """One device does not hold the model: the one that is short of least."""
        needs = {name: self._peaks(dict.fromkeys(self.graph.nodes, name))[name] for name in self.devices}
        least = min(needs, key=lambda name: needs[name] - self.devices[name].memory_bytes)
        return Option(
            strategy=strategy,
            words="does not fit one device",
            devices=devices,
            needs_bytes=needs[least],
            has_bytes=self.devices[least].memory_bytes,
            by=self.by,
        )

    def _step_ns(self, devices: Mapping[str, str]) -> int:
        return estimate.step_ns(self.graph, devices, self.cluster, self.problem.io_device)

    def _peaks(self, devices: Mapping[str, str]) -> dict[str, int]:
        return estimate.peak_bytes(self.graph, devices, self.cluster, self.problem.io_device)


def _some(cluster: Cluster, names: tuple[str, ...]) -> Cluster:
    """The cluster without its other devices."""
    kept = {*names, "host"}
    return msgspec.structs.replace(
        cluster,
        devices=tuple(device for device in cluster.devices if device.name in kept),
        links=tuple(link for link in cluster.links if {link.src, link.dst} <= kept),
    )


def _first_line(error: AutosplitError) -> str:
    words = str(error).partition("\n")[0]
    return f"no pipeline was found that fits: {words}" if isinstance(error, CapacityError) else words
