"""What a model's forward is to other threads while one thread has the model as its author wrote it."""

from __future__ import annotations

import functools
import threading
import types
from typing import Any

import torch
from torch import nn


class Gate:
    """Lets the thread that captures or runs a model through to the forward as written, and no other.

    For the time of a call the model is of the class that its author wrote, which every thread sees: without this, one
    that calls the model meanwhile would run the author's forward on weights that are elsewhere. ``open`` and ``close``
    are called under the lock of the model's calls, at which the other threads then wait.

    Args:
        model: what is called.
        written: its class as its author wrote it.
    """

    def __init__(self, model: nn.Module, written: type[nn.Module]) -> None:
        self._model, self._written = model, written
        self._owner = 0
        self._split: type[nn.Module] = written

        @functools.wraps(written.forward)
        def forward(this: nn.Module, *args: Any, **kwargs: Any) -> Any:
            # Dynamo, which only the owner runs here, takes the first for true and so sees nothing of threads
            is_owner = torch.compiler.is_dynamo_compiling() or threading.get_ident() == self._owner
            return (written if is_owner else self._split).forward(this, *args, **kwargs)

        self._forward = forward

    def open(self) -> None:
        """Make the model what its author wrote, for this thread; nothing where it is so already."""
        if type(self._model) is self._written:
            return
        self._split, self._owner = type(self._model), threading.get_ident()
        self._model.__dict__.setdefault("forward", types.MethodType(self._forward, self._model))
        self._model.__class__ = self._written

    def close(self, found: type[nn.Module]) -> None:
        """Make it again what ``open`` found."""
        if found is self._written:
            return
        self._model.__class__, self._owner = found, 0
        forward = self._model.__dict__.get("forward")
        if getattr(forward, "__func__", None) is self._forward:
            del self._model.__dict__["forward"]
