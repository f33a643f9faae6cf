"""Lazy modules: their weights get shapes, and values, from the first call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from autosplit.errors import CaptureError
from autosplit.holders import Exchange


def is_uninitialised(model: nn.Module) -> bool:
    """Whether a weight of ``model`` has no shape yet."""
    return any(is_lazy(weight) for weight in (*model.parameters(), *model.buffers()))


def initialise(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Call ``model`` once, without gradients, where its weights are; buffers that have values keep them.

    Raises:
        CaptureError: an input is on the meta device: there is nothing to call it with.
    """
    homes = {weight.device for weight in (*model.parameters(), *model.buffers())}
    home = homes.pop() if len(homes) == 1 else torch.device("cpu")

    def own(tensor: torch.Tensor, _: bool) -> torch.Tensor:
        if tensor.is_meta:
            raise CaptureError(
                f"{type(model).__name__} has lazy weights without a shape, and an input is on the meta device: "
                "call the model once on real inputs first"
            )
        return tensor.detach().to(home, copy=True)

    exchange = Exchange(own, copies=True)
    with torch.no_grad(), _kept_buffers(model):
        try:
            model(*map(exchange, args), **{key: exchange(value) for key, value in kwargs.items()})
        finally:
            exchange.put_back({})


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """What forward writes to a buffer inside is undone after."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not is_lazy(buffer)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, was in before:
                buffer.copy_(was)
