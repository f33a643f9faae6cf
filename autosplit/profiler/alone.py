"""One operation alone on the device: warm-up, then as many repeats as its length deserves."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch

from autosplit.profiler.clock import Clock
from autosplit.profiler.materials import differentiable
from autosplit.profiler.operation import Operation
from autosplit.profiler.scratch import scratch_bytes
from autosplit.profiler.timing import Timing, timing

_GROUP_NS = 200_000  # short operations are timed in groups of about this length
_MOST_IN_GROUP = 16
_GROUP_BYTES = 2**26  # the arguments of a group take no more than this, or than one operation's
_SAMPLE_NS = 5_000_000  # all repeats of an operation together, but never fewer than three
_LEAST, _MOST = 3, 15

Call = tuple[tuple[Any, ...], dict[str, Any]]


def measure(operation: Operation, device: torch.device, clock: Clock) -> Timing:
    """Time an operation, and its backward where gradients are recorded and some argument carries one.

    Args:
        operation: what to run.
        device: where.
        clock: of that device.

    Raises:
        Exception: whatever the operation does with numbers that mean nothing; memory that is not there.
    """
    ones = needs_ones(operation, device)
    (first_ns,) = _forward_ns(operation, device, clock, ones)
    size = max(1, min(_MOST_IN_GROUP, _GROUP_NS // max(1, first_ns)))
    if size * operation.input_bytes > _GROUP_BYTES:
        size = 1
    repeats = max(_LEAST, min(_MOST, _SAMPLE_NS // max(1, first_ns * size)))
    samples = [_sample(operation, device, clock, (size, ones)) for _ in range(repeats)]
    scratch = scratch_bytes(operation, device, ones=ones)
    return timing([forward for forward, _ in samples], [backward for _, backward in samples], scratch)


def needs_ones(operation: Operation, device: torch.device) -> bool:
    """Whether integers must be 1 rather than 0 for the operation to run at all; the warm-up."""
    for ones in (False, True):
        try:
            args, kwargs = operation.arguments(device, ones=ones)
            operation.call((args, kwargs))
            return ones
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:
            if ones:
                raise
    raise AssertionError("unreachable")  # the second try returns or raises


def _forward_ns(operation: Operation, device: torch.device, clock: Clock, ones: bool) -> list[int]:
    call = operation.arguments(device, ones=ones)
    marks = [clock.mark()]
    operation.call(call)
    marks.append(clock.mark())
    return clock.read(marks)


def _sample(operation: Operation, device: torch.device, clock: Clock, group: tuple[int, bool]) -> tuple[int, int]:
    """Forward and backward ns of one operation, from one group of them."""
    size, ones = group
    calls: list[Call] = [operation.arguments(device, ones=ones) for _ in range(size)]
    inputs = [tensor for call in calls for tensor in differentiable(call)] if torch.is_grad_enabled() else []
    collecting = gc.isenabled()
    gc.disable()
    try:
        marks = [clock.mark()]
        if inputs:
            results = [operation.call(call) for call in calls]
        else:
            results = None
            for call in calls:
                operation.call(call)  # dropped at once: the next takes the same memory, as in a forward pass
        marks.append(clock.mark())
        outputs = differentiable(results)
        (forward_ns,) = clock.read(marks)
        backward_ns = _backward_ns(outputs, inputs, clock) if outputs else 0
    finally:
        if collecting:
            gc.enable()
    return forward_ns // size, backward_ns // size


def _backward_ns(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], clock: Clock) -> int:
    gradients = [torch.ones_like(output) for output in outputs]
    marks = [clock.mark()]
    torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)
    marks.append(clock.mark())
    return clock.read(marks)[0]
