"""The open cluster: its devices' memory, which storages live where, and the log of copies."""

from __future__ import annotations

import collections
import threading
import weakref
from dataclasses import dataclass
from typing import NoReturn

import torch

from autosplit.allocator import AllocationError, Block, CachingAllocator
from autosplit.units import format_bytes

NAME = "sim"

# No-data storages get addresses no process can own, so they never meet a real one; an address is
# never used twice, so a dead tensor is never taken for a live one.
_MADE_UP_ADDRESSES = 1 << 56


@dataclass(frozen=True)
class Transfer:
    """One tensor copied between two devices: device names, bytes, shape and element type."""

    src: str
    dst: str
    size_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class World:
    """State of one open cluster."""

    def __init__(self, capacities_bytes: list[int | None], data: bool) -> None:
        self.data = data
        self.allocators = [CachingAllocator(capacity) for capacity in capacities_bytes]
        self.transfers: list[Transfer] = []
        self.current = 0


class Cell(weakref.ref[torch.UntypedStorage]):
    """One booked storage: the CPU storage behind it, its block, and the world it belongs to.

    A weak reference to that storage: it dies when the last tensor over it does.
    """

    __slots__ = ("address", "allocator", "block", "world")

    address: int
    allocator: CachingAllocator
    block: Block | None
    world: World


class _Process:
    """What outlives a cluster."""

    open: World | None = None
    next_address = _MADE_UP_ADDRESSES


_cells: dict[int, Cell] = {}
_lock = threading.RLock()
# A weak reference may die inside malloc (the garbage collector runs anywhere): deaths are only noted,
# and the blocks freed at the next safe point.
_dead: collections.deque[Cell] = collections.deque()


def open_world(world: World | None) -> None:
    """Make ``world`` the open one, or close the open one with None."""
    _Process.open = world


def is_open() -> bool:
    """Whether a cluster is open."""
    return _Process.open is not None


def world() -> World:
    """The open world.

    Raises:
        RuntimeError: no cluster is open.
    """
    if _Process.open is None:
        raise RuntimeError("sim error: no cluster is open; use sim devices inside `with autosplit.sim.cluster(...)`")
    return _Process.open


def device_index(device: torch.device | str | int | None) -> int:
    """Index of a sim device in the open world; None and "sim" mean the current one.

    Raises:
        RuntimeError: the ordinal is not a device of the open cluster.
    """
    state = world()
    index = device if isinstance(device, int) else None if device is None else torch.device(device).index
    if index is None:
        return state.current
    if not 0 <= index < len(state.allocators):
        raise RuntimeError(
            f"sim error: invalid device ordinal {index}: the open cluster has {len(state.allocators)} devices"
        )
    return index


def drain() -> None:
    """Free the blocks of the storages that died since the last call."""
    with _lock:
        while _dead:
            cell = _dead.popleft()
            if _cells.get(cell.address) is cell:
                del _cells[cell.address]
            cell.allocator.free(cell.block)


def book(storage: torch.UntypedStorage, index: int, nbytes: int) -> int:
    """Account ``nbytes`` on device ``index`` for as long as ``storage`` lives; the address of the result.

    Raises:
        torch.OutOfMemoryError: they do not fit.
    """
    state = world()
    allocator = state.allocators[index]
    with _lock:
        drain()
        try:
            block = allocator.malloc(nbytes)
        except AllocationError as error:
            _out_of_memory(index, error)
        if block is None:
            return 0
        cell = Cell(storage, _dead.append)
        cell.allocator, cell.block, cell.world = allocator, block, state
        if state.data:
            cell.address = storage.data_ptr()
        else:
            cell.address = _Process.next_address
            _Process.next_address += block.size_bytes
        _cells[cell.address] = cell
        return cell.address


def is_booked(storage: torch.UntypedStorage) -> bool:
    """Whether the CPU ``storage`` already backs a sim tensor.

    A cell found at its address may also be the remains of an earlier storage, whose death is still to be drained.
    """
    cell = _cells.get(storage.data_ptr())
    return cell is not None and cell() is not None


def backing(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The CPU storage behind a sim tensor; None when it has no bytes.

    Raises:
        RuntimeError: the tensor outlived its cluster.
    """
    address = tensor.untyped_storage().data_ptr()
    if address == 0:
        world()
        return None
    cell = _cells.get(address)
    if cell is None or cell.world is not world():
        raise RuntimeError(f"sim error: a tensor on {tensor.device} belongs to a cluster that is closed")
    return cell()


def log_transfer(src: torch.Tensor, dst: torch.Tensor) -> None:
    """Note a copy between two devices; nothing is noted on one device or for no bytes."""
    size_bytes = src.numel() * src.element_size()
    if src.device != dst.device and size_bytes:
        world().transfers.append(Transfer(str(src.device), str(dst.device), size_bytes, tuple(src.shape), src.dtype))


def _out_of_memory(index: int, error: AllocationError) -> NoReturn:
    raise torch.OutOfMemoryError(
        f"sim out of memory. Tried to allocate {format_bytes(error.requested_bytes)} ({error.requested_bytes} bytes). "
        f"Device {NAME}:{index} has a total capacity of {format_bytes(error.capacity_bytes)} of which "
        f"{format_bytes(error.capacity_bytes - error.reserved_bytes)} is free. Of the allocated memory "
        f"{format_bytes(error.allocated_bytes)} is allocated by PyTorch, and "
        f"{format_bytes(error.reserved_bytes - error.allocated_bytes)} is reserved by PyTorch but unallocated."
    ) from error
