"""Recording: one run of a model in plain Python, written down as a graph, for what Dynamo cannot capture as one.

The record is what a plan is made from: the operators of one run, which module each belongs to, and the call that each
submodule got. It runs on fake tensors, and on the real ones only where the model looks at the data.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import random
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autosplit.capture.frontend import refuse_iterators, snapshot
from autosplit.capture.standins import StandIns, fake_stand_in
from autosplit.errors import CaptureError
from autosplit.graph import Mode
from autosplit.holders import Exchange
from autosplit.program import RECORDED, Input, Program, Recorded, Spec, tensor_leaves, written_tensors

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


@dataclass(frozen=True)
class Record:
    """What one run showed.

    Attributes:
        program: the operators that ran, with the values that Python saw as constants.
        calls: the first call of each submodule by path.
        on_data: the run needed the real weights, as forward looks at the data.
    """

    program: Program
    calls: dict[str, Call]
    on_data: bool


def record(
    model: nn.Module, written: type[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode
) -> Record:
    """Run ``model`` once and write it down. Its flags, buffers, random numbers and objects are as before after.

    Args:
        model: in the mode that it is to be recorded in.
        written: the class whose forward is called.
        args: positional inputs; on fakes only their form is read.
        kwargs: keyword inputs.
        mode: "train" records with gradients on.

    Raises:
        CaptureError: forward looks at data and there is none (weights or inputs on the meta device), or it raised.
    """
    with _same_random_numbers():
        return _record(model, written, args, kwargs, mode)


def _record(
    model: nn.Module, written: type[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode
) -> Record:
    before = snapshot(model, args, kwargs)
    try:
        return _on_fakes(model, written, args, kwargs, mode)
    except Exception as error:
        before.restore()
        why = error
    finally:
        before.restore()
    try:
        return _on_data(model, written, args, kwargs, mode, why)
    finally:
        before.restore()


def _on_fakes(
    model: nn.Module, written: type[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode
) -> Record:
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    stand_ins = StandIns(model, make=lambda tensor: fake_stand_in(fakes, tensor))
    recorder = _run(model, written, args, kwargs, stand_ins, fakes)
    return Record(recorder.program(mode), recorder.calls, on_data=False)


def _on_data(
    model: nn.Module,
    written: type[nn.Module],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    mode: Mode,
    why: Exception,
) -> Record:
    """As on fakes, but on data, where the weights are; parameters are copied only if forward writes to one."""
    home = _home(model, why)
    with torch.random.fork_rng(devices=[home] if home.type == "cuda" else []):
        try:
            recorder = _run(model, written, args, kwargs, _on_home(model, home, why, copies=False), _ReadOnly(model))
        except _WriteError:
            recorder = _run(model, written, args, kwargs, _on_home(model, home, why, copies=True), nullcontext())
        except CaptureError:
            raise
        except Exception as error:
            raise ForwardError(
                f"{type(model).__name__}.forward raised {type(error).__name__}: {_first_line(error)}{_place(error)}; "
                "call the unsplit model with these inputs until it runs"
            ) from error
    return Record(recorder.program(mode), recorder.calls, on_data=True)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """What is drawn inside from Python's and NumPy's generators is drawn again after."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _run(
    model: nn.Module,
    written: type[nn.Module],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    stand_ins: StandIns,
    mode: AbstractContextManager[Any],
) -> _Recorder:
    """Record one run of ``model`` on stand-ins."""
    with stand_ins.swapped(keep=False), mode:
        given = stand_ins.of_inputs(args, kwargs)
        try:
            recorder = _Recorder(model, stand_ins.weights, _names(model, written, given.args, given.kwargs))
            with recorder.watching():
                recorder.ran(written.forward(model, *given.args, **given.kwargs))
        finally:
            given.finish()
    return recorder


def _home(model: nn.Module, why: Exception) -> torch.device:
    """The one device of the weights, which must hold data."""
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(homes) != 1 or next(iter(homes)).type == "meta":
        raise CaptureError(
            f"{type(model).__name__}.forward does not run without data ({_first_line(why)}), and its weights are on "
            f"{', '.join(sorted(map(str, homes)))}: load them on one device that holds data, such as the CPU"
        ) from why
    return homes.pop()


def _on_home(model: nn.Module, home: torch.device, why: Exception, *, copies: bool) -> StandIns:
    """Stand-ins with data: inputs and buffers are copies, which forward may write; parameters are where asked."""

    def make(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta:
            raise CaptureError(
                f"{type(model).__name__}.forward does not run without data ({_first_line(why)}), and an input is on "
                "the meta device: pass real example inputs"
            ) from why
        if isinstance(tensor, nn.Parameter) and tensor.device == home:
            return nn.Parameter(tensor.detach().clone(), tensor.requires_grad) if copies else tensor
        return tensor.detach().to(home, copy=True).requires_grad_(tensor.requires_grad)

    return StandIns(model, make=make)


class ForwardError(CaptureError):
    """The model itself raised when it was run, as it would unsplit."""


class _WriteError(Exception):
    """Forward is about to write to a parameter."""


class _ReadOnly(TorchDispatchMode):
    """Stops an operator that would write to a parameter of ``model``, and undoes what is written to other tensors.

    Those are tensors that were there before the run: a counter kept on an attribute, say.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._storages = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._born: set[int] = set()  # storages made inside, or written before; none that was there can take their ids
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in written_tensors(func, args, kwargs) if hasattr(func, "_schema") else ():
            storage = tensor.untyped_storage()._cdata
            if storage in self._storages:
                raise _WriteError
            if storage not in self._born:
                self._born.add(storage)
                self._before.append((tensor, tensor.detach().clone()))
        result = func(*args, **kwargs)
        self._born |= {tensor.untyped_storage()._cdata for tensor in tensor_leaves(result)}
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        with torch.no_grad():
            for tensor, was in self._before:
                tensor.copy_(was)


class _Recorder(TorchFunctionMode):
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


def _names(
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
        return "call_function", getattr, (args[0], func.__self__.__name__)  # type: ignore[attr-defined]
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


def _place(error: BaseException) -> str:
    """The last line of the model's own source that the error came through: " at FILE:LINE in FUNCTION"."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours_or_torchs(frame.filename)]
    return f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def _is_ours_or_torchs(filename: str) -> bool:
    return filename.startswith((str(Path(torch.__file__).parent), str(Path(__file__).parents[1])))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().split("\n")), "") or type(error).__name__
