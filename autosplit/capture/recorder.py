"""The recorder: a function mode that writes down every torch call, and which module made it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from autosplit.capture.around import refuse_iterators
from autosplit.graph import Mode
from autosplit.holders import Exchange
from autosplit.program import RECORDED, Input, Program, Recorded, Spec

_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"),
    *("lt", "le", "gt", "ge", "eq", "ne", "getitem", "neg", "invert"),
)
_INFIX: dict[str, tuple[Callable[..., Any], bool]] = {
    f"__{reflected}{name.strip('_')}__": (getattr(operator, name), bool(reflected))
    for name in _OPERATORS
    for reflected in ("", "r")
}
"""Python's operators by the method that a tensor implements them with, and whether its arguments are the other way."""

_SIMPLE = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class Call:
    """The first call of a submodule: its arguments without data, and whether gradients were on."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad: bool


class Recorder(TorchFunctionMode):
    """Writes down every torch function that is called in Python, under the module that called it."""

    def __init__(self, model: nn.Module, weights: Mapping[int, Input], inputs: Mapping[int, str]) -> None:
        super().__init__()
        self._input_names = inputs
        self.calls: dict[str, Call] = {}
        self._model = model
        self._weights = weights
        self._graph = fx.Graph()
        self._inputs: list[Input] = []
        self._last_input: fx.Node | None = None
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], fx.Node]] = {}
        self._path: list[str] = [""]
        self._grad = torch.is_grad_enabled()

    def __torch_function__(
        self, func: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _is_noted(func, result):
            self._note(func, args, kwargs, result)
        return result

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, every operator and every call of a submodule is written down."""
        wrapped: list[tuple[nn.Module, Any]] = []
        for path, module in self._model.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):
                wrapped.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = self._watched(path, module.forward)
        try:
            with self:
                yield
        finally:
            for module, was in wrapped:
                if was is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = was

    def ran(self, result: Any) -> None:
        """Note what forward returned."""
        refuse_iterators(self._model, result)
        plain: list[fx.Node] = []
        held: list[fx.Node] = []

        def visit(tensor: torch.Tensor, is_plain: bool) -> torch.Tensor:
            node = self._node(tensor)
            if node.op != "placeholder":  # a weight or an input as it is stays where it is
                (plain if is_plain else held).append(node)
            return tensor

        self._note_grad_mode()
        Exchange(visit, copies=False)(result)
        self._graph.output((*plain, *held))
        self._returned = frozenset(range(len(plain)))

    def program(self, mode: Mode) -> Program:
        """The record as a program."""
        program = Program(fx.GraphModule(nn.Module(), self._graph), self._inputs, mode)
        program.returned = self._returned
        return program

    def _watched(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if path not in self.calls:
                with contextlib.suppress(Exception):  # an argument that cannot be copied: no region is tried there
                    positional, named = _form((args, kwargs))
                    self.calls[path] = Call(positional, named, torch.is_grad_enabled())
            self._path.append(path)
            try:
                return forward(*args, **kwargs)
            finally:
                self._path.pop()

        return call

    def _note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self._note_grad_mode()
        if func is torch.autograd.grad:  # what it differentiates by is gone when a copy is made of it
            func, args, kwargs = Recorded(func, _specs(result)), tuple(_tensors((args, kwargs))), {}
        kwargs = {key: value for key, value in kwargs.items() if not isinstance(value, torch.Generator)}
        op, target, args = _target(func, args)
        given = _map((args, kwargs), self._argument)
        if not _is_simple(given):
            op, target, given = "call_function", _Bound(func, args, kwargs), (tuple(_tensors((args, kwargs))), {})
            given = _map(given, self._argument)
        node = self._graph.create_node(op, target, *given)
        path = self._path[-1]
        node.meta["nn_module_stack"] = {path: (path, nn.Module)} if path else {}
        node.meta[RECORDED] = _specs(result)
        self._know(result, node)

    def _note_grad_mode(self) -> None:
        if torch.is_grad_enabled() != self._grad:
            self._grad = torch.is_grad_enabled()
            self._graph.call_function(torch._C._set_grad_enabled, (self._grad,))

    def _know(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, torch.Tensor):
            self._known[id(result)] = (weakref.ref(result), node)
        elif isinstance(result, (tuple, list)):
            for i, item in enumerate(result):
                if isinstance(item, torch.Tensor) or (isinstance(item, (tuple, list)) and _tensors(item)):
                    self._know(item, self._item(node, i))

    def _item(self, node: fx.Node, index: int) -> fx.Node:
        item = self._graph.call_function(operator.getitem, (node, index))
        item.meta["nn_module_stack"] = node.meta["nn_module_stack"]
        return item

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._node(value)
        return value.item() if isinstance(value, np.generic) else value

    def _node(self, tensor: torch.Tensor) -> fx.Node:
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        return self._placeholder(tensor)

    def _placeholder(self, tensor: torch.Tensor) -> fx.Node:
        """A tensor that no recorded operator made: a weight, an input, or one made out of sight."""
        name = self._input_names.get(id(tensor), f"given{len(self._inputs)}")
        source = self._weights.get(id(tensor)) or Input("input", name, Spec.of(tensor))
        place = self._graph.inserting_after(self._last_input) if self._last_input else self._graph.inserting_before()
        with place:
            node = self._graph.placeholder(f"in{len(self._inputs)}")
        self._last_input = node
        self._inputs.append(source)
        self._known[id(tensor)] = (weakref.ref(tensor), node)
        return node


class _Bound:
    """A recorded call with arguments that a graph cannot hold (an object): it takes the tensors alone."""

    def __init__(self, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.__name__ = getattr(func, "__name__", "call")
        self.__module__ = __name__
        self._func = func
        self._arguments = _map((args, kwargs), lambda a: _HOLE if isinstance(a, torch.Tensor) else a)

    def __call__(self, *tensors: Any) -> Any:
        rest = iter(tensors)
        args, kwargs = _map(self._arguments, lambda a: next(rest) if a is _HOLE else a)
        return self._func(*args, **kwargs)


_HOLE = object()


def input_names(
    model: nn.Module, written: type[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[int, str]:
    """The parameter of forward that each tensor came in by."""
    bound = inspect.signature(types.MethodType(written.forward, model)).bind(*args, **kwargs)
    return {id(value): name for name, value in bound.arguments.items() if isinstance(value, torch.Tensor)}


def _specs(result: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, Spec.of, result)


def _is_noted(func: Callable[..., Any], result: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name != "__set__" and bool(_tensors(result)))


def _target(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, Any, tuple[Any, ...]]:
    """Kind, target and arguments of the node for a call, as Dynamo would write them."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return "call_function", getattr, (args[0], func.__self__.__name__)  # type: ignore[attr-defined]  # a descriptor
    if name == "__setitem__":
        return "call_function", operator.setitem, args
    if name in _INFIX and len(args) <= 2:
        infix, reflected = _INFIX[name]
        return "call_function", infix, args[::-1] if reflected else args
    if getattr(torch.Tensor, name, None) is func:
        return "call_method", name, args
    return "call_function", func, args


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """Nested arguments as fx nests them, slices among them, with ``function`` of each leaf."""
    return fx.node.map_aggregate(value, function)


def _is_simple(given: Any) -> bool:
    if isinstance(given, (tuple, list)):
        return all(map(_is_simple, given))
    if isinstance(given, dict):
        return all(isinstance(key, str) for key in given) and all(map(_is_simple, given.values()))
    if isinstance(given, slice):
        return _is_simple((given.start, given.stop, given.step))
    return isinstance(given, (*_SIMPLE, fx.Node)) or given is ...


def _tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _map(value, lambda a: found.append(a) if isinstance(a, torch.Tensor) else None)
    return found


def _form(value: Any) -> Any:
    """A copy of nested arguments, objects among them, with tensors that have no data."""
    memo: dict[int, Any] = {}

    def visit(tensor: torch.Tensor, _: bool) -> torch.Tensor:
        if id(tensor) not in memo:
            with torch.inference_mode(False), _no_fakes(tensor):
                memo[id(tensor)] = Spec.of(tensor).empty("meta")
        return tensor

    Exchange(visit, copies=False)(value)
    return copy.deepcopy(value, memo)


def _no_fakes(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    if isinstance(tensor, FakeTensor):
        return torch._subclasses.fake_tensor.unset_fake_temporarily()
    return contextlib.nullcontext()
