"""The door: a CPU tensor becomes a plain ``torch.Tensor`` on ``sim:i`` over the same memory.

PrivateUse1 has no allocator that Python could supply, and torch's own constructor of such tensors
knows only index 0. DLPack carries device and index as two integers, so a capsule made from a CPU
tensor, with these two edited, comes back as a genuine tensor of any sim device, which owns the CPU
tensor behind it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from autosplit.sim import world as _world

_EXT_DEVICE = 12  # kDLExtDev, which torch reads as PrivateUse1


class _DLTensor(ctypes.Structure):
    """struct DLTensor of dlpack.h, the first member of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


# A pointer type of our own: setting argtypes on ctypes.pythonapi would change it for the whole process.
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _open_capsule(tensor: torch.Tensor, index: int) -> tuple[Any, _DLTensor]:
    capsule = torch._C._to_dlpack(tensor)
    header = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    header.device_type, header.device_id = _EXT_DEVICE, index
    return capsule, header


def adopt(cpu: torch.Tensor, index: int) -> torch.Tensor:
    """A tensor on ``sim:index`` that shares and owns the memory of ``cpu``."""
    capsule, _ = _open_capsule(cpu, index)
    return torch._C._from_dlpack(capsule)


def new(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, index: int) -> torch.Tensor:
    """An uninitialised tensor on ``sim:index``, its storage booked there.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    if _world.world().data:
        cpu = torch.empty_strided(size, stride, dtype=dtype, device="cpu")
        storage = cpu.untyped_storage()
        _world.book(storage, index, storage.nbytes())
        return adopt(cpu, index)
    nbytes = extent(size, stride) * dtype.itemsize
    holder = torch.empty(1 if nbytes else 0, dtype=dtype, device="cpu")
    address = _world.book(holder.untyped_storage(), index, nbytes)
    return _adopt_at(holder, index, size, stride, address)


def take(result: torch.Tensor, index: int) -> torch.Tensor:
    """The tensor on ``sim:index`` for a fresh CPU (or meta) kernel result."""
    if not _world.world().data:
        return new(tuple(result.shape), result.stride(), result.dtype, index)
    if result._is_zerotensor():
        result = torch.zeros(result.shape, dtype=result.dtype, device="cpu")
    result = result.resolve_conj().resolve_neg()
    storage = result.untyped_storage()
    whole = result.storage_offset() == 0 and extent(result.shape, result.stride()) * result.itemsize == storage.nbytes()
    if not whole or _world.is_booked(storage):
        # DLPack carries the extent of the tensor only, not that of its storage.
        result = result.clone()
        storage = result.untyped_storage()
    _world.book(storage, index, storage.nbytes())
    return adopt(result, index)


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the memory of a sim tensor, or a meta tensor of its shape when there is no data.

    Raises:
        RuntimeError: the tensor outlived its cluster.
    """
    storage = _world.backing(tensor)
    if not _world.world().data:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    if storage is None:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
    empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def extent(size: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last that a strided tensor reaches.

    >>> extent((2, 3), (10, 1)), extent((0, 3), (3, 1))
    (13, 0)
    """
    if 0 in size:
        return 0
    return 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))


def _adopt_at(
    holder: torch.Tensor, index: int, size: Sequence[int], stride: Sequence[int], address: int
) -> torch.Tensor:
    """A tensor without data at a made-up address; ``holder``'s storage marks its lifetime."""
    capsule, header = _open_capsule(holder, index)
    ndim = len(size)
    numbers = (ctypes.c_int64 * (2 * ndim))(*size, *stride)
    header.ndim, header.data, header.byte_offset = ndim, address, 0
    header.shape = ctypes.addressof(numbers)
    header.strides = ctypes.addressof(numbers) + ctypes.sizeof(ctypes.c_int64) * ndim
    return torch._C._from_dlpack(capsule)
