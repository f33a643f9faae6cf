"""The one kernel behind every operator: check devices as CUDA does, run the CPU kernel, adopt what it made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from autosplit.sim import world as _world
from autosplit.sim.adopt import alias, take

_NUMBERS = (int, float, bool, complex)
# Indices may stay on the CPU; the indexed tensor and the values may not.
_INDEX_OPS = frozenset(("index", "_unsafe_index", "index_put", "_unsafe_index_put", "_index_put_impl"))
# Their CPU kernels take a Python number where the schema says Tensor.
_NUMBER_OPS = frozenset(("add", "sub", "mul", "div", "divide", "multiply", "subtract", "true_divide", "floor_divide"))


class Kernel:
    """An operator, and what the fallback has to know about it; made once per operator."""

    __slots__ = ("has_out", "index_argument", "name", "run", "tensor_arguments")

    def __init__(self, name: str, run: Callable[..., Any], schema: torch.FunctionSchema | None = None) -> None:
        self.name = name
        self.run = run
        base = name.removeprefix("aten::").partition(".")[0].rstrip("_")
        self.index_argument = 1 if base in _INDEX_OPS else -1
        arguments = schema.arguments if schema is not None else []
        self.has_out = any(argument.is_out for argument in arguments)
        self.tensor_arguments = (
            ()
            if base in _NUMBER_OPS
            else tuple(i for i, a in enumerate(arguments) if str(a.type) == "Tensor" and not a.kwarg_only)
        )


_kernels: dict[Any, Kernel] = {}


def fallback(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """The boxed kernel registered for every operator on the sim key."""
    kernel = _kernels.get(op)
    if kernel is None:
        kernel = _kernels[op] = Kernel(op.name(), op, op._schema)
    return run(kernel, args, kwargs)


def run(kernel: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``kernel`` on the memory of its sim arguments; the results are sim tensors of their device.

    Raises:
        RuntimeError: the tensors are on different devices.
        torch.OutOfMemoryError: a result does not fit.
    """
    state = _world.world()
    call = _Call(kernel, state.data)
    low_args = [call.lower_index(a) if i == kernel.index_argument else call.lower(a) for i, a in enumerate(args)]
    for i in kernel.tensor_arguments:
        # `x % 3` arrives with a Python number in a Tensor's place.
        if i < len(low_args) and type(low_args[i]) in _NUMBERS:
            low_args[i] = torch.tensor(low_args[i], device=call.host)
    low_kwargs = call.lower_kwargs(kwargs) if kwargs else kwargs
    index = call.check(state.current)
    result = _run_below(kernel, state.data, low_args, low_kwargs)
    if kernel.has_out:
        for low, high in call.pairs:
            _follow_resize(low, high, index)
    return call.lift(result, index)


class _Call:
    """One kernel call. A class, not closures: a closure that calls itself keeps every tensor alive until gc."""

    __slots__ = ("data", "host", "host_tensor", "index", "kernel", "known", "pairs")

    def __init__(self, kernel: Kernel, data: bool) -> None:
        self.kernel = kernel
        self.data = data
        self.host = "cpu" if data else "meta"
        self.host_tensor: torch.device | None = None
        self.index: int | None = None
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.known: dict[int, torch.Tensor] = {}  # the lower one by the id of the higher, which lives as long

    def lower(self, value: Any) -> Any:
        """``value`` with each sim tensor in it replaced by a CPU (or meta) tensor over its memory."""
        if isinstance(value, torch.Tensor):
            return self._lower_tensor(value)
        kind = type(value)
        if kind is list or kind is tuple:
            return kind([self.lower(item) for item in value])
        return value

    def lower_index(self, value: Any) -> Any:
        """As ``lower``, for a list of index tensors, which CUDA also takes from the CPU."""
        if self.index is None:
            return self.lower(value)
        lowered = []
        for item in value:
            on_host = isinstance(item, torch.Tensor) and item.device.type == "cpu"
            if isinstance(item, torch.Tensor) and not on_host and item.device.index != self.index:
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the indexed tensor "
                    f"({_world.NAME}:{self.index}), but found {item.device}"
                )
            lowered.append(item.to(self.host) if on_host else self.lower(item))
        return lowered

    def lower_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """As ``lower``, for keyword arguments; a sim ``device=`` decides where the result goes."""
        lowered = {name: self.lower(value) for name, value in kwargs.items()}
        device = lowered.get("device")
        if device is not None and torch.device(device).type == _world.NAME:
            self.index = _world.device_index(device)
            lowered["device"] = self.host
        if lowered.get("pin_memory"):
            lowered["pin_memory"] = False
        return lowered

    def check(self, current: int) -> int:
        """The index of the one device of this call.

        Raises:
            RuntimeError: a CPU tensor with dimensions is among sim tensors.
        """
        if self.index is None:
            return current
        if self.host_tensor is not None:
            self._mismatch(self.host_tensor)
        return self.index

    def lift(self, result: Any, index: int) -> Any:
        """``result`` with each tensor in it on ``sim:index``: an argument itself, a view of one, or a new tensor."""
        if isinstance(result, torch.Tensor):
            for low, high in self.pairs:
                if result is low:
                    return high
            return take(result, index)
        kind = type(result)
        if kind is list or kind is tuple:
            return kind([self.lift(item, index) for item in result])
        return result

    def _lower_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in self.known:  # kernels ask whether two arguments are one: whether a result may be resized, ...
            return self.known[id(tensor)]
        device = tensor.device
        if device.type == _world.NAME:
            if device.index != self.index:
                if self.index is not None:
                    self._mismatch(device)
                self.index = device.index
            low = alias(tensor)
            self.pairs.append((low, tensor))
            self.known[id(tensor)] = low
            return low
        if tensor.dim() == 0:
            return tensor  # a CPU scalar goes with any device
        self.host_tensor = device
        return tensor if self.data else tensor.to("meta")

    def _mismatch(self, other: torch.device) -> NoReturn:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{_world.NAME}:{self.index} and {other}! (when checking argument in method {self.kernel.name})"
        )


def _run_below(kernel: Kernel, data: bool, args: list[Any], kwargs: dict[str, Any]) -> Any:
    try:
        return kernel.run(*args, **kwargs)
    except (NotImplementedError, RuntimeError) as error:
        if data or "meta" not in str(error).lower():
            raise
        raise RuntimeError(
            f"{kernel.name} needs the values of its tensors, and the virtual devices hold no data (data=False): {error}"
        ) from error


def _follow_resize(low: torch.Tensor, high: torch.Tensor, index: int) -> None:
    """Give ``high`` the shape and memory that an ``out=`` kernel gave to its alias."""
    same_shape = low.size() == high.size() and low.stride() == high.stride()
    if same_shape and (low.is_meta or low.numel() == 0 or low.data_ptr() == high.data_ptr()):
        return
    fresh = take(low, index)
    set_memory(high, fresh, int(fresh.storage_offset()), fresh.size(), fresh.stride())


def set_memory(tensor: torch.Tensor, source: torch.Tensor, offset: int, size: Any, stride: Any) -> None:
    """Point ``tensor`` at ``source``'s storage, below autograd."""
    torch.ops.aten.set_.source_Storage_storage_offset._op_dk(
        torch._C.DispatchKey.CPU, tensor, source.untyped_storage(), offset, size, stride
    )
