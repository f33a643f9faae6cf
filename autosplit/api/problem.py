"""What a plan is made for: one captured and costed model, the devices, and what was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import msgspec
import torch
from torch import nn

from autosplit import estimate
from autosplit.api.timing import ProfileChoice, Timed, find_times
from autosplit.capture import Captured
from autosplit.choices import OptimizerName
from autosplit.costs import OptimizerCost, build_graph
from autosplit.device import HOST, Cluster
from autosplit.emit import Assignment, assign, check_split, rewrite
from autosplit.graph import CostGraph, Mode
from autosplit.optimizers import OptimizerFactory, OptimizerLike, optimizer_factory, steps_without_data
from autosplit.placement import Objective, Pipeline, Placement, Rung, Transfer, check_placement
from autosplit.predict import Footprint, Workload, fake_devices, measure_optimizer, predict_memory
from autosplit.program import Program, Spec
from autosplit.schedule import ScheduleName

StrategyChoice = Literal["auto", "single", "replicate", "split", "pipeline", "hybrid"]
ObjectiveChoice = Literal["auto", "latency", "throughput", "memory"]
BatchChoice = int | Literal["max"] | None
MicrobatchesChoice = int | Literal["auto"]
ScheduleChoice = Literal["auto"] | ScheduleName


@dataclass(frozen=True)
class Request:
    """What was asked of one plan, beside the model and its inputs."""

    cluster: Cluster
    mode: Mode
    strategy: StrategyChoice = "auto"
    objective: ObjectiveChoice = "auto"
    optimizer: OptimizerLike | None = None
    placement: Mapping[str, str] | None = None
    capture: Rung | None = None
    profile: ProfileChoice = "auto"
    workload: Workload | None = None
    accumulate: int = 1
    batch: BatchChoice = None
    microbatches: MicrobatchesChoice = "auto"
    schedule: ScheduleChoice = "auto"


@dataclass(frozen=True)
class Candidate:
    """A placement with everything that follows from it."""

    placement: Placement
    homes: dict[str, str]
    transfers: Sequence[Transfer]
    footprints: dict[str, Footprint]
    pipeline: Pipeline | None = None


@dataclass
class Problem:
    """One captured and costed model, and the devices for it."""

    model: nn.Module
    request: Request
    captured: Captured
    io_device: str
    assumptions: list[str] = field(default_factory=list)

    @property
    def program(self) -> Program:
        """The call that is planned for."""
        return self.captured.program

    @property
    def cluster(self) -> Cluster:
        """The devices."""
        return self.request.cluster

    @property
    def objective(self) -> Objective:
        """What to minimise."""
        return "latency" if self.request.objective == "auto" else self.request.objective

    @property
    def optimizer_name(self) -> OptimizerName | None:
        """The name of that optimizer; None for an object, and in inference."""
        asked = "adamw" if self.request.optimizer is None else self.request.optimizer
        if self.request.mode == "infer" or not isinstance(asked, str):
            return None
        return next((name for name in get_args(OptimizerName) if name == asked.lower()), None)

    @cached_property
    def factory(self) -> OptimizerFactory | None:
        """Makes the optimizer that training memory is planned for."""
        if self.request.mode == "infer":
            return None
        asked = self.request.optimizer
        if asked is None:
            self.assumptions.append("optimizer: AdamW, as none was named")
        on_host = all(device.kind == "cpu" for device in self.cluster.devices)
        weights = dict(self.model.named_parameters())
        return optimizer_factory("adamw" if asked is None else asked, foreach=not on_host, weights=weights)

    @cached_property
    def optimizer_cost(self) -> OptimizerCost | None:
        """What the optimizer keeps and takes; None in inference."""
        if self.factory is None:
            return None
        with steps_without_data():
            return OptimizerCost(*measure_optimizer(self.factory))

    @cached_property
    def graph(self) -> CostGraph:
        """The cost graph, with measured times where there are some."""
        timed = self.timed
        return build_graph(self.program, self.cluster.devices, self.optimizer_cost, timed.times, timed.lent)

    @cached_property
    def timed(self) -> Timed:
        """What was measured."""
        if self.request.profile is False:
            return Timed()
        estimated = build_graph(self.program, self.cluster.devices, self.optimizer_cost)
        return find_times(self.program, estimated, self.cluster, self.request.profile)

    def costed(self, program: Program) -> CostGraph:
        """The cost graph of another size of the program, for these devices and this optimizer."""
        return build_graph(program, self.cluster.devices, self.optimizer_cost, lent=self.timed.lenders)

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """Every parameter and buffer once, by its first name."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def has_bytes(self) -> dict[str, int]:
        """Capacity by device name."""
        return {device.name: device.memory_bytes for device in self.cluster.devices}

    def homes(self, placement: Mapping[str, str]) -> dict[str, str]:
        """The home of each weight: its first reader's device; a weight nobody reads goes with its neighbour."""
        homes: dict[str, str] = {}
        for source, reader in self.program.sources.items():
            known = self.program.inputs.get(source)
            if reader is not None and known is not None and known.is_weight:
                homes[known.name] = placement[self.program.names[reader]]
        last = self.cluster.names[0]
        return {name: (last := homes.get(name, last)) for name in self.weights}

    @cached_property
    def kept(self) -> frozenset[int]:
        """Places of the outputs that go into an object of the caller, such as a KV cache, in inference."""
        program = self.program
        if program.returned is None or self.request.mode == "train":
            return frozenset()
        return frozenset(range(len(program.results))) - program.returned

    def arrivals(self, assignment: Assignment) -> dict[int, str]:
        """Device of the inputs, by place, that are state: they live with their readers."""
        inputs = self.program.inputs.items()
        return {i: assignment.devices[node] for i, (node, source) in enumerate(inputs) if source.kind == "state"}

    def settled(self, placement: Placement) -> Placement:
        """The placement as it will run: what is not in a captured graph follows its weights and inputs."""
        if self.captured.rung == "graph":
            return placement
        nodes = self.graph.nodes
        named = {name: d for name, d in placement.devices.items() if self.captured.is_planned(nodes[name].module)}
        start = self.cluster.names[0] if self.io_device == HOST else self.io_device
        assignment = assign(self.program, named, self.homes(placement.devices), start)
        devices = {self.program.names[node]: assignment.devices[node] for node in self.program.nodes}
        value = estimate.value(self.graph, devices, self.cluster, self.objective, io_device=self.io_device)
        return msgspec.structs.replace(placement, devices=devices, value=value, bound=min(placement.bound, value))

    def evaluate(self, placement: Placement) -> Candidate:
        """Emit the program for a placement and run it on fakes."""
        placement = self.settled(placement)
        check_placement(self.graph, placement.devices, self.cluster)
        homes = self.homes(placement.devices)
        assignment = assign(self.program, placement.devices, homes, self.io_device)
        emitted = rewrite(self.program, assignment, fake_devices(self.cluster), self.io_device)
        transfers = estimate.transfers(self.graph, placement.devices, self.cluster, io_device=self.io_device)
        check_split(emitted, [(t.tensor, t.src, t.dst) for t in transfers])

        footprints = self.footprints(emitted.graph_module.forward, homes, self.arrivals(assignment))
        return Candidate(placement, homes, transfers, footprints)

    def footprints(
        self, forward: Callable[..., Sequence[Any]], homes: Mapping[str, str], arrivals: Mapping[int, str]
    ) -> dict[str, Footprint]:
        """What each device holds over a step.

        Args:
            forward: flat inputs to flat outputs, emitted for ``fake_devices(self.cluster)``.
            homes: home of each weight.
            arrivals: device of the inputs, by place, that are elsewhere than the caller's.
        """

        def run(*values: Any) -> Any:
            with self.program.casting():
                outputs = forward(*values)
            torch.clear_autocast_cache()  # its copies of weights end with the forward, also where the caller's go on
            return outputs

        return predict_memory(
            run,
            list(self.program.inputs.values()),
            {name: (Spec.of(weight), homes[name]) for name, weight in self.weights.items()},
            cluster=self.cluster,
            io_device=self.io_device,
            arrivals=arrivals,
            mode=self.request.mode,
            optimizer=self.factory,
            kept=self.kept,
            workload=self.request.workload or Workload(microbatches=self.request.accumulate),
        )
