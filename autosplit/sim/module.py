"""``torch.sim``: the device module that torch's Python code asks, with ``torch.cuda``'s names and meanings."""

from __future__ import annotations

import types
from types import TracebackType
from typing import NamedTuple

import torch

from autosplit.allocator import CachingAllocator
from autosplit.sim import world as _world

DeviceLike = torch.device | str | int | None

# What an unlimited device says of its memory; an int64, as torch's own figures.
_UNLIMITED_BYTES = (1 << 63) - 1


class SimDeviceProperties(NamedTuple):
    """Name and memory of a sim device."""

    name: str
    total_memory: int


class SimDeviceModule(types.ModuleType):
    """The module behind ``torch.sim``. RNG state is the CPU's; streams do not exist, all work is synchronous."""

    @property
    def holds_data(self) -> bool:
        """Whether the tensors of the open cluster have values (False also when none is open)."""
        return _world.is_open() and _world.world().data

    def is_initialized(self) -> bool:
        """Always: there is no driver to start."""
        return True

    def is_available(self) -> bool:
        """Whether a cluster is open."""
        return _world.is_open()

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        """Number of devices of the open cluster, 0 when none is open."""
        return len(_world.world().allocators) if _world.is_open() else 0

    def current_device(self) -> int:
        """Index of the device that a plain "sim" means."""
        return _world.world().current

    def set_device(self, device: DeviceLike) -> None:
        """Make ``device`` the current one."""
        _world.world().current = _world.device_index(device)

    def device(self, device: DeviceLike) -> _CurrentDevice:
        """Context in which ``device`` is the current one."""
        return _CurrentDevice(_world.device_index(device))

    def synchronize(self, device: DeviceLike = None) -> None:
        """Nothing to wait for."""

    def get_device_properties(self, device: DeviceLike = None) -> SimDeviceProperties:
        """Name and total memory of ``device``."""
        return SimDeviceProperties(self.get_device_name(device), self.mem_get_info(device)[1])

    def get_device_name(self, device: DeviceLike = None) -> str:
        """The device as torch writes it: "sim:0"."""
        return f"{_world.NAME}:{_world.device_index(device)}"

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Element types that autocast may cast to."""
        return [torch.float16, torch.bfloat16]

    def manual_seed(self, seed: int) -> None:
        """Nothing: ``torch.manual_seed`` has seeded the CPU generator, which is ours too."""

    def manual_seed_all(self, seed: int) -> None:
        """Nothing, as ``manual_seed``."""

    def get_rng_state(self, device: DeviceLike = None) -> torch.Tensor:
        """State of the CPU generator."""
        return torch.get_rng_state()

    def set_rng_state(self, new_state: torch.Tensor, device: DeviceLike = None) -> None:
        """Set the state of the CPU generator."""
        torch.set_rng_state(new_state)

    def memory_allocated(self, device: DeviceLike = None) -> int:
        """Bytes in live blocks."""
        return _allocator(device).allocated_bytes

    def max_memory_allocated(self, device: DeviceLike = None) -> int:
        """Peak of ``memory_allocated`` since ``reset_peak_memory_stats``."""
        return _allocator(device).peak_allocated_bytes

    def memory_reserved(self, device: DeviceLike = None) -> int:
        """Bytes in segments, live and cached."""
        return _allocator(device).reserved_bytes

    def max_memory_reserved(self, device: DeviceLike = None) -> int:
        """Peak of ``memory_reserved`` since ``reset_peak_memory_stats``."""
        return _allocator(device).peak_reserved_bytes

    def reset_peak_memory_stats(self, device: DeviceLike = None) -> None:
        """Start the peaks again from what is held now."""
        _allocator(device).reset_peak()

    def mem_get_info(self, device: DeviceLike = None) -> tuple[int, int]:
        """Free and total bytes of ``device``."""
        allocator = _allocator(device)
        total = _UNLIMITED_BYTES if allocator.capacity_bytes is None else allocator.capacity_bytes
        return total - allocator.reserved_bytes, total

    def empty_cache(self) -> None:
        """Give the wholly free segments of every device back."""
        _world.drain()
        for allocator in _world.world().allocators:
            allocator.empty_cache()


class _CurrentDevice:
    """The context that ``torch.sim.device`` returns."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._before = 0

    def __enter__(self) -> None:
        state = _world.world()
        self._before, state.current = state.current, self._index

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _world.world().current = self._before


def _allocator(device: DeviceLike) -> CachingAllocator:
    _world.drain()
    return _world.world().allocators[_world.device_index(device)]
