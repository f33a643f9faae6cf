"""Alignment: plain Python over modules on several devices, each operator where its weights are.

It serves what no captured graph serves: a model that Dynamo cannot take, the Python between captured parts, and a
call that was never captured. An operator whose tensors are on several devices runs where its parameter is, else where
its last tensor is; what it writes in place stays where it is.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from autosplit.holders import Exchange, first_device, to_device

Call = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]

_MOVES = frozenset(
    {
        "to",
        "cpu",
        "cuda",
        "copy_",
        "type_as",
        "set_",
        "__set__",
        "__get__",
        "swap_tensors",
        "is_set_to",
        "grad",
        "backward",
    }
)
_INFIX = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_WRITES = frozenset(f"__i{name}__" for name in _INFIX) | {"__setitem__"}

_TO_HOST = frozenset({"numpy", "__array__"})
_LENGTHS = frozenset({"_pack_padded_sequence", "_pad_packed_sequence", "lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Functions that want their second argument on the host when it holds the lengths of a packed sequence."""


class Alignment(TorchFunctionMode):
    """Inside, an operator's tensors are brought to one device first; each is copied once a device while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[Any, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _TO_HOST and args[0].device.type != "cpu":
            args = (args[0].cpu(), *args[1:])  # as if the model were on the CPU, where its author ran it
        tensors = _tensors(args, kwargs)
        if len({tensor.device for tensor in tensors}) < 2 or getattr(func, "__name__", "") in _MOVES:
            return func(*args, **kwargs)
        return self._call(func, args, kwargs, _target(func, args, kwargs, tensors))

    def _call(self, func: Callable[..., Any], args: Any, kwargs: Any, target: torch.device) -> Any:
        """Call with every tensor on ``target``; what the function writes to a copy is written to the tensor too."""
        held = args[1] if getattr(func, "__name__", "") in _LENGTHS and _are_lengths(args[1]) else None
        brought: list[tuple[torch.Tensor, torch.Tensor, int]] = []

        def bring(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value is held or value.device == target:
                return value
            here = self.moved(value, target)
            brought.append((value, here, _version(here)))
            return here

        args, kwargs = _map((args, kwargs), bring)
        result = func(*args, **kwargs)
        for tensor, here, version in brought:
            if _version(here) != version:
                tensor.copy_(here)
        return result

    def moved(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """``tensor`` on ``device``; the copy made before, if neither the tensor nor the grad mode has changed."""
        if tensor.device == device:
            return tensor
        if tensor.is_inference() or in_transform():
            return tensor.to(device)  # it has no version, or a copy does not outlive the transform
        key = (id(tensor), tensor._version, device, torch.is_grad_enabled(), tensor.requires_grad)
        known = self._copies.get(key)
        if known is None or known[0]() is not tensor:
            gone = functools.partial(_forget, self._copies, key)  # a copy lives as long as its tensor, at most
            self._copies[key] = known = (weakref.ref(tensor, gone), tensor.to(device))
        return known[1]

    def close(self) -> None:
        """Drop the copies."""
        self._copies.clear()


def _forget(copies: dict[Any, Any], key: Any, _: Any) -> None:
    copies.pop(key, None)


@contextmanager
def aligned() -> Iterator[Alignment]:
    """The alignment that is on in this thread, or a new one."""
    on = _current()
    if on is not None:
        yield on
        return
    alignment = Alignment()
    try:
        with alignment:
            yield alignment
    finally:
        alignment.close()


def in_transform() -> bool:
    """Whether a transform of torch.func is on in this thread: tensors may be wrappers, with no storage to ask for."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def unaligned() -> AbstractContextManager[None]:
    """Without alignment: a captured graph has its transfers inside, and Dynamo would trace into the mode."""
    alignment = _current()
    return nullcontext() if alignment is None else _without(alignment)


@contextmanager
def _without(alignment: Alignment) -> Iterator[None]:
    above: list[Any] = []
    while (mode := _pop_mode()) is not alignment:
        above.append(mode)
    for other in reversed(above):
        _push_mode(other)
    try:
        yield
    finally:
        for _ in above:
            _pop_mode()
        _push_mode(alignment)
        for other in reversed(above):
            _push_mode(other)


class Part:
    """The forward of a submodule of a split model; it stands in the submodule's ``__dict__``.

    It serves the calls that do not come from inside a captured graph: from the model's own Python, and from outside
    (``generate()`` calls an encoder by itself); the latter get their results where their arguments are.
    """

    def __init__(self, module: nn.Module, call: Call) -> None:
        self._module = module
        self._call = call
        self.__signature__ = inspect.signature(plain_forward(module))  # what libraries look at before they call

    @property
    def __code__(self) -> types.CodeType:
        """That of the forward it stands for: torch.export reads a line number of it."""
        code: types.CodeType = plain_forward(self._module).__code__
        return code

    @torch.compiler.disable(reason="a part captures its own forward; torch.export it with strict=False")  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the submodule."""
        device = first_device(args, kwargs) if _current() is None else None
        result = self._call(self._module, args, kwargs)
        return result if device is None else to_device(result, device)


def call_unit(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call, in plain Python, a submodule whose weights are all on one device: its inputs are brought there.

    Operators that the alignment cannot see, in a custom autograd function or in C++, find all on one device so.
    """
    device = next(itertools.chain(module.parameters(), module.buffers())).device
    brought: list[tuple[torch.Tensor, torch.Tensor, int]] = []
    with aligned() as alignment:

        def bring(tensor: torch.Tensor, plain: bool) -> torch.Tensor:
            if not plain or tensor.device == device:
                return tensor
            here = alignment.moved(tensor, device)
            brought.append((tensor, here, _version(here)))
            return here

        exchange = Exchange(bring, copies=True)
        args = tuple(map(exchange, args))
        kwargs = {key: exchange(value) for key, value in kwargs.items()}
        try:
            result = plain_forward(module)(*args, **kwargs)
            return Exchange(lambda t, _: _original(t, brought), copies=False)(result) if brought else result
        finally:
            exchange.put_back({id(here): tensor for tensor, here, _ in brought})
            for tensor, here, version in brought:
                if _version(here) != version or tensor.is_inference():
                    tensor.copy_(here)  # the module wrote into its input


def _original(result: torch.Tensor, brought: list[tuple[torch.Tensor, torch.Tensor, int]]) -> torch.Tensor:
    """A result that is an input, or a view of one, in terms of the input itself and not of its copy here."""
    for tensor, here, _ in brought:
        if result is here:
            return tensor
        if in_transform():
            continue  # a view of a copy stays one: there is no storage to know it by
        shared = result.untyped_storage()._cdata == here.untyped_storage()._cdata
        if shared and tensor.stride() == here.stride() and result.dtype == tensor.dtype:
            offset = tensor.storage_offset() + result.storage_offset() - here.storage_offset()
            return tensor.as_strided(result.size(), result.stride(), offset)
    return result


def plain_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward of the module's class, bound; a scripted module's is in C++."""
    if isinstance(module, torch.jit.ScriptModule):
        scripted: Callable[..., Any] = module.__getattr__("forward")
        return scripted
    return types.MethodType(type(module).forward, module)


def add_part(module: nn.Module, call: Call) -> None:
    """Make ``module`` call ``call``; what the user had put there as its forward must not be lost."""
    if "forward" not in module.__dict__:
        module.__dict__["forward"] = Part(module, call)


def remove_parts(model: nn.Module) -> None:
    """Give every submodule the forward of its class back."""
    for module, _ in parts_below(model):
        del module.__dict__["forward"]


def parts_below(model: nn.Module) -> list[tuple[nn.Module, Part]]:
    """The submodules that have a forward of ours, with it."""
    found = []
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if module is not model and isinstance(forward, Part):
            found.append((module, forward))
    return found


def homes_below(model: nn.Module) -> dict[str, set[torch.device]]:
    """Where the weights of each submodule that can be called are, by path, in the model's order."""
    homes: dict[str, set[torch.device]] = {path: set() for path, _ in model.named_modules(remove_duplicate=False)}
    weights = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, weight in weights:
        path = name.rpartition(".")[0]
        while path:
            homes[path].add(weight.device)
            path = path.rpartition(".")[0]
    none = nn.Module.forward  # and a ScriptModule's class has no attribute of that name
    callable_ = {path for path, module in model.named_modules() if getattr(type(module), "forward", none) is not none}
    return {path: found for path, found in homes.items() if path in callable_ and path}


def _are_lengths(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.int64 and value.device.type == "cpu"


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _current() -> Alignment | None:
    return next((mode for mode in _get_current_function_mode_stack() if isinstance(mode, Alignment)), None)


def _tensors(args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list, dict, slice)):
            _map(value, lambda a: found.append(a) if isinstance(a, torch.Tensor) else None)
    return found


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """Nested arguments as fx nests them, slices among them, with ``function`` of each leaf."""
    return fx.node.map_aggregate(value, function)


def _target(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]
) -> torch.device:
    name = getattr(func, "__name__", "")
    writes = name in _WRITES or (name.endswith("_") and not name.endswith("__"))
    if writes and isinstance(args[0], torch.Tensor):
        return args[0].device
    out = kwargs.get("out")
    if isinstance(out, torch.Tensor):
        return out.device
    for tensor in tensors:
        if isinstance(tensor, nn.Parameter):
            return tensor.device
    sized = [t for t in tensors if t.dim() and not (name in _LENGTHS and _are_lengths(t))] or tensors
    return sized[-1].device
