"""The line from a model to a plan: capture, cost, solve, emit, predict; solved again when the prediction says no."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from autosplit import estimate
from autosplit.capture import Captured, Frontend, climb
from autosplit.costs import OptimizerCost, build_graph
from autosplit.device import HOST, Cluster, Device
from autosplit.emit import Assignment, assign, check_split, rewrite
from autosplit.errors import CapacityError, PlanError
from autosplit.graph import CostGraph, Mode
from autosplit.optimizers import OptimizerFactory, OptimizerLike, optimizer_factory
from autosplit.placement import (
    DevicePrediction,
    Objective,
    Placement,
    Plan,
    Prediction,
    Rung,
    Strategy,
    Transfer,
    check_placement,
    check_plan,
)
from autosplit.predict import Footprint, fake_devices, measure_optimizer, predict_memory
from autosplit.program import Program, Spec, tensor_leaves
from autosplit.runtime import weight_signature
from autosplit.solvers import solve
from autosplit.units import format_bytes

StrategyChoice = Literal["auto", "single", "replicate", "split"]
ObjectiveChoice = Literal["auto", "latency", "throughput", "memory"]

_SHARES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76)
_LOOSE = 1.25


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


@dataclass(frozen=True)
class Candidate:
    """A placement with everything that follows from it."""

    placement: Placement
    homes: dict[str, str]
    transfers: Sequence[Transfer]
    footprints: dict[str, Footprint]


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

    @cached_property
    def factory(self) -> OptimizerFactory | None:
        """Makes the optimizer that training memory is planned for."""
        if self.request.mode == "infer":
            return None
        asked = self.request.optimizer
        if asked is None:
            self.assumptions.append("optimizer: AdamW, as none was named")
        on_host = all(device.kind == "cpu" for device in self.cluster.devices)
        return optimizer_factory("adamw" if asked is None else asked, foreach=not on_host)

    @cached_property
    def graph(self) -> CostGraph:
        """The cost graph."""
        cost = None if self.factory is None else OptimizerCost(*measure_optimizer(self.factory))
        return build_graph(self.program, self.cluster.devices, cost)

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
        with self.program.casting():
            footprints = predict_memory(
                emitted.graph_module.forward,
                list(self.program.inputs.values()),
                {name: (Spec.of(weight), homes[name]) for name, weight in self.weights.items()},
                cluster=self.cluster,
                io_device=self.io_device,
                arrivals=self.arrivals(assignment),
                mode=self.request.mode,
                optimizer=self.factory,
            )
        return Candidate(placement, homes, transfers, footprints)


def make_plan(
    model: nn.Module, frontend: Frontend, args: Sequence[Any], kwargs: Mapping[str, Any], request: Request
) -> tuple[Plan, Captured]:
    """Plan ``model``, captured through ``frontend``, for one form of inputs; nothing is moved."""
    if request.strategy == "split" and len(request.cluster.devices) == 1:
        raise PlanError("strategy='split' was asked for one device: pass two or more, or strategy='auto'")
    captured = climb(frontend, args, kwargs, request.mode, request.capture)
    problem = Problem(model, request, captured, _io_device(args, kwargs, request.cluster))
    _refuse_shared_memory(problem)
    return _describe(problem, _search(problem)), captured


def _refuse_shared_memory(problem: Problem) -> None:
    """Weights in one memory, one of them written, were captured as two, and are placed as two."""
    inputs = list(problem.program.inputs.values())
    written = {inputs[i].name for i in problem.program.written_inputs if inputs[i].is_weight}
    owner: dict[int, str] = {}
    for name, weight in problem.weights.items():
        first = owner.setdefault(weight.untyped_storage()._cdata, name)
        if first != name and written & {first, name}:
            raise PlanError(
                f"{first!r} and {name!r} of {type(problem.model).__name__} share memory, and forward writes to it: "
                "give one a memory of its own (clone it), or register one and make the other from it in forward"
            )


def _io_device(args: Sequence[Any], kwargs: Mapping[str, Any], cluster: Cluster) -> str:
    """Where inputs arrive: the device of the first tensor if it is one of the cluster's, else the host."""
    leaves = tensor_leaves((list(args), dict(kwargs)))
    return next((str(leaf.device) for leaf in leaves if str(leaf.device) in cluster.names), HOST)


# ---------------------------------------------------------------- search


def _search(problem: Problem) -> Candidate:
    request = problem.request
    if request.placement is not None:
        return _fitting(problem, _by_hand(problem, request.placement))
    if request.strategy in ("single", "replicate"):
        return _fitting(problem, _on_one_device(problem))
    return _solve_until_it_fits(problem)


def _fitting(problem: Problem, placement: Placement) -> Candidate:
    candidate = problem.evaluate(placement)
    if _over(problem, candidate):
        raise _does_not_fit(problem, candidate)
    return candidate


def _by_hand(problem: Problem, wanted: Mapping[str, str]) -> Placement:
    """A placement from node names or module paths; what they leave open follows its weights or inputs."""
    for key, device in wanted.items():
        problem.cluster.device(device)
        if not any(_names(key, node.name, node.module) for node in problem.graph.nodes.values()):
            raise PlanError(f"placement key {key!r} is neither a node nor the path of a module that computes something")
    named: dict[str, str] = {}
    for node in problem.graph.nodes.values():
        keys = [key for key in wanted if _names(key, node.name, node.module)]
        if keys:
            named[node.name] = wanted[max(keys, key=len)]
    assignment = assign(problem.program, named, {}, problem.cluster.names[0])
    devices = {problem.program.names[node]: assignment.devices[node] for node in problem.program.nodes}
    return _valued(problem, devices, "by hand")


def _names(key: str, node: str, module: str) -> bool:
    return key in (node, module) or module.startswith(f"{key}.")


def _on_one_device(problem: Problem) -> Placement:
    """Everything on the device that runs it soonest."""
    options = [
        _valued(problem, dict.fromkeys(problem.graph.nodes, name), "one device") for name in problem.cluster.names
    ]
    return min(options, key=lambda placement: placement.value)


def _valued(problem: Problem, devices: dict[str, str], method: str) -> Placement:
    value = estimate.value(problem.graph, devices, problem.cluster, problem.objective, io_device=problem.io_device)
    return Placement(devices=devices, objective=problem.objective, value=value, bound=0, method=method)


def _solve_until_it_fits(problem: Problem) -> Candidate:
    """Solve with the fast estimate and check with the exact tracker; when that says no, solve for less memory.

    The estimate is near, but what the caching allocator reserves beyond it is not smooth in the placement: so several
    shares of the capacity are tried, and then other objectives, each placement once.
    """
    seen: set[tuple[str, ...]] = set()
    over: list[Candidate] = []
    refused: CapacityError | None = None
    for objective, share in _tries(problem.objective):
        limits = {name: int(size * share) for name, size in problem.has_bytes().items()}
        try:
            placement = _solve(problem, objective, limits)
        except CapacityError as error:
            refused = refused or error
            if error.proved and not over:
                break
            continue
        key = tuple(placement.devices.values())
        if key not in seen:
            seen.add(key)
            candidate = problem.evaluate(placement)
            if not _over(problem, candidate):
                return candidate
            over.append(candidate)
    if not over and refused is not None:
        raise refused
    raise _does_not_fit(problem, min(over, key=lambda candidate: sum(_over(problem, candidate).values())))


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
    return _from_the_first(problem, placement)


def _from_the_first(problem: Problem, placement: Placement) -> Placement:
    """The same placement with identical devices used in their order, where nothing tells them apart."""
    cluster = problem.cluster
    if problem.io_device != HOST or cluster.links:
        return placement
    free: dict[Device, list[str]] = {}
    for device in cluster.devices:
        free.setdefault(msgspec.structs.replace(device, name=""), []).append(device.name)
    renamed: dict[str, str] = {}
    for name in placement.devices.values():
        if name not in renamed:
            renamed[name] = free[msgspec.structs.replace(cluster.device(name), name="")].pop(0)
    devices = {node: renamed[name] for node, name in placement.devices.items()}
    return msgspec.structs.replace(placement, devices=devices)


def _over(problem: Problem, candidate: Candidate) -> dict[str, int]:
    """Bytes missing by device."""
    has = problem.has_bytes()
    needs = {name: footprint.reserved_bytes for name, footprint in candidate.footprints.items()}
    return {name: need - has[name] for name, need in needs.items() if need > has[name]}


def _does_not_fit(problem: Problem, candidate: Candidate) -> CapacityError:
    has = problem.has_bytes()
    needs = {name: footprint.reserved_bytes for name, footprint in candidate.footprints.items()}
    rows = [
        f"{name} needs {format_bytes(needs[name])} of {format_bytes(has[name])} (short {format_bytes(short)})"
        for name, short in _over(problem, candidate).items()
    ]
    return CapacityError(
        f"{type(problem.model).__name__} does not fit, mode {problem.request.mode}: {'; '.join(rows)}; "
        "give a smaller batch, another optimizer, or one more device",
        needs_bytes=needs,
        has_bytes=has,
    )


# ---------------------------------------------------------------- description


def _describe(problem: Problem, candidate: Candidate) -> Plan:
    placement, cluster = candidate.placement, problem.cluster
    strategy, reason = _strategy(problem, candidate)
    plan = Plan(
        strategy=strategy,
        mode=problem.request.mode,
        cluster=cluster,
        io_device=problem.io_device,
        placement=placement.devices,
        weights=candidate.homes,
        transfers=tuple(candidate.transfers),
        capture=problem.captured.rung,
        parts=tuple(problem.captured.parts),
        objective=placement.objective,
        value=placement.value,
        bound=placement.bound,
        prediction=_prediction(problem, candidate),
        reason=reason,
        assumptions=(*problem.assumptions, *_assumptions(problem)),
        fingerprint=weight_signature(problem.model),
    )
    check_plan(plan, problem.graph)
    return plan


def _strategy(problem: Problem, candidate: Candidate) -> tuple[Strategy, str]:
    used = sorted(set(candidate.placement.devices.values()))
    count = len(problem.cluster.devices)
    if len(used) > 1:
        why = "placed by hand" if problem.request.placement is not None else "does not fit one device"
        why = "asked for" if problem.request.strategy == "split" else why
        return "split", f"{why}: {len(used)} of {count} devices used"
    fits = f"fits one device ({format_bytes(candidate.footprints[used[0]].reserved_bytes)} on {used[0]})"
    alone = problem.request.strategy == "single" or problem.request.placement is not None
    if alone or (count == 1 and problem.request.strategy == "auto"):
        return "single", fits
    return "replicate", (
        f"{fits}: one copy on each of {count} device(s) under torchrun --nproc-per-node={count}; "
        f"in a single process it runs on {used[0]} alone"
    )


def _prediction(problem: Problem, candidate: Candidate) -> Prediction:
    graph, devices, cluster = problem.graph, candidate.placement.devices, problem.cluster
    busy = estimate.busy_ns(graph, devices, cluster)
    step_ns = estimate.step_ns(graph, devices, cluster, io_device=problem.io_device)
    return Prediction(
        devices={
            name: DevicePrediction(
                peak_bytes=footprint.peak_bytes,
                reserved_bytes=footprint.reserved_bytes,
                weight_bytes=footprint.weight_bytes,
                busy_ns=busy.get(name, 0),
            )
            for name, footprint in candidate.footprints.items()
        },
        step_ns=step_ns,
        transfer_ns=step_ns - sum(busy.values()),
    )


def _how_captured(captured: Captured) -> list[str]:
    """How far the model fell from one graph, and why; nothing when it did not."""
    if captured.rung == "graph":
        return []
    kinds = {
        "graphs": f"{len(captured.parts)} graphs, with plain Python between them",
        "opaque": f"{len(captured.parts)} graphs, and modules that run as they are",
        "modules": "no graph: every module runs as it is, each operator where its weights are",
    }
    said = [f"capture: {captured.rung}: {kinds[captured.rung]}"]
    said += [f"capture: {note}" for note in captured.notes]
    if captured.on_data:
        said.append("capture: forward looks at data, so it was run once, where the weights are, to be planned")
    return said


def _assumptions(problem: Problem) -> list[str]:
    forms = [
        f"{source.name} {str(source.spec.dtype).removeprefix('torch.')}{list(source.spec.shape)}"
        for source in problem.program.inputs.values()
        if source.kind == "input" and source.spec is not None
    ]
    said = [
        f"inputs: {', '.join(forms)}, arriving on {problem.io_device}",
        "times: roofline estimate, unmeasured; backward taken as 2 x forward; devices work one at a time",
        "memory: what torch allocates; kernel workspaces and the device's context are not counted",
        *_how_captured(problem.captured),
    ]
    if problem.request.mode == "train":
        said.append("training: a steady step; a loss computed outside the model is not counted")
    return said
