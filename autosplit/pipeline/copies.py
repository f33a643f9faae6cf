"""Copies between devices that run beside what both compute.

A plain ``.to()`` between two CUDA devices runs on the current stream of the source: what it computes next waits for the
copy. Here each device has a stream for copies, and events order them, as torchgpipe does (Kim et al., 2020); the
gradient goes back the same way. On other devices a copy is a plain ``.to()``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


@dataclass(frozen=True)
class Copy:
    """A copy on its way; with the event of its arrival where it runs beside other work."""

    value: torch.Tensor
    event: torch.cuda.Event | None = None

    def arrived(self) -> torch.Tensor:
        """The copy; what its device computes from here on waits for it, and for no later copy."""
        if self.event is not None:
            torch.cuda.current_stream(self.value.device).wait_event(self.event)
        return self.value


def send(tensor: torch.Tensor, device: torch.device) -> Copy:
    """Start copying ``tensor`` to ``device``."""
    if tensor.device.type == device.type == "cuda":
        event = torch.cuda.Event()
        run: Callable[..., torch.Tensor] = _Send.apply
        return Copy(run(tensor, device, event), event)
    return Copy(tensor.to(device, non_blocking=device.type == "cuda"))


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)
    return _STREAMS[device]


def _copy(tensor: torch.Tensor, device: torch.device, event: torch.cuda.Event) -> torch.Tensor:
    """Copy on the streams for copies of both ends, after what computes ``tensor``."""
    source, target = _stream(tensor.device), _stream(device)
    source.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(source), torch.cuda.stream(target):
        copied = tensor.to(device, non_blocking=True)
        event.record(target)
    tensor.record_stream(source)
    copied.record_stream(torch.cuda.current_stream(device))
    return copied


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, device: torch.device, event: torch.cuda.Event) -> torch.Tensor:
        ctx.device = tensor.device
        return _copy(tensor, device, event)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        event = torch.cuda.Event()
        returned = _copy(gradient, ctx.device, event)
        torch.cuda.current_stream(ctx.device).wait_event(event)
        return returned, None, None
