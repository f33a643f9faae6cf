"""Plan: strategy, placement, schedule and prediction. A plan is a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from autosplit.device import Cluster
from autosplit.errors import DeviceError, PlanError
from autosplit.graph import Mode
from autosplit.placement import options as explained
from autosplit.placement.checks import check_plan
from autosplit.placement.placed import Objective
from autosplit.placement.prediction import Prediction
from autosplit.placement.show import shown
from autosplit.schedule import ScheduleName
from autosplit.units import format_bytes

Strategy = Literal["single", "replicate", "split", "pipeline", "hybrid"]
Rung = Literal["graph", "graphs", "opaque", "modules"]

PLAN_FORMAT = 4
MAX_PLAN_BYTES = 64 * 2**20


class Transfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor copied once to one device, however many nodes read it there.

    ``returns_gradient``: the backward pass sends a gradient of the same size the other way.
    """

    tensor: str
    src: str
    dst: str
    size_bytes: int
    returns_gradient: bool = False


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the calls of a pipeline are divided.

    Attributes:
        microbatches: the batch of a call is cut into so many along its batch dimension, as equal as they come.
        schedule: in which order each stage runs its forward and backward passes.
        stages: the nodes of each stage, in program order; stages in the order in which data flow. A stage runs on the
            devices that the placement gives its nodes: one, or several that work as in a split.
    """

    microbatches: int
    schedule: ScheduleName
    stages: tuple[tuple[str, ...], ...]


class Option(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A strategy that was weighed: what it is predicted to take, or why it is not possible.

    Attributes:
        strategy: which.
        words: one line for people: of what it is made, or what stands against it.
        devices: how many it uses.
        step_ns: of one step; None where it is not possible, or was not weighed.
        samples: of one step, over all replicas; None where the inputs have no batch.
        busy_ns: of one step, all its devices together; None where step_ns is.
        needs_bytes, has_bytes: of the device that is fullest, or short of most; None where that is not known.
        by: what the options of a plan are compared by: the time of a "step" (latency), or that of a "sample".
    """

    strategy: Strategy
    words: str
    devices: int
    step_ns: int | None = None
    samples: int | None = None
    busy_ns: int | None = None
    needs_bytes: int | None = None
    has_bytes: int | None = None
    by: Literal["step", "sample"] = "sample"


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Strategy, placement, transfers, prediction, and the assumptions they rest on.

    Attributes:
        strategy: "single", "replicate" (one copy a device under DDP), "split", "pipeline" (a split whose stages work
            on micro-batches side by side) or "hybrid" (several replicas of a split or pipeline).
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
        pipeline: micro-batches, schedule and stages; None where a call runs as a whole.
        replicas: copies of all that, each on as many devices of its own, under DDP; the placement is the first's.
        options: the strategies that were weighed, the best first; empty where one was asked for.
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
    pipeline: Pipeline | None = None
    replicas: int = 1
    options: tuple[Option, ...] = ()

    @property
    def stages(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(device, nodes) for each run of nodes on one device, in execution order."""
        runs: list[tuple[str, list[str]]] = []
        for node, device in self.placement.items():
            if not runs or runs[-1][0] != device:
                runs.append((device, []))
            runs[-1][1].append(node)
        return tuple((device, tuple(nodes)) for device, nodes in runs)

    def why(self) -> str:
        """Why this strategy: its reason, then a line for each option that was weighed, the chosen one first."""
        return explained.why(self)

    def why_not(self, strategy: str) -> str:
        """Why not another: by which figure it loses, and by what factor, or what stands against it.

        Raises:
            PlanError: there is no such strategy.
        """
        return explained.why_not(self, strategy)

    def __str__(self) -> str:
        """The plan as the table that ``autosplit plan`` prints."""
        return shown(self, "text") or repr(self)

    def _repr_html_(self) -> str | None:
        """The plan as a notebook shows it."""
        return shown(self, "html")

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


def fingerprint(signature: list[tuple[str, tuple[int, ...], str]]) -> str:
    """sha256 of (name, shape, dtype) triples: equal for models whose state_dict has the same form."""
    return hashlib.sha256(msgspec.json.encode(signature)).hexdigest()
