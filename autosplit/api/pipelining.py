"""How a pipelined module is called: each call in micro-batches, through stages that are captured at their size."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autosplit import estimate
from autosplit.api.batch import Example
from autosplit.api.problem import Candidate, Problem
from autosplit.api.running import Caller, callers_level, compiler, refuse_shared_memory
from autosplit.capture import Compile, Frontend, Run
from autosplit.device import HOST
from autosplit.emit import assign, cut
from autosplit.errors import CaptureError, PlanError
from autosplit.hardware import torch_devices
from autosplit.pipeline.batches import sizes
from autosplit.pipeline.call import Call, Line
from autosplit.pipeline.descent import Descent
from autosplit.pipeline.rehearsal import CannotPlayError, Rehearsal
from autosplit.placement import Pipeline, Placement, Plan, check_placement
from autosplit.predict import Footprint, fake_devices
from autosplit.program import Program, Spec, closed_on_error
from autosplit.runtime import note_stage_modules, unsplit_class
from autosplit.samples import Samples, follow_samples


@dataclass(frozen=True)
class Pieces:
    """The captures that a pipelined call is made of.

    Attributes:
        small: by number of samples of a micro-batch.
        samples: what of inputs and outputs is batched.
        followed: a number of samples, and the program in which they were followed.
    """

    small: Mapping[int, Program]
    samples: Samples
    followed: tuple[int, Program]


def pipelined(
    pieces: Pieces,
    parts: Sequence[int],
    pipeline: Pipeline,
    placement: Mapping[str, str],
    homes: Mapping[str, str],
    devices: Mapping[str, torch.device],
    *,
    descent: type[Descent] = Descent,
) -> Call:
    """What runs one form of call.

    Args:
        pieces: captures of the call and of its micro-batches.
        parts: samples of each micro-batch.
        pipeline: stages and schedule.
        placement: device name by node name.
        homes: home device by weight name.
        devices: the torch device for each name.
        descent: what runs the passes of a schedule that goes back within the call.

    Raises:
        PlanError: the stages cannot be cut, or the outputs cannot be merged.
    """
    _refuse_state(pieces.small[parts[0]])
    for part in {*parts}:
        check_alike(pieces, part)
    lines = {
        part: line_of(pieces.small[part], pipeline, placement, homes, devices, pieces.samples) for part in {*parts}
    }
    return Call(lines, parts, pieces.samples, devices, pipeline.schedule, descent)


def evaluate_pipeline(
    problem: Problem, placement: Placement, pipeline: Pipeline, pieces: Pieces, parts: Sequence[int]
) -> Candidate:
    """The candidate of a pipeline: its memory is what the pipelined call takes on fakes, all micro-batches of it.

    Under a schedule that goes back within the call two of each size are run, and the others are played from those.

    Args:
        problem: of the whole call.
        placement: of its nodes.
        pipeline: their stages.
        pieces: captures of the call and of its micro-batches.
        parts: samples of each micro-batch.

    Raises:
        PlanError: as ``pipelined``.
    """
    check_placement(problem.graph, placement.devices, problem.cluster)
    homes = problem.homes(placement.devices)
    devices, names = fake_devices(problem.cluster), names_of(problem.program)

    def footprints(descent: type[Descent]) -> dict[str, Footprint]:
        call = pipelined(pieces, parts, pipeline, placement.devices, homes, devices, descent=descent)

        def forward(*values: Any) -> list[Any]:
            return arrived(call.program, call(dict(zip(names, values, strict=True))), devices[problem.io_device])

        return problem.footprints(forward, homes, {})

    transfers = estimate.transfers(problem.graph, placement.devices, problem.cluster, io_device=problem.io_device)
    try:
        try:
            found = footprints(Rehearsal)
        except CannotPlayError:
            found = footprints(Descent)
    except RuntimeError as error:
        raise PlanError(f"micro-batches of {type(problem.model).__name__} cannot go back: {error}") from error
    return Candidate(placement, homes, transfers, found, pipeline)


def arrived(program: Program, outputs: Sequence[Any], device: torch.device) -> list[Any]:
    """The outputs, those that the caller receives on ``device``; what goes into an object stays where it is."""
    return [
        output.to(device) if isinstance(output, torch.Tensor) and program.returns(place) else output
        for place, output in enumerate(outputs)
    ]


def check_alike(pieces: Pieces, part: int) -> str | None:
    """Check that micro-batches of one size compute what the samples were followed through at another.

    Of one sample many models run other operators (a size of 1 broadcasts): what is returned is looked at then.

    Returns:
        What is to be said of it, if there is anything.

    Raises:
        PlanError: it runs other operators, or with other numbers than its size explains, or returns other forms.
    """
    size, known = pieces.followed
    program = pieces.small[part]
    twins = known.twins(program)
    if twins is None and part > 1:
        raise PlanError(f"it runs other operators with {part} samples than with {size}")
    if len(known.results) != len(program.results):
        raise PlanError(f"it returns other values with {part} samples than with {size}")
    pairs = list((twins or {}).items())
    for node, twin in pairs:
        numbers, others = _numbers(node), _numbers(twin)
        if len(numbers) != len(others) or not all(
            a == b or (type(a) is type(b) is int and a * part == b * size) for a, b in zip(numbers, others, strict=True)
        ):
            raise PlanError(f"{program.names[twin]!r} has other numbers with {part} samples than with {size}")
    results = [(a, b) for a, b in zip(known.results, program.results, strict=True) if isinstance(a, fx.Node)]
    for node, twin in [*pairs, *results]:
        mine, form = known.facts[node].form, program.facts[twin].form if twin in program.facts else None
        if isinstance(mine, Spec) and not (isinstance(form, Spec) and _scaled(mine.shape, form.shape, size, part)):
            raise PlanError(f"{known.names[node]!r} has another form with {part} samples than with {size}")
    if twins is None:
        return f"with micro-batches of {part} it runs other operators than with {size}, which were followed"
    return None


def _scaled(one: Sequence[int], other: Sequence[int], size: int, part: int) -> bool:
    """Whether shapes differ in nothing but in how many samples there are."""
    return len(one) == len(other) and all(a == b or a * part == b * size for a, b in zip(one, other, strict=True))


def _numbers(node: fx.Node) -> list[Any]:
    """The arguments of a node that are no values of the graph."""
    if node.op not in ("call_function", "call_method"):
        return []
    return [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if not isinstance(leaf, fx.Node)]


def _refuse_state(program: Program) -> None:
    """What outlives a call would be of one micro-batch."""
    if any(source.kind == "state" for source in program.inputs.values()):
        raise PlanError("an object that is passed to it, such as a key-value cache, is written to in the call")
    names = names_of(program)
    written = [names[i] for i in program.written_inputs if not names[i].startswith("weight/")]
    if written:
        raise PlanError(f"it writes to {written[0]!r}")


def names_of(program: Program) -> list[str]:
    """The program's names of its inputs, in order."""
    return [program.names[node] for node in program.inputs]


def line_of(
    program: Program,
    pipeline: Pipeline,
    placement: Mapping[str, str],
    homes: Mapping[str, str],
    devices: Mapping[str, torch.device],
    samples: Samples,
) -> Line:
    """The stages of one program; a node that the plan does not name goes with what it is tied to, or reads."""
    assigned = assign(program, placement, homes, next(iter(devices))).devices
    stage_of, device_of = _staged(program, pipeline, assigned)
    counted = {merge.counted[0] for merge in samples.outputs if merge is not None and merge.counted is not None}
    keep = [node for node, name in program.names.items() if name in counted and node.op != "placeholder"]
    return Line(program, cut(program, stage_of, device_of, devices, keep=keep))


def _staged(
    program: Program, pipeline: Pipeline, assigned: Mapping[fx.Node, str]
) -> tuple[dict[fx.Node, int], dict[fx.Node, str]]:
    """Stage and device of each placed node; one that the plan does not name goes with what it is tied to, or reads."""
    planned = {name: stage for stage, names in enumerate(pipeline.stages) for name in names}
    group_of = {node: group for group in program.groups for node in group}
    stage_of: dict[fx.Node, int] = {}
    device_of: dict[fx.Node, str] = {}
    for node in program.nodes:
        tied = [planned[program.names[other]] for other in group_of.get(node, ()) if program.names[other] in planned]
        stage = planned.get(program.names[node], tied[0] if tied else None)
        device = assigned[node]
        if stage is None:
            read = [argument for argument in node.all_input_nodes if argument in stage_of]
            latest = max(read, key=stage_of.__getitem__, default=None)
            stage = 0 if latest is None else stage_of[latest]
            device = device if latest is None else device_of[latest]
        stage_of[node], device_of[node] = stage, device
    return stage_of, device_of


def captured_at(model: nn.Module, example: Example, samples: int) -> Program:
    """The call at another number of samples, as the model's flags are now."""
    at = example.at(samples)
    return Frontend(model, unsplit_class(model), serves=False).capture(at.args, at.kwargs, None)


class _NotPreparedError(Exception):
    """A call of this program wants captures of its micro-batches first."""

    def __init__(self, program: Program) -> None:
        self.program = program


def _changes_error(model: nn.Module) -> CaptureError:
    return CaptureError(
        f"{type(model).__name__}.forward is another program at each capture, so that its micro-batches cannot be "
        "captured beside it: it, or a hook, writes to something that it reads (a list that it appends to, a counter); "
        "take that out, or use strategy='split'"
    )


@dataclass
class _Form:
    """What is known of the calls of one captured program; without pieces they run as a split."""

    pieces: Pieces | None = None
    calls: dict[tuple[int, ...], Call] = field(default_factory=dict)


class PipelineCaller(Caller):
    """Calls one module by a plan with a pipeline; what cannot be cut into micro-batches runs as a split, and says so.

    Args:
        plan: with a pipeline.
        frontend: as Caller.
        rest: as Caller.
    """

    def __init__(self, plan: Plan, frontend: Frontend | None = None, **rest: Any) -> None:
        super().__init__(plan, frontend, **rest)
        self._forms: weakref.WeakKeyDictionary[Program, _Form] = weakref.WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> Caller:
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, PipelineCaller)  # what was copied is
        copied._forms = weakref.WeakKeyDictionary()
        return copied

    def _call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for wants in range(3):
            try:
                return super()._call(model, args, kwargs)
            except _NotPreparedError as wanted:
                if wants < 2:  # the call itself, and micro-batches of a new size
                    self._prepare(wanted.program, model, args, kwargs)
        return self._uncapturable(model, args, kwargs, _changes_error(model))

    def _compile(self, model: nn.Module) -> Compile:
        return _compiler(self._plan, model, self._forms, compiler(self._plan, model))

    def _prepare(self, program: Program, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        plan, example = self._plan, Example(args, kwargs, HOST)
        assert plan.pipeline is not None  # this is its caller
        form = self._forms.setdefault(program, _Form())
        parts = sizes(example.samples or 1, plan.pipeline.microbatches)
        if len(parts) == 1:
            return
        try:
            assert example.samples is not None  # there are several parts
            pieces = capture_pieces(partial(captured_at, model, example), program, example.samples, parts, form.pieces)
            devices = torch_devices(plan.cluster)
            call = pipelined(pieces, parts, plan.pipeline, plan.placement, plan.weights, devices)
            if len(call.results) != len(program.results):
                raise PlanError("it returns or keeps a number that changes from call to call")
            form.calls[*parts,], form.pieces = call, pieces
        except (CaptureError, PlanError) as error:
            form.pieces = None
            self._tell(f"this and later calls like it run as a split, without micro-batches: {error}")
            return
        for words in filter(None, (check_alike(pieces, part) for part in {*parts})):
            self._tell(f"micro-batches may change what this model computes: {words}")
        if pieces.samples.mixing:
            self._tell(
                "micro-batches change what this model computes: samples of a batch see each other in "
                f"{'; '.join(pieces.samples.mixing[:3])}"
            )

    def _tell(self, words: str) -> None:
        if words not in self._told:
            self._told.add(words)
            warnings.warn(words, stacklevel=callers_level())


def capture_pieces(
    capture: Callable[[int], Program],
    large: Program,
    samples: int,
    parts: Sequence[int],
    known: Pieces | None = None,
) -> Pieces:
    """The captures of the micro-batches of a call, and where its samples are.

    Args:
        capture: the program at a number of samples.
        large: the program of the whole call.
        samples: of the whole call.
        parts: samples of each micro-batch.
        known: what was captured already.

    Raises:
        CaptureError: a micro-batch cannot be captured.
        PlanError: likewise.
    """
    small = {} if known is None else dict(known.small)
    small.update({part: capture(part) for part in {*parts} - {*small}})
    if known is not None:
        return Pieces(small, known.samples, known.followed)
    one = next((part for part in parts if part > 1), 2)  # of one sample, a batch is not told from what has size 1
    is_plain = all(source.kind != "size" for source in large.inputs.values())  # else it is for calls of any size
    other = large if samples > one and is_plain else capture(max(samples, one + 1))
    program = small[one] if one in small else capture(one)
    return Pieces(small, follow_samples(program, other), (one, program))


def _compiler(
    plan: Plan, model: nn.Module, forms: weakref.WeakKeyDictionary[Program, _Form], as_split: Compile
) -> Compile:
    """Makes what runs one captured program in micro-batches."""
    known = weakref.ref(model)
    pipeline = plan.pipeline
    assert pipeline is not None  # the caller has one

    def compile_program(program: Program) -> Run:
        split_run = as_split(program)
        names = names_of(program)

        def run(inputs: Sequence[Any], io_device: torch.device, homes_id: int) -> Sequence[Any]:
            form = forms.get(program)
            if form is None:
                raise _NotPreparedError(program)
            if form.pieces is None:
                return split_run(inputs, io_device, homes_id)
            parts = sizes(_samples(program, form.pieces.samples, inputs), pipeline.microbatches)
            if len(parts) == 1:
                return split_run(inputs, io_device, homes_id)
            call = form.calls.get((*parts,))
            if call is None:
                raise _NotPreparedError(program)
            refuse_shared_memory(program, inputs)
            current = known()
            if current is not None:
                note_stage_modules(current, [graph.graph_module for graph in call.stages.lines[0]])
            with closed_on_error(io_device.type):
                outputs = call(dict(zip(names, inputs, strict=True)))
            return arrived(call.program, outputs, io_device)

        return run

    return compile_program


def _samples(program: Program, samples: Samples, inputs: Sequence[Any]) -> int:
    """The batch of one call."""
    for source, value in zip(program.inputs.values(), inputs, strict=True):
        if not source.is_weight and source.name in samples.inputs:
            return int(value.shape[samples.inputs[source.name]])
    return 1
