"""The user's side: open a cluster of virtual devices, run on it, read what it held and what it moved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import torch

from autosplit.allocator import CachingAllocator
from autosplit.errors import AutosplitError, DeviceError
from autosplit.sim import backend, patches
from autosplit.sim import world as _world
from autosplit.sim.report import render
from autosplit.sim.world import NAME, Transfer, World
from autosplit.units import parse_bytes

DeviceLike = torch.device | str | int

_GROUP = re.compile(r"\s*(?:(\d+)\s*x)?\s*(\S.*?)\s*\Z")
_MAX_DEVICES = 127  # torch keeps a device index in an int8


def cluster(memories: str | Sequence[int | str | None], *, data: bool = True) -> Cluster:
    """Virtual devices ``sim:0`` to ``sim:n-1``, for use in a ``with`` statement.

    Args:
        memories: a spec, "8x24GiB" or "2x24GiB,1x8GiB", or the memory of each device: bytes, text
            with a unit, or None for no limit.
        data: False computes no values: shapes, memory, transfers and errors only, of any model size.

    Raises:
        DeviceError: "0x24GiB" (no device), "2x" (no memory), more than 127 devices, or an untested torch.

    >>> with cluster("2x1GiB") as c:
    ...     x = torch.ones(256, device=c.devices[0]).to(c.devices[1])
    ...     c.peak_bytes("sim:1"), [(t.src, t.dst, t.size_bytes) for t in c.transfers]
    (1024, [('sim:0', 'sim:1', 1024)])
    """
    return Cluster(parse_memories(memories), data=data)


def parse_memories(memories: str | Sequence[int | str | None]) -> list[int | None]:
    """Bytes of each device that a spec or a list names; None is no limit.

    Raises:
        DeviceError: as for ``cluster``.

    >>> parse_memories("2x1KiB,512B")
    [1024, 1024, 512]
    """
    groups = memories.split(",") if isinstance(memories, str) else memories
    capacities: list[int | None] = []
    for group in groups:
        capacities.extend(_parse_group(group))
    if not 0 < len(capacities) <= _MAX_DEVICES:
        raise DeviceError(f"virtual devices {memories!r}: {len(capacities)} devices; expected 1 to {_MAX_DEVICES}")
    return capacities


def _parse_group(group: int | str | None) -> list[int | None]:
    if group is None:
        return [None]
    match = _GROUP.match(group) if isinstance(group, str) else None
    count, memory = match.groups() if match else (None, group)
    try:
        return [parse_bytes(memory)] * (1 if count is None else min(int(count), _MAX_DEVICES + 1))
    except AutosplitError as error:
        raise DeviceError(f"virtual devices {group!r}: {error}; write '8x24GiB' or '2x24GiB,1x8GiB'") from error


class Cluster:
    """Virtual devices, open inside ``with``. Its figures can still be read after that; its tensors cannot.

    Each ``with`` starts afresh: empty devices, no transfers.

    Attributes:
        devices: the ``torch.device`` of each, in order.
        data: whether its tensors have values.
    """

    def __init__(self, capacities_bytes: Sequence[int | None], *, data: bool = True) -> None:
        backend.register()
        self.data = data
        self.devices = [torch.device(NAME, index) for index in range(len(capacities_bytes))]
        self._capacities_bytes = list(capacities_bytes)
        self._world = World(self._capacities_bytes, data)
        self._patches = ExitStack()

    def __enter__(self) -> Cluster:
        if _world.is_open():
            raise DeviceError("a cluster of virtual devices is open already: leave its `with` before opening another")
        self._world = World(self._capacities_bytes, self.data)
        self._patches.enter_context(patches.while_open())
        _world.open_world(self._world)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _world.open_world(None)
        self._patches.close()

    @property
    def transfers(self) -> list[Transfer]:
        """Copies between two devices, in the order they were made; copies from and to "cpu" included."""
        return self._world.transfers

    def clear_transfers(self) -> None:
        """Forget the transfers so far."""
        self._world.transfers.clear()

    def allocated_bytes(self, device: DeviceLike) -> int:
        """Bytes live on ``device`` now, rounded as the allocator rounds."""
        return self._allocator(device).allocated_bytes

    def peak_bytes(self, device: DeviceLike) -> int:
        """Peak of the bytes live on ``device`` (``torch.cuda.max_memory_allocated``)."""
        return self._allocator(device).peak_allocated_bytes

    def peak_requested_bytes(self, device: DeviceLike) -> int:
        """Peak of the bytes asked for on ``device``, before rounding."""
        return self._allocator(device).peak_requested_bytes

    def peak_reserved_bytes(self, device: DeviceLike) -> int:
        """Peak of the bytes in segments on ``device`` (``torch.cuda.max_memory_reserved``): what it must have."""
        return self._allocator(device).peak_reserved_bytes

    def reset_peaks(self) -> None:
        """Start the peaks of all devices again from what is held now."""
        _world.drain()
        for allocator in self._world.allocators:
            allocator.reset_peak()

    def report(self) -> str:
        """A table of capacity and peaks by device, and a matrix of the bytes moved between devices."""
        _world.drain()
        return render(self._world)

    def _allocator(self, device: DeviceLike) -> CachingAllocator:
        _world.drain()
        index = device if isinstance(device, int) else _own_index(torch.device(device))
        if not 0 <= index < len(self._world.allocators):
            raise DeviceError(f"device {device}: this cluster has sim:0 to sim:{len(self._world.allocators) - 1}")
        return self._world.allocators[index]


def _own_index(device: torch.device) -> int:
    return device.index or 0 if device.type == NAME else -1
