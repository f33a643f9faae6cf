"""The user's module, split in place: the same object, of a dynamic subclass of its own class.

Weights go to their homes one by one and keep their identity, so an optimizer made before stays valid. If a move
fails, those already moved go back.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn

from autosplit.device import HOST
from autosplit.errors import PlanError
from autosplit.placement import Plan, fingerprint

Call = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]

_STATE = "_autosplit"


class SplitState:
    """What a split module carries: how to call it, its plan, and the graph it ran last.

    ``is_partial``: its other weights are with other ranks. ``lock`` is held by its calls. ``written`` is the class that
    the user wrote, which ``install`` notes.
    """

    written: type[nn.Module]

    def __init__(self, call: Call, plan: Plan | None = None, *, is_partial: bool = False, lock: Any = None) -> None:
        self.call = call
        self.plan = plan
        self.is_partial = is_partial
        self.lock = lock or threading.RLock()
        self.graph_module: fx.GraphModule | None = None
        self.stage_modules: tuple[fx.GraphModule, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> SplitState:
        copied = copy.copy(self)
        copied.lock = memo.setdefault(id(self.lock), threading.RLock())  # that of its calls, where those have one
        copied.call = copy.deepcopy(self.call, memo)
        return copied


def install(model: nn.Module, state: SplitState) -> None:
    """Make ``model`` call ``state.call``; its class becomes a subclass of the one it had."""
    known: SplitState | None = model.__dict__.get(_STATE)
    state.written = type(model) if known is None else known.written
    if known is None:
        model.__class__ = _subclass(type(model))
    model.__dict__[_STATE] = state


def is_called_by(model: nn.Module, call: Call) -> bool:
    """Whether ``call`` is what a call of the split ``model`` runs, still."""
    state: SplitState = model.__dict__[_STATE]
    return state.call is call


def between_calls(model: nn.Module) -> AbstractContextManager[Any]:
    """Waits for the call that another thread has of a split model, and keeps others waiting."""
    state: SplitState | None = getattr(model, "__dict__", {}).get(_STATE)  # it may be anything yet
    return nullcontext() if state is None else state.lock


def note_graph_module(model: nn.Module, graph_module: fx.GraphModule) -> None:
    """Keep the graph that ``model`` runs, for ``split.graph_module``; a part of a model keeps none."""
    if _STATE in model.__dict__:
        model.__dict__[_STATE].graph_module = graph_module


def note_stage_modules(model: nn.Module, stage_modules: Iterable[fx.GraphModule]) -> None:
    """Keep the graphs of the stages that ``model`` runs, for ``split.stage_modules``."""
    if _STATE in model.__dict__:
        model.__dict__[_STATE].stage_modules = tuple(stage_modules)


def unsplit_class(model: nn.Module) -> type[nn.Module]:
    """The class that the user wrote, also when the model is split already."""
    state: SplitState | None = model.__dict__.get(_STATE)
    return type(model) if state is None else state.written  # another thread may be in a call: type(model) is that then


@contextmanager
def unsplit(model: nn.Module) -> Iterator[None]:
    """The model of the class that the user wrote, for a call as it was before."""
    current = type(model)
    model.__class__ = unsplit_class(model)
    try:
        yield
    finally:
        model.__class__ = current


def place_weights(model: nn.Module, homes: Mapping[str, torch.device]) -> None:
    """Move each parameter and buffer to its home, keeping its identity; all or none.

    Args:
        model: weights without a home stay where they are.
        homes: device by name, as in named_parameters and named_buffers.

    Raises:
        PlanError: a weight has no data (it is on the meta device), and its home is a device that holds data.
        torch.OutOfMemoryError: a home is full; the weights are back where they were.
    """
    weights: dict[str, torch.Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, device in homes.items():
        if weights[name].is_meta and _holds_data(device):
            raise PlanError(
                f"weight {name!r} is on the meta device and has no data to put on {device}: "
                "load the model's weights first, or only plan"
            )
    moved: list[tuple[torch.Tensor, torch.device]] = []
    try:
        for name, device in homes.items():
            was = weights[name].device
            if was != device:
                _move(weights[name], device)
                moved.append((weights[name], was))
    except BaseException:
        for tensor, was in reversed(moved):
            _move(tensor, was)
        raise


def weight_signature(model: nn.Module) -> str:
    """Fingerprint of the names, shapes and dtypes of all parameters and buffers."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return fingerprint([(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in named])


def _subclass(cls: type[nn.Module]) -> type[nn.Module]:
    @torch.compiler.disable(reason="a split model captures its own forward; torch.export it with strict=False")  # type: ignore[untyped-decorator]
    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__[_STATE].call(self, args, kwargs)

    forward.__signature__ = inspect.signature(cls.forward)  # what inspect reads first
    members = {"forward": forward, "__module__": cls.__module__, "__doc__": cls.__doc__}
    members |= {"plan": property(_plan), "graph_module": property(_graph_module)}
    members["stage_modules"] = property(_stage_modules)
    members |= {"named_parameters": _here(cls.named_parameters), "named_buffers": _here(cls.named_buffers)}
    members["__qualname__"] = cls.__qualname__
    members["__reduce_ex__"] = lambda self, protocol: _reduced(cls, self, protocol)
    members["__deepcopy__"] = lambda self, memo: _deepcopied(cls, self, memo)
    own = getattr(cls, "device", None)
    if isinstance(own, property):
        members["device"] = property(lambda self: _device(self, own))
    return type(cls.__name__, (cls,), members)  # the name too: configs and loss functions are looked up by it


def _here(written: Any) -> Any:
    """Of the model's weights those of this rank: what a pipeline through ranks has elsewhere is on the meta device."""

    @functools.wraps(written)
    def named(self: nn.Module, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        state: SplitState = self.__dict__[_STATE]
        for name, tensor in written(self, *args, **kwargs):
            if not (state.is_partial and tensor.is_meta):
                yield name, tensor

    return named


class _Copied:
    """Makes a copy of a split module for copy.deepcopy; pickle stops here."""

    def __init__(self, make: Callable[..., Any], name: str) -> None:
        self._make, self._name = make, name

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __reduce__(self) -> Any:
        raise PlanError(
            f"a split {self._name} cannot be pickled: save its state_dict() and its plan as plan.json; "
            f"partition(model, devices, plan='plan.json') splits a new {self._name}, and load_state_dict fills it"
        )


def _deepcopied(cls: type[nn.Module], model: nn.Module, memo: dict[int, Any]) -> Any:
    """As its class as the user wrote it is copied, between calls: in a capture the weights are swapped."""
    own: Any = getattr(cls, "__deepcopy__", None)
    with between_calls(model):
        if own is not None:
            return own(model, memo)
        return copy._reconstruct(model, memo, *model.__reduce_ex__(4))  # type: ignore[attr-defined]  # as copy does it


def _reduced(cls: type[nn.Module], model: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """What copy and pickle take ``model`` apart into, as its class as the user wrote it does."""
    parts: Any = cls.__reduce_ex__(model, protocol)
    return _Copied(parts[0], cls.__name__), *parts[1:]


def _plan(model: nn.Module) -> Plan:
    plan: Plan | None = model.__dict__[_STATE].plan
    if plan is None:
        raise PlanError("not planned yet: call the model once, or pass args to partition")
    return plan


def _device(model: nn.Module, own: property) -> Any:
    """What libraries ask for to put inputs beside a model (transformers, diffusers): where this one's come and go."""
    plan: Plan | None = model.__dict__[_STATE].plan
    if plan is None:
        return own.fget(model) if own.fget is not None else None
    return torch.device("cpu") if plan.io_device == HOST else torch.device(plan.io_device)


def _graph_module(model: nn.Module) -> fx.GraphModule:
    state: SplitState = model.__dict__[_STATE]
    graph_module = state.graph_module
    if state.plan is not None and state.plan.capture != "graph":
        raise PlanError(f"this model runs as {len(state.plan.parts)} graphs, not one: see split.plan.parts")
    if graph_module is None and state.stage_modules:
        raise PlanError("this model runs as the stages of a pipeline: see split.stage_modules")
    if graph_module is None:
        raise PlanError("not emitted yet: call the model once")
    return graph_module


def _stage_modules(model: nn.Module) -> tuple[fx.GraphModule, ...]:
    """The graphs of a pipeline's stages, in order; empty before the first call in micro-batches."""
    found: tuple[fx.GraphModule, ...] = model.__dict__[_STATE].stage_modules
    return found


def _holds_data(device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    return device.type != "meta" and getattr(torch.get_device_module(device), "holds_data", True)


def _move(tensor: torch.Tensor, device: torch.device) -> None:
    """Move the tensor, and its gradient, to ``device``; every reference to it sees the move."""
    with torch.inference_mode(False), torch.no_grad():
        moved = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
    if tensor.grad is not None:
        gradient = tensor.grad
        tensor.grad = None
        _replace(tensor, moved)
        tensor.grad = gradient.to(device)
    else:
        _replace(tensor, moved)


def _replace(tensor: torch.Tensor, moved: torch.Tensor) -> None:
    if torch._has_compatible_shallow_copy_type(tensor, moved):
        tensor.data = moved
        return
    if isinstance(tensor, nn.Parameter):
        moved = nn.Parameter(moved, requires_grad=tensor.requires_grad)
    hooks, after = tensor._backward_hooks, tensor._post_accumulate_grad_hooks
    torch.utils.swap_tensors(tensor, moved)  # as nn.Module.to does between unlike backends
    tensor._backward_hooks, tensor._post_accumulate_grad_hooks = hooks, after
