"""Placement and Plan: what runs where, and what that is predicted to cost. A plan is a file. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from autosplit.device import HOST, Cluster
from autosplit.errors import CapacityError, DeviceError, PlanError
from autosplit.graph import CostGraph, Mode
from autosplit.units import format_bytes

Strategy = Literal["single", "replicate", "split"]
Objective = Literal["latency", "throughput", "memory"]
Rung = Literal["graph", "graphs", "opaque", "modules"]
TimeSource = Literal["estimated", "calibrated", "measured"]

PLAN_FORMAT = 3
MAX_PLAN_BYTES = 64 * 2**20


class CostModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a transfer costs, and how many micro-batches are on the way.

    Attributes:
        transfers: who pays, once for each tensor. "direct": the sender for each device that it sends to, and each of
            these, over the link of the pair. "host": through the memory of the host; the sender once, and each device
            that reads it, over its own link to the host; devices of kind "cpu" are the host and pay nothing.
            "receiver": only the devices that read it, over the link of the pair.
        overlap: transfers run beside compute: the load of a device is the longer of the two, not their sum.
        microbatches: of one step, in a pipeline.
        schedule: "1f1b" holds what is saved of as many micro-batches as there are stages from it to the end, "gpipe"
            that of all.
    """

    transfers: Literal["direct", "host", "receiver"] = "direct"
    overlap: bool = False
    microbatches: int = 1
    schedule: Literal["1f1b", "gpipe"] = "1f1b"

    def __post_init__(self) -> None:
        if self.transfers not in ("direct", "host", "receiver") or self.schedule not in ("1f1b", "gpipe"):
            raise ValueError(
                f"transfers {self.transfers!r}, schedule {self.schedule!r}: expected direct, host or receiver, and "
                "1f1b or gpipe"
            )
        if self.microbatches < 1:
            raise ValueError(f"microbatches is {self.microbatches}; it must be 1 or more")

    def in_flight(self, stages_to_end: int) -> int:
        """Micro-batches that a stage holds; it and those after it are ``stages_to_end``."""
        return min(self.microbatches, stages_to_end) if self.schedule == "1f1b" else self.microbatches


DIRECT = CostModel()
"""Each device pays for what it sends and receives; one micro-batch."""


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stage of a pipeline whose micro-batches its r devices share.

    It takes (compute + transfers) / r for each micro-batch of the pipeline; a transfer goes over the slowest link
    between its two stages. In training its devices exchange the gradients of their parameters once a step, in a ring:
    that is 4 (r - 1) / r of the time of sending them once, shared by the micro-batches of the step. With transfers that
    overlap it takes the longer of compute / r + exchange, and transfers / r. Each share is rounded up.

    Each device holds what is saved of as many micro-batches as come to it: of n in a step n / r, and with "1f1b" no
    more than (devices of this and of all later stages) / r; both rounded up.

    Attributes:
        devices: names; each has all nodes of the stage, and runs its share of the micro-batches.
        nodes: names, in program order.
        recomputed: those of them that save less and are computed again for the backward.
    """

    devices: tuple[str, ...]
    nodes: tuple[str, ...]
    recomputed: tuple[str, ...] = ()


class Placement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a solver returns: a device for each node, and how good that is known to be.

    Attributes:
        devices: device name by node name, in program order.
        objective: what was minimised.
        value: its value for this placement (ns, or bytes for "memory").
        bound: proved lower bound of the value over all placements that fit, in the same unit.
        method: the algorithm that found it, for people.
        stages: of a pipeline with replicas or recomputation, in order; ``devices`` then has the first device of each
            node's stage. Empty: each device is for itself, and nothing is recomputed.
    """

    devices: dict[str, str]
    objective: Objective
    value: int
    bound: int
    method: str
    stages: tuple[Stage, ...] = ()

    @property
    def gap(self) -> float:
        """(value - bound) / value: 0.0 means proved optimal."""
        return 0.0 if self.value == 0 else (self.value - self.bound) / self.value


class Transfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor copied once to one device, however many nodes read it there.

    ``returns_gradient``: the backward pass sends a gradient of the same size the other way.
    """

    tensor: str
    src: str
    dst: str
    size_bytes: int
    returns_gradient: bool = False


class Breakdown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device's memory is made of at the moment of its peak; the sum of all is what it reserves.

    Attributes:
        weights_bytes: parameters and buffers.
        gradients_bytes: of the parameters.
        optimizer_bytes: what the optimizer keeps from step to step.
        activations_bytes: inputs, what the forward computes and what it saves for the backward.
        cache_bytes: what an object of the caller holds from call to call, such as a KV cache.
        workspace_bytes: temporaries of one operator, of the backward, or of the optimizer's step.
        reserve_bytes: taken from the device beyond the peak: fragments that the allocator keeps.
    """

    weights_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    activations_bytes: int = 0
    cache_bytes: int = 0
    workspace_bytes: int = 0
    reserve_bytes: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by the name of the part: weights, gradients, ..."""
        return {name.removesuffix("_bytes"): getattr(self, name) for name in self.__struct_fields__}


class Timeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes allocated on a device over one step; as few points as show its shape, the peak among them.

    Attributes:
        positions: of each point, how many operators ran before it, on any device.
        allocated_bytes: from that point on.
        phases: (name, position) of each beginning of a "forward", "backward" or "step".
    """

    positions: tuple[int, ...] = ()
    allocated_bytes: tuple[int, ...] = ()
    phases: tuple[tuple[str, int], ...] = ()


class DevicePrediction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one device is predicted to hold and do in one step.

    Attributes:
        peak_bytes: most bytes allocated at once (each allocation rounded as the device's allocator rounds).
        reserved_bytes: most bytes the caching allocator takes from the device; this is what must fit.
        weight_bytes: parameters and buffers at home there.
        busy_ns: compute time.
        breakdown: what the reserved bytes are made of, at the peak.
        timeline: bytes allocated over one step.
    """

    peak_bytes: int
    reserved_bytes: int
    weight_bytes: int
    busy_ns: int
    breakdown: Breakdown = Breakdown()
    timeline: Timeline = Timeline()


class Prediction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Predicted cost of one step under a plan, by device name, and where the figures come from.

    ``step_ns`` is the makespan; ``transfer_ns`` adds up all transfers, which may run beside other work.
    ``time_source``: "measured" for every operation on every kind of device, "calibrated" where only some were and the
    estimates of the others follow them, "estimated" where none was. ``memory_source`` is "emitted" where the emitted
    program ran on fake tensors, "estimated" where ``recost`` says.
    """

    devices: dict[str, DevicePrediction]
    step_ns: int
    transfer_ns: int
    time_source: TimeSource = "estimated"
    memory_source: Literal["emitted", "estimated"] = "emitted"


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Strategy, placement, transfers, prediction, and the assumptions they rest on.

    Attributes:
        strategy: "single", "replicate" (one copy a device under DDP) or "split".
        mode: "infer" or "train".
        cluster: the devices and links it was made for.
        io_device: where inputs arrive and outputs return: a device name, or "host".
        placement: device name by node name, in program order.
        weights: home device by name of parameter or buffer, as in state_dict and named_buffers.
        transfers: forward transfers in program order.
        capture: how the model is run: "graph" (one graph), "graphs" (several, Python between them), "opaque" (some
            modules run as they are), "modules" (all do, each on the device of its weights).
        parts: paths of the modules that are graphs of their own.
        objective, value, bound: as in Placement.
        prediction: cost of one step.
        reason: one line: why this strategy.
        assumptions: what the figures rest on.
        fingerprint: sha256 of the weights' names, shapes and dtypes: which model it is for.
        batch: samples in one call, where ``batch=`` was given; None for the example inputs as they were.
    """

    format: int = PLAN_FORMAT
    strategy: Strategy
    mode: Mode
    cluster: Cluster
    io_device: str
    placement: dict[str, str]
    weights: dict[str, str]
    transfers: tuple[Transfer, ...]
    capture: Rung = "graph"
    parts: tuple[str, ...] = ()
    objective: Objective
    value: int
    bound: int
    prediction: Prediction
    reason: str
    assumptions: tuple[str, ...] = ()
    fingerprint: str = ""
    batch: int | None = None

    @property
    def stages(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(device, nodes) for each run of nodes on one device, in execution order."""
        runs: list[tuple[str, list[str]]] = []
        for node, device in self.placement.items():
            if not runs or runs[-1][0] != device:
                runs.append((device, []))
            runs[-1][1].append(node)
        return tuple((device, tuple(nodes)) for device, nodes in runs)

    def to_json(self) -> bytes:
        """The plan as one JSON document."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def from_json(cls, data: bytes | str) -> Plan:
        """The plan that ``to_json`` wrote.

        Raises:
            PlanError: too large, not JSON, unknown fields, another format version, or contradictory.
        """
        if len(data) > MAX_PLAN_BYTES:
            raise PlanError(f"plan of {format_bytes(len(data))}: the limit is {format_bytes(MAX_PLAN_BYTES)}")
        try:
            plan = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, DeviceError) as error:
            raise PlanError(f"not a plan: {error}") from error
        if plan.format != PLAN_FORMAT:
            raise PlanError(f"plan format {plan.format}: this version reads format {PLAN_FORMAT}; plan again")
        check_plan(plan)
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan to ``path`` (through a temporary file beside it, then a rename)."""
        target = Path(path)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_bytes(self.to_json())
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan in the file ``path``.

        Raises:
            PlanError: as from_json, or the file cannot be read.
        """
        try:
            with open(path, "rb") as file:
                return cls.from_json(file.read(MAX_PLAN_BYTES + 1))
        except OSError as error:
            raise PlanError(f"plan file {str(path)!r}: {error.strerror}") from error


def check_plan(plan: Plan, graph: CostGraph | None = None) -> None:
    """Check a plan at hand-over: every device known, every prediction within capacity.

    With its ``graph`` also: every node placed exactly once, and groups on one device.

    Raises:
        PlanError: names the node, weight or transfer that is wrong.
        CapacityError: a device is predicted to need more than it has.
    """
    known = {*plan.cluster.names, HOST}
    for what, mapping in (("node", plan.placement), ("weight", plan.weights)):
        for name, device in mapping.items():
            if device not in plan.cluster.names:
                raise PlanError(f"{what} {name!r} is placed on unknown device {device!r}")
    for transfer in plan.transfers:
        if transfer.src not in known or transfer.dst not in known or transfer.src == transfer.dst:
            raise PlanError(f"transfer of {transfer.tensor!r}: {transfer.src!r} -> {transfer.dst!r} is not possible")
    if plan.io_device not in known:
        raise PlanError(f"io_device {plan.io_device!r} is not a device of the plan")
    if set(plan.prediction.devices) - set(plan.cluster.names):
        raise PlanError("the prediction names a device that the plan does not have")
    _check_breakdown(plan)
    _check_memory(plan)
    if graph is not None:
        check_placement(graph, plan.placement, plan.cluster)


def check_placement(graph: CostGraph, placement: dict[str, str], cluster: Cluster) -> None:
    """Check that every node is placed once, on a known device, and that groups stay together.

    Raises:
        PlanError: names the first node that is not.
    """
    for name in graph.nodes:
        if placement.get(name) not in cluster.names:
            raise PlanError(f"node {name!r} is placed on {placement.get(name)!r}: known are {', '.join(cluster.names)}")
    for name in placement:
        if name not in graph.nodes:
            raise PlanError(f"node {name!r} is placed, but the graph has no such node")
    for group, members in graph.groups.items():
        if len({placement[name] for name in members}) > 1:
            raise PlanError(f"group {group!r} is split over several devices: {', '.join(members[:4])} ...")


def _check_breakdown(plan: Plan) -> None:
    for name, device in plan.prediction.devices.items():
        parts = device.breakdown.parts
        if any(parts.values()) and (sum(parts.values()), parts["reserve"]) != (
            device.reserved_bytes,
            device.reserved_bytes - device.peak_bytes,
        ):
            raise PlanError(
                f"prediction of {name!r}: the parts of its memory sum to {sum(parts.values())} B, "
                f"of which {parts['reserve']} B beyond the peak; it reserves {device.reserved_bytes} B, "
                f"its peak is {device.peak_bytes} B"
            )
        if len(device.timeline.positions) != len(device.timeline.allocated_bytes):
            raise PlanError(f"prediction of {name!r}: its timeline has not one size for each position")


def _check_memory(plan: Plan) -> None:
    needs = {name: device.reserved_bytes for name, device in plan.prediction.devices.items()}
    has = {device.name: device.memory_bytes for device in plan.cluster.devices}
    over = [name for name, need in needs.items() if need > has[name]]
    if over:
        worst = max(over, key=lambda name: needs[name] - has[name])
        raise CapacityError(
            f"device {worst} needs {format_bytes(needs[worst])} of {format_bytes(has[worst])}",
            needs_bytes=needs,
            has_bytes=has,
        )


def fingerprint(signature: list[tuple[str, tuple[int, ...], str]]) -> str:
    """sha256 of (name, shape, dtype) triples: equal for models whose state_dict has the same form."""
    return hashlib.sha256(msgspec.json.encode(signature)).hexdigest()
