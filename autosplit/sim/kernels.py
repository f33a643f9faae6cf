"""Kernels that cannot go through the fallback: factories, copies, resizing, views, and a few preferred ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from autosplit.program.autocast import overload
from autosplit.sim import world as _world
from autosplit.sim.adopt import alias, new
from autosplit.sim.fallback import Kernel, run, set_memory

# Views are arithmetic on sizes and strides: the CPU kernel does it on the sim tensor itself.
_VIEWS = (
    "as_strided",
    "view",
    "view_as_real",
    "view_as_complex",
    "_reshape_alias",
    "unfold",
    "set_",
    "set_.source_Storage",
    "set_.source_Storage_storage_offset",
    "set_.source_Tensor",
)
# CPU and CUDA have real kernels for these, but the dispatcher would take their decomposition for us.
_PREFER_KERNEL = (
    "_stack",
    "_stack.out",
    "addr",
    "addr.out",
    "all.dims",
    "all.dims_out",
    "any.dims",
    "any.dims_out",
    "linalg__powsum",
    "mish_backward",
    "native_channel_shuffle",
    "native_group_norm",
    "native_layer_norm",
    "silu_backward",
)
# Their CPU out= kernels resize the output twice and warn of it; the functional ones do not.
_OUT_BY_FUNCTION = ("mse_loss", "smooth_l1_loss")


def direct(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """A kernel that sends ``op`` through the fallback under its own name."""
    kernel = Kernel(op.name(), op, op._schema)
    return lambda *args, **kwargs: run(kernel, args, kwargs)


def install(library: torch.library.Library) -> None:
    """Register all kernels of this module for the sim key."""
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("_copy_from_and_resize", _copy_from_and_resize, "PrivateUse1")
    library.impl("resize_", _resize, "PrivateUse1")
    for name in _VIEWS:
        library.impl(name, _view_kernel(overload(name)), "PrivateUse1")
    for name in _PREFER_KERNEL:
        library.impl(name, direct(overload(name)), "PrivateUse1")
    for name in _OUT_BY_FUNCTION:
        library.impl(f"{name}.out", _out_by_function(name), "PrivateUse1")
    for key in ("Conjugate", "Negative"):
        # Else _copy_from resolves the bit by a clone, which is a _copy_from, and so on without end.
        library.impl("_copy_from", torch.library.fallthrough_kernel, key)


def _empty(
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    return new(
        tuple(size), _strides(size, memory_format), dtype or torch.get_default_dtype(), _world.device_index(device)
    )


def _empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> torch.Tensor:
    return new(tuple(size), tuple(stride), dtype or torch.get_default_dtype(), _world.device_index(device))


def _strides(size: Sequence[int], memory_format: torch.memory_format | None) -> tuple[int, ...]:
    if memory_format in (None, torch.contiguous_format):
        strides, step = [], 1
        for length in reversed(size):
            strides.append(step)
            step *= max(length, 1)
        return tuple(reversed(strides))
    return torch.empty(size, device="meta", memory_format=memory_format).stride()


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _world.log_transfer(source, target)
    if _world.world().data:
        _readable(target).copy_(_readable(source))
    elif target.device.type == "cpu":
        raise RuntimeError(
            f"cannot copy a tensor of {source.device} to the CPU: the virtual devices hold no data (data=False)"
        )
    return target


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over ``tensor``'s memory that also carries its lazy conjugate and negative bits."""
    if tensor.device.type != _world.NAME:
        return tensor
    low = alias(tensor)
    if tensor.is_conj():
        low = torch.conj(low)
    return torch._neg_view(low) if tensor.is_neg() else low


def _copy_from_and_resize(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if target.size() != source.size():
        target.resize_(source.size())
    return _copy_from(source, target)


def _resize(
    tensor: torch.Tensor, size: Sequence[int], *, memory_format: torch.memory_format | None = None
) -> torch.Tensor:
    stride = _strides(size, memory_format)
    offset = int(tensor.storage_offset())
    old_bytes = tensor.untyped_storage().nbytes()
    count = 1
    for length in size:
        count *= length
    if (offset + count) * tensor.itemsize <= old_bytes:
        set_memory(tensor, tensor, offset, size, stride)
        return tensor
    grown = new((offset + count,), (1,), tensor.dtype, tensor.device.index)
    if old_bytes and _world.world().data:
        elements = old_bytes // tensor.itemsize
        alias(grown)[:elements].copy_(alias(tensor).as_strided((elements,), (1,), 0))
    set_memory(tensor, grown, offset, size, stride)
    return tensor


def _view_kernel(op: torch._ops.OpOverload) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        return op._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)

    return kernel


def _out_by_function(name: str) -> Callable[..., Any]:
    functional, with_out = overload(name), overload(f"{name}.out")

    def compute(*args: Any, out: torch.Tensor) -> torch.Tensor:
        result = functional(*args)
        return out.resize_(result.shape).copy_(result)

    kernel = Kernel(with_out.name(), compute, with_out._schema)
    return lambda *args, **kwargs: run(kernel, args, kwargs)
