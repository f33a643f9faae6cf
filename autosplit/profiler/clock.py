"""Clocks: events on a CUDA device, CPU time of the thread on a CPU. Wall clock would measure the neighbours too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import torch

_CALIBRATION = 200


class Clock(Protocol):
    """Puts marks between pieces of work, and tells the time from one to the next once all is done."""

    def mark(self) -> Any:
        """A mark at this point of the work."""

    def read(self, marks: Sequence[Any]) -> list[int]:
        """Nanoseconds from each mark to the next, without what the marks themselves take."""


class CpuClock:
    """CPU time of this thread; of all threads of the process where a device computes in threads of its own."""

    def __init__(self, *, all_threads: bool = False) -> None:
        self._now = time.process_time_ns if all_threads else time.thread_time_ns
        marks = [self._now() for _ in range(_CALIBRATION)]
        self._own_ns = int(statistics.median(b - a for a, b in pairwise(marks)))

    def mark(self) -> int:
        """The time now, in ns."""
        return self._now()

    def read(self, marks: Sequence[int]) -> list[int]:
        """As in Clock."""
        return [max(0, b - a - self._own_ns) for a, b in pairwise(marks)]


class CudaClock:
    """CUDA events on the current stream: what the device took, and what it waited for between two kernels."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.synchronize(device)

    def mark(self) -> torch.cuda.Event:
        """An event on the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def read(self, marks: Sequence[torch.cuda.Event]) -> list[int]:
        """As in Clock; waits for the device."""
        torch.cuda.synchronize(self._device)
        return [int(a.elapsed_time(b) * 1e6) for a, b in pairwise(marks)]


def clock_of(device: torch.device) -> Clock:
    """The clock for work on ``device``."""
    if device.type == "cuda":
        return CudaClock(device)
    return CpuClock(all_threads=device.type != "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Kernels of the CPU run in the calling thread: CPU time of one thread is then all of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
