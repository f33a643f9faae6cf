"""Plan: strategy, placement, schedule and prediction. A plan is a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from autosplit.choices import Mode, OptimizerName, Rung
from autosplit.device import Cluster
from autosplit.errors import DeviceError, PlanError
from autosplit.files import clean, kind_of, quoted, read, repeated_key, write
from autosplit.placement import options as explained
from autosplit.placement.checks import check_plan
from autosplit.placement.modules import device_map
from autosplit.placement.placed import Objective
from autosplit.placement.prediction import Count, Prediction
from autosplit.placement.show import shown
from autosplit.schedule import ScheduleName
from autosplit.units import format_bytes

Strategy = Literal["single", "replicate", "split", "pipeline", "hybrid"]

PLAN_FORMAT = 4
MAX_PLAN_BYTES = 64 * 2**20
SAME = "= "
"""Before the name of an input, in ``Plan.inputs``: this one is the very tensor of that."""

_MOST_WORDS = 400  # characters of what a parser says of a file
_EDITED = "edited"  # where a plan remembers that its file was edited, beside its fields; and its checksum then
_CHECKSUM = b',"checksum":"%s"}'


class Transfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor copied once to one device, however many nodes read it there.

    ``returns_gradient``: the backward pass sends a gradient of the same size the other way.
    """

    tensor: str
    src: str
    dst: str
    size_bytes: Count
    returns_gradient: bool = False


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the calls of a pipeline are divided.

    Attributes:
        microbatches: the batch of a call is cut into so many along its batch dimension, as equal as they come.
        schedule: in which order each stage runs its forward and backward passes.
        stages: the nodes of each stage, in program order; stages in the order in which data flow. A stage runs on the
            devices that the placement gives its nodes: one, or several that work as in a split.
    """

    microbatches: Count
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
    devices: Count
    step_ns: Count | None = None
    samples: Count | None = None
    busy_ns: Count | None = None
    needs_bytes: Count | None = None
    has_bytes: Count | None = None
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
        inputs: form of each input by its name, as in "int64[4, 2048]"; "= NAME" of one that is the tensor of another.
        weight_forms: the same of each parameter and buffer, tied ones by each of their names.
        graph_fingerprint: sha256 of the captured graph: its nodes in program order, each with the forms it gives.
        optimizer: what training memory is planned for, where that has a name; None for an object, and in inference.
        accumulate: calls whose gradients are added up before a step, in training.
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
    value: Count
    bound: Count
    prediction: Prediction
    reason: str
    assumptions: tuple[str, ...] = ()
    fingerprint: str = ""
    batch: Count | None = None
    pipeline: Pipeline | None = None
    replicas: Count = 1
    options: tuple[Option, ...] = ()
    inputs: dict[str, str] = {}
    weight_forms: dict[str, str] = {}
    graph_fingerprint: str = ""
    optimizer: OptimizerName | None = None
    accumulate: Count = 1

    @property
    def is_edited(self) -> bool:
        """Whether it comes from a file that is not as it was written: its figures may not be of its placement.

        What is changed in Python, as by ``msgspec.structs.replace``, is not told.
        """
        return bool(self.__dict__.get(_EDITED))

    @property
    def stages(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(device, nodes) for each run of nodes on one device, in execution order."""
        runs: list[tuple[str, list[str]]] = []
        for node, device in self.placement.items():
            if not runs or runs[-1][0] != device:
                runs.append((device, []))
            runs[-1][1].append(node)
        return tuple((device, tuple(nodes)) for device, nodes in runs)

    def __str__(self) -> str:
        """The plan as the table that ``autosplit plan`` prints."""
        return shown(self, "text") or repr(self)

    def _repr_html_(self) -> str | None:
        """The plan as a notebook shows it."""
        return shown(self, "html")

    def why(self) -> str:
        """Why this strategy: its reason, then a line for each option that was weighed, the chosen one first."""
        return explained.why(self)

    def why_not(self, strategy: str) -> str:
        """Why not another: by which figure it loses, and by what factor, or what stands against it.

        Raises:
            PlanError: there is no such strategy.
        """
        return explained.why_not(self, strategy)

    def to_json(self) -> bytes:
        """The plan as one JSON document, with a checksum that tells whether it was edited.

        Raises:
            PlanError: a name in it cannot be written in UTF-8.
        """
        try:
            content = msgspec.json.encode(self)
        except UnicodeEncodeError as error:
            raise PlanError(f"a name in the plan is not text: {error}") from error
        checksum = _EDITED if self.is_edited else _sha256(content)  # an edit is not forgotten by writing it again
        return msgspec.json.format(content[:-1] + _CHECKSUM % checksum.encode(), indent=1)

    @classmethod
    def from_json(cls, data: bytes | str) -> Plan:
        """The plan that ``to_json`` wrote, maybe edited since (see ``is_edited``). O(bytes).

        Raises:
            PlanError: too large, not JSON, unknown or repeated fields, another format version, or contradictory.
            CapacityError: by its own figures it does not fit its devices.
        """
        try:
            data = data.encode() if isinstance(data, str) else data
            if len(data) > MAX_PLAN_BYTES:
                raise PlanError(f"not a plan: it has more than {format_bytes(MAX_PLAN_BYTES)}, the most that is read")
            found = msgspec.json.decode(data, type=_Format).format
            _check_format(PLAN_FORMAT if found is None else found)
            stored = msgspec.json.decode(data, type=StoredPlan)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, DeviceError) as error:
            raise PlanError(_no_plan(data, clean(str(error)[:_MOST_WORDS]))) from error
        if found is None:
            raise PlanError(_no_plan(data, "Object missing required field `format`"))
        twice = repeated_key(data)
        if twice is not None:
            raise PlanError(f"not a plan: key {quoted(twice)} is there twice, and only one can count")
        plan = Plan(**{name: getattr(stored, name) for name in cls.__struct_fields__})
        check_plan(plan)
        if stored.checksum != _sha256(msgspec.json.encode(plan)):
            plan.__dict__[_EDITED] = True
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan to ``path``, whole or not at all.

        Raises:
            OSError: it cannot be written; what was at ``path`` is still there.
            PlanError: as to_json.
        """
        write(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan in the file ``path``.

        Raises:
            PlanError: as from_json, or the file cannot be read.
            CapacityError: as from_json.
        """
        try:
            return cls.from_json(read(path, MAX_PLAN_BYTES))
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
            raise PlanError(f"plan file {quoted(path)}: {getattr(error, 'strerror', None) or error}") from error

    def to_device_map(self) -> dict[str, str]:
        """Device by module path, as dispatch_model of Accelerate and from_pretrained(device_map=) take it.

        Returns:
            The largest modules that are whole on one device, in the order of the weights; {"": device} for a model
            that is. Each weight is in one of them.

        Raises:
            PlanError: names a module that is split below module level: such a map cannot say that.
        """
        return device_map(self.placement, self.weights)


def _no_plan(data: bytes | str, why: str) -> str:
    kind = kind_of(data if isinstance(data, bytes) else b"")  # of text that is no UTF-8 nothing is known
    return f"not a plan: {f'it is {kind}; a plan is what autosplit plan --out FILE writes' if kind else why}"


class _Format(msgspec.Struct, frozen=True):
    """Read first: of another version the rest may be of another form."""

    format: int | None = None


class StoredPlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan as it is in a file: ``checksum`` is the sha256 of the plan without it, as one line of JSON."""

    checksum: str = ""


def _check_format(found: int) -> None:
    if found != PLAN_FORMAT:
        shown = found if abs(found) < 10**6 else "unknown"
        raise PlanError(f"plan format {shown}: this version reads format {PLAN_FORMAT}; plan again")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fingerprint(signature: list[tuple[str, tuple[int, ...], str]]) -> str:
    """sha256 of (name, shape, dtype) triples: equal for models whose state_dict has the same form."""
    return _sha256(msgspec.json.encode(signature))
