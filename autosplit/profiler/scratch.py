"""Memory that an operation takes and gives back: a kernel's workspace, temporaries of its backward."""

from __future__ import annotations

import torch

from autosplit.profiler.materials import differentiable
from autosplit.profiler.operation import Operation


def scratch_bytes(operation: Operation, device: torch.device, *, ones: bool) -> int | None:
    """Most bytes that one run took beyond its arguments and what it leaves, in its forward or its backward.

    None on a CPU, whose allocator does not tell. The device's peak statistics start anew.
    """
    if device.type == "cpu":
        return None
    call = operation.arguments(device, ones=ones)
    module = torch.get_device_module(device)

    def start() -> None:
        module.synchronize(device)
        module.reset_peak_memory_stats(device)

    def given_back() -> int:
        module.synchronize(device)
        return int(module.max_memory_allocated(device) - module.memory_allocated(device))

    start()
    result = operation.call(call)
    forward = given_back()
    outputs, inputs = differentiable(result), differentiable(call)
    if not torch.is_grad_enabled() or not outputs or not inputs:
        return forward
    gradients = [torch.ones_like(output) for output in outputs]
    start()
    kept = torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)
    backward = given_back()
    del kept
    return max(forward, backward)
