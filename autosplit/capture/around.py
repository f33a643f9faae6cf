"""Around a capture: what is checked before, and what is put back after."""

from __future__ import annotations

import inspect
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autosplit.errors import CaptureError
from autosplit.graph import Mode
from autosplit.holders import Snapshot
from autosplit.program import tensor_leaves


def check_arguments(
    model: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Check the arguments of a call before anything is tried with them.

    Raises:
        CaptureError: they do not match the signature, or no tensor is among them.
    """
    signature = inspect.signature(types.MethodType(forward, model))
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            f"the arguments do not match {type(model).__name__}.forward{signature}: {error}; "
            "pass args=(...) and kwargs={...} as you would call the model"
        ) from error
    if not tensor_leaves((list(args), kwargs)):
        found = (
            ", ".join(sorted({type(leaf).__name__ for leaf in pytree.tree_leaves((list(args), kwargs))})) or "nothing"
        )
        raise CaptureError(
            f"{type(model).__name__} was called without a tensor (found {found}): "
            "pass example inputs as torch tensors, on any device (meta will do)"
        )


@contextmanager
def in_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """train() or eval(), and gradients on or off, with every module's own flag restored after."""
    flags = [(module, module.training) for module in model.modules()]
    if model.training != (mode == "train"):
        with suppress(NotImplementedError):  # an exported program keeps the mode that it was exported in
            model.train(mode == "train")
    try:
        with torch.set_grad_enabled(mode == "train"):
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def without_parts(model: nn.Module) -> Iterator[None]:
    """The submodules of a model that is split already, with the forwards of their classes."""
    ours: list[tuple[nn.Module, Any]] = []
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if type(forward).__module__.startswith("autosplit."):
            ours.append((module, module.__dict__.pop("forward")))
    try:
        yield
    finally:
        for module, forward in ours:
            module.__dict__["forward"] = forward


def snapshot(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Snapshot:
    """Everything in Python that a call of ``model`` may change: arguments, attributes, and the globals of its code."""
    found: set[Any] = {getattr(type(module), "forward", None) for module in model.modules()}  # ScriptModules: none
    spaces = {id(code.__globals__): code.__globals__ for code in found if hasattr(code, "__globals__")}
    kept = [value for space in spaces.values() for value in space.values() if type(value) in (list, dict, set, deque)]
    return Snapshot([*args, *kwargs.values(), *(vars(module) for module in model.modules())], kept, spaces.values())


def refuse_iterators(model: nn.Module, result: Any) -> None:
    """A generator runs its body after the call, out of reach.

    Raises:
        CaptureError: ``result`` is one.
    """
    if isinstance(result, Iterator):
        raise CaptureError(
            f"{type(model).__name__}.forward returns a generator, which would compute after the call: "
            "return a list or a tuple"
        )
