"""What a model's forward is to other threads while one thread has the model as its author wrote it."""

from __future__ import annotations

import copy
import functools
import threading
import types
from typing import Any

import torch
from torch import nn

from autosplit.errors import PlanError


class Gate:
    """Lets the thread that captures or runs a model through to the forward as written, and no other.

    For the time of a call the model is of the class that its author wrote, which every thread sees: without this, one
    that calls the model meanwhile would run the author's forward on weights that are elsewhere. ``open`` and ``close``
    are called under the lock of the model's calls, at which the other threads then wait.

    A copy waits for the end of the call, and the plan stays to be read.

    Args:
        model: what is called.
        written: its class as its author wrote it.
        lock: of its calls.
    """

    def __init__(self, model: nn.Module, written: type[nn.Module], lock: Any) -> None:
        self._model, self._written, self._lock = model, written, lock
        self._hides = tuple(name for name in ("plan", "__deepcopy__") if not hasattr(written, name))
        self._owner = 0
        self._put: dict[str, Any] = {}  # what is ours in the model's __dict__
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
        held = self._model.__dict__
        stand_ins = {"forward": types.MethodType(self._forward, self._model), **self._hidden()}
        self._put = {name: stand_in for name, stand_in in stand_ins.items() if name not in held}
        held.update(self._put)
        self._model.__class__ = self._written

    def close(self, found: type[nn.Module]) -> None:
        """Make it again what ``open`` found."""
        if found is self._written:
            return
        self._model.__class__, self._owner = found, 0
        held = self._model.__dict__
        for name, stand_in in self._put.items():
            if held.get(name) is stand_in:  # else the forward set one of its own
                del held[name]

    def _hidden(self) -> dict[str, Any]:
        """What the split model has and the class as written has not."""
        found = {"plan": self._plan(), "__deepcopy__": self._copied}
        return {name: found[name] for name in self._hides}

    def _plan(self) -> Any:
        """Of the split model, which has none before its first call."""
        try:
            return self._model.plan
        except PlanError:
            return None

    def _copied(self, memo: dict[int, Any]) -> nn.Module:
        if threading.get_ident() != self._owner:
            with self._lock:
                pass  # only waits: a copy takes the lock of the calls, which is held before this one
            return copy.deepcopy(self._model, memo)
        found = self._split  # the forward as written copies its own model
        self.close(found)
        try:
            return copy.deepcopy(self._model, memo)
        finally:
            self.open()
