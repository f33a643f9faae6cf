"""Alignment: plain Python over modules on several devices, each operator where its weights are.

It serves what no captured graph serves: a model that Dynamo cannot take, the Python between captured parts, and a
call that was never captured. An operator whose tensors are on several devices runs where its parameter is, else where
its last tensor is; what it writes in place stays where it is.
"""

from __future__ import annotations

import inspect
import itertools
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from autosplit.holders import Exchange, first_device, to_device

Call = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]

_MOVES = frozenset({"to", "cpu", "cuda", "copy_", "type_as", "set_", "__set__", "__get__", "swap_tensors", "is_set_to"})
_WRITES = frozenset(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")) | {
    "__setitem__"
}

_TO_HOST = frozenset({"numpy", "__array__"})
_LENGTHS = frozenset({"_pack_padded_sequence", "_pad_packed_sequence", "lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Functions that want their second argument on the host when it holds the lengths of a packed sequence."""


class Alignment(TorchFunctionMode):
    """Inside, an operator's tensors are brought to one device first; each is copied once a device while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[tuple[int, int, torch.device, bool], tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _TO_HOST and args[0].device.type != "cpu":
            args = (args[0].cpu(), *args[1:])  # as if the model were on the CPU, where its author ran it
        tensors = _tensors(args, kwargs)
        if len({tensor.device for tensor in tensors}) > 1 and getattr(func, "__name__", "") not in _MOVES:
            target = _target(func, args, tensors)
            held = args[1] if getattr(func, "__name__", "") in _LENGTHS and _are_lengths(args[1]) else None
            args, kwargs = _map(
                (args, kwargs),
                lambda a: self.moved(a, target) if isinstance(a, torch.Tensor) and a is not held else a,
            )
        return func(*args, **kwargs)

    def moved(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """``tensor`` on ``device``; the copy made before, if neither the tensor nor the grad mode has changed."""
        if tensor.device == device:
            return tensor
        if tensor.is_inference():
            return tensor.to(device)  # it has no version: a copy cannot be known to be fresh
        key = (id(tensor), tensor._version, device, torch.is_grad_enabled())
        known = self._copies.get(key)
        if known is None or known[0]() is not tensor:
            self._copies[key] = known = (weakref.ref(tensor), tensor.to(device))
        return known[1]

    def close(self) -> None:
        """Drop the copies."""
        self._copies.clear()


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


@contextmanager
def unaligned() -> Iterator[None]:
    """Without alignment: a captured graph has its transfers inside, and Dynamo would trace into the mode."""
    alignment = _current()
    if alignment is None:
        yield
        return
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

    @torch.compiler.disable(reason="a part captures its own forward")  # type: ignore[untyped-decorator]
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
            return plain_forward(module)(*args, **kwargs)
        finally:
            exchange.put_back({id(here): tensor for tensor, here, _ in brought})
            for tensor, here, version in brought:
                if _version(here) != version or tensor.is_inference():
                    tensor.copy_(here)  # the module wrote into its input


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
    callable_ = {path for path, module in model.named_modules() if type(module).forward is not nn.Module.forward}
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


def _target(func: Callable[..., Any], args: tuple[Any, ...], tensors: list[torch.Tensor]) -> torch.device:
    name = getattr(func, "__name__", "")
    writes = name in _WRITES or (name.endswith("_") and not name.endswith("__"))
    if writes and isinstance(args[0], torch.Tensor):
        return args[0].device
    for tensor in tensors:
        if isinstance(tensor, nn.Parameter):
            return tensor.device
    sized = [t for t in tensors if t.dim() and not (name in _LENGTHS and _are_lengths(t))] or tensors
    return sized[-1].device
