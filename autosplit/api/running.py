"""How a split module is called: its forward is captured, rewritten by the plan, and run on the real tensors."""

from __future__ import annotations

import copy
import sys
import threading
import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autosplit.align import (
    add_part,
    aligned,
    call_unit,
    homes_below,
    in_transform,
    parts_below,
    remove_parts,
    unaligned,
)
from autosplit.capture import Captured, Compile, Frontend, Run, part_names, without_parts
from autosplit.device import HOST
from autosplit.emit import Emitted, assign, check_split, rewrite
from autosplit.errors import CaptureError, PlanError
from autosplit.hardware import torch_devices
from autosplit.holders import first_device, to_device
from autosplit.placement import Plan
from autosplit.program import Program, closed_on_error
from autosplit.runtime import note_graph_module, unsplit_class

Lock = Any  # what threading.RLock makes; it has no type of its own


class Caller:
    """Calls one module by one plan; every later shape or mode is captured anew and placed by the same plan.

    A call that cannot be captured runs in plain Python, each operator where its weights are, and says so once.

    Args:
        plan: where everything runs.
        frontend: what captured the model for the plan, if it did so in this process.
        path: the module's path in the model, "" for the whole.
        names: the weights' names in the model by their names in the module.
        is_graph: calls are captured; else they run in plain Python.
        is_pinned: a call that cannot be captured is an error.
        told: what was warned of already, shared by the parts of a model.
        lock: shared by the parts of a model.
    """

    def __init__(
        self,
        plan: Plan,
        frontend: Frontend | None = None,
        *,
        path: str = "",
        names: Mapping[str, str] | None = None,
        is_graph: bool = True,
        is_pinned: bool = False,
        told: set[str] | None = None,
        lock: Lock | None = None,
    ) -> None:
        self._plan = plan
        self._frontend = frontend
        self._path = path
        self._is_graph = is_graph
        self._is_pinned = is_pinned
        self._names = names or {}
        self._lock = lock or threading.RLock()
        self._told: set[str] = set() if told is None else told
        self._uncaptured: set[tuple[bool, bool]] = set()  # (training, gradients on) of calls that were not captured

    def __deepcopy__(self, memo: dict[int, Any]) -> Caller:
        copied = copy.copy(self)
        copied._frontend, copied._uncaptured = None, set()  # the copy captures for itself
        copied._lock = memo.setdefault(id(self._lock), threading.RLock())  # one for all parts of the copied model
        return copied

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``model``; one thread at a time, as its parts swap weights that the others read."""
        with self._lock:
            call = self._exported if torch.compiler.is_exporting() else self._call
            return call(model, args, kwargs)

    def _exported(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return exported(model, args, kwargs)

    def _call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mode = (model.training, torch.is_grad_enabled())
        if not self._is_graph or mode in self._uncaptured:
            return self._in_python(model, args, kwargs)
        if in_transform():
            if self._path:
                return self._in_python(model, args, kwargs)  # the model has said so
            return self._instead(model, args, kwargs, _in_transform_error(model))
        try:
            with unaligned():
                return self._captured(model)(*args, **kwargs)
        except CaptureError as error:
            refused = error
        return self._uncapturable(model, args, kwargs, refused)

    def _uncapturable(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], refused: CaptureError
    ) -> Any:
        """As ``_instead``, and later calls in this mode are not tried."""
        result = self._instead(model, args, kwargs, refused)
        self._uncaptured.add((model.training, torch.is_grad_enabled()))
        return result

    def _instead(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], refused: CaptureError) -> Any:
        """The call in plain Python, for what was ``refused``; that is said once, and raised where a graph was asked."""
        if self._is_pinned:
            raise refused
        result = self._in_python(model, args, kwargs)  # an error here is the model's own
        if str(refused) not in self._told:
            self._told.add(str(refused))
            warnings.warn(f"this and later calls like it run in plain Python: {refused}", stacklevel=callers_level())
        return result

    def _captured(self, model: nn.Module) -> Frontend:
        if self._frontend is None or self._frontend.model is not model:
            self._frontend = Frontend(model, unsplit_class(model), prefix=self._path, names=self._names)
        if self._frontend.compile_program is None:
            self._frontend.compile_program = self._compile(model)
            self._frontend.inner = parts_below(model)
        return self._frontend

    def _compile(self, model: nn.Module) -> Compile:
        return compiler(self._plan, model)

    def _in_python(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = first_device(args, kwargs)
        with aligned():
            result = unsplit_class(model).forward(model, *args, **kwargs)
        return result if self._path or device is None else to_device(result, device)


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call that torch.export records: the forward as the user wrote it.

    Raises:
        PlanError: its weights are on several devices.
    """
    homes = {str(weight.device) for weight in (*model.parameters(), *model.buffers())}
    if len(homes) > 1:
        raise PlanError(
            f"torch.export of a {type(model).__name__} whose weights are on {', '.join(sorted(homes))}: an exported "
            "program runs on one device; bring the model to one first (model.to('cpu')), or export it before the split"
        )
    with without_parts(model):
        return unsplit_class(model).forward(model, *args, **kwargs)


def _in_transform_error(model: nn.Module) -> CaptureError:
    return CaptureError(
        f"a call of {type(model).__name__} within torch.func (grad, vmap, jacrev) cannot be captured as one graph: the "
        "transform wraps its tensors; partition without capture='graph' and through one process, or transform the "
        "model before it is split"
    )


def install_parts(model: nn.Module, plan: Plan, captured: Captured | None, lock: Lock) -> None:
    """Give the submodules that are called by themselves forwards that run where their weights are.

    Parts that are graphs of their own are called from the model's own Python; any other submodule may be called by the
    user, or by a library. The largest on one device run as they are, and so do the embeddings in them: a library looks
    ids up by itself (BLIP-2, in generate). One on several devices is captured like the model, or runs in plain Python
    where the model does.
    """
    remove_parts(model)
    units: list[str] = []
    told: set[str] = set()
    homes = homes_below(model)
    if plan.capture == "graph" and len(set().union(*homes.values())) < 2:
        return
    for path, devices in homes.items():
        module = model.get_submodule(path)
        is_graph = plan.capture == "graph" or _is_within(path, plan.parts)
        if path in plan.parts or len(devices) > 1:
            frontend = captured.parts.get(path) if captured is not None else None
            names = part_names(model, module)
            add_part(module, Caller(plan, frontend, path=path, names=names, is_graph=is_graph, told=told, lock=lock))
        elif devices and (isinstance(module, nn.Embedding) or not _is_within(path, units)):
            units.append(path)
            add_part(module, _Locked(lock))


class _Locked:
    """Calls a unit, one thread at a time with the rest of its model."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def __deepcopy__(self, memo: dict[int, Any]) -> _Locked:
        return _Locked(memo.setdefault(id(self._lock), threading.RLock()))

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``module``."""
        with self._lock:
            return call_unit(module, args, kwargs)


def callers_level() -> int:
    """How far up the stack the caller's own line is, for a warning to name it."""
    roots = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(roots):
        level, frame = level + 1, frame.f_back
    return level


def _is_within(path: str, paths: Collection[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in paths)


def compiler(plan: Plan, model: nn.Module) -> Compile:
    """Makes what runs one captured program, emitted once for each set of devices that its inputs come from.

    Dynamo keeps it for good, so it knows the model by a weak reference.
    """
    known = weakref.ref(model)
    devices = torch_devices(plan.cluster)
    present = {device: name for name, device in devices.items() if name != HOST}

    def compile_program(program: Program) -> Run:
        emitted: dict[tuple[Any, ...], Emitted] = {}
        sources = list(program.inputs.values())
        movable = [i for i, source in enumerate(sources) if source.moves]
        weights = [i for i, source in enumerate(sources) if source.is_weight]

        def run(inputs: Sequence[Any], io_device: torch.device, homes_id: int) -> Sequence[Any]:
            refuse_shared_memory(program, inputs)
            arrived = list(inputs)
            strangers = [i for i in movable if inputs[i].device != io_device and inputs[i].device not in present]
            for i in strangers:
                arrived[i] = inputs[i].to(io_device)
            key = (io_device, homes_id, *(arrived[i].device for i in movable))
            if key not in emitted:
                names = {i: present.get(arrived[i].device, HOST) for i in movable}
                homes = {sources[i].name: present.get(inputs[i].device, HOST) for i in weights}  # the user may move one
                emitted[key] = _emit(plan, program, io_device, names, homes)
            current = known()
            if current is not None:
                note_graph_module(current, emitted[key].graph_module)
            with closed_on_error(io_device.type):
                outputs: Sequence[Any] = emitted[key].graph_module.forward(*arrived)
            for i in strangers:
                if i in program.written_inputs:
                    inputs[i].copy_(arrived[i])  # the caller's own tensor is what the model wrote to
            return outputs

        return run

    return compile_program


def refuse_shared_memory(program: Program, inputs: Sequence[Any]) -> None:
    """Two inputs in one memory, one of them written, were captured as two: one write would be lost."""
    if not program.written_inputs:
        return
    owner: dict[int, int] = {}
    for i, value in enumerate(inputs):
        if isinstance(value, torch.Tensor):
            first = owner.setdefault(value.untyped_storage()._cdata, i)
            if inputs[first] is not value and program.written_inputs & {i, first}:
                names = [source.name for source in program.inputs.values()]
                raise CaptureError(
                    f"{names[first]!r} and {names[i]!r} share memory, and forward writes to it: "
                    "pass tensors of their own (clone one)"
                )


def _emit(
    plan: Plan,
    program: Program,
    io_device: torch.device,
    arrivals: Mapping[int, str],
    homes: Mapping[str, str],
) -> Emitted:
    devices = torch_devices(plan.cluster)
    io_name = str(io_device) if str(io_device) in devices else HOST
    devices[HOST] = io_device if io_name == HOST else devices[HOST]
    emitted = rewrite(
        program, assign(program, plan.placement, {**plan.weights, **homes}, io_name), devices, io_name, arrivals
    )
    check_split(emitted)
    return emitted
