"""An operator whose result's form depends on data: on fake tensors it gives the form that was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from autosplit.program.facts import Spec, tensor_leaves

RECORDED = "autosplit_recorded"
"""Key in a node's meta: the form of its result when it was recorded, a Spec for each tensor."""


class Recorded:
    """Stands for an operator in a program that is planned from; it never runs on data.

    Args:
        target: the operator, or the name of a tensor's method.
        form: its result, with a Spec in the place of each tensor.
    """

    def __init__(self, target: Callable[..., Any] | str, form: Any) -> None:
        self.__name__ = target if isinstance(target, str) else getattr(target, "__name__", "recorded")
        self.__module__ = __name__
        self._form = form

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A result of the recorded form on the device of the first tensor, with a gradient to each tensor."""
        given = tensor_leaves((args, kwargs))
        device = given[0].device if given else torch.device("cpu")

        def make(spec: Spec) -> torch.Tensor:
            made = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=device)
            return _Link.apply(made, *given) if spec.requires_grad else made  # type: ignore[no-untyped-call]

        return pytree.tree_map_only(Spec, make, self._form)


class _Link(torch.autograd.Function):
    """The first tensor, as if it were computed from the others."""

    @staticmethod
    def forward(ctx: Any, made: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*given)
        return made.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, *(torch.zeros_like(t) if t.requires_grad else None for t in ctx.saved_tensors)
