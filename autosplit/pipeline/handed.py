"""Gradients that were computed within the call, handed out by the caller's ``backward()``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from autosplit.errors import PlanError

Gradients = Callable[[torch.Tensor], Sequence[torch.Tensor | None]]
"""The gradient of each leaf, given that of the loss; called once."""


def hand_out(
    outputs: Sequence[torch.Tensor], loss: int, leaves: Sequence[torch.Tensor], gradients: Gradients
) -> list[torch.Tensor]:
    """``outputs`` as if they had been computed from ``leaves``: going back from the loss gives ``gradients``.

    Everything that watches leaves (hooks, DistributedDataParallel, gradient scalers) sees an ordinary backward pass.

    Args:
        outputs: what the call returns that carries a gradient, detached.
        loss: place of the one that was descended; any other has no gradient, and asking for it is an error.
        leaves: parameters and inputs that require a gradient.
        gradients: of the leaves.
    """
    run: Callable[..., tuple[torch.Tensor, ...]] = _HandOut.apply
    return list(run(loss, gradients, tuple(outputs), *leaves))


class _HandOut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: int, gradients: Gradients, outputs: tuple[torch.Tensor, ...], *leaves: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.loss, ctx.gradients = loss, gradients
        ctx.set_materialize_grads(False)
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *arrived: torch.Tensor | None) -> tuple[Any, ...]:
        others = [place for place, gradient in enumerate(arrived) if gradient is not None and place != ctx.loss]
        if others:
            raise PlanError(
                f"a gradient came for output {others[0]} of the model: under schedule '1f1b' the backward passes ran "
                f"within the call, from the loss (output {ctx.loss}) alone; compute with that, or use schedule='gpipe'"
            )
        gradient = arrived[ctx.loss]
        if gradient is None:
            return (None, None, None, *(None for _ in ctx.needs_input_grad[3:]))
        if ctx.gradients is None:
            raise RuntimeError("backward() was called twice: the gradients of a call under '1f1b' are handed out once")
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, None, *gradients(gradient))
