"""The user's own autograd.Function, as Dynamo captures it: a graph for its forward and one for its backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

FUNCTION = torch.ops.higher_order.autograd_function_apply


@dataclass
class _Call:
    """One call. What its forward saves passes through here to the context of its backward."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    checked: frozenset[int]
    dirty: Sequence[int]
    without_gradient: Sequence[int]
    saved: Sequence[Any] = ()


def apply_function(
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    *args: Any,
    non_differentiable_idx: Sequence[int] = (),
    saved_for_backward_idx: Sequence[int] = (),
    dirty_idx: Sequence[int] = (),
    **_: Any,
) -> Any:
    """Run it; as torch's operator of that name, which makes a class for each call.

    A class is in a reference cycle, and that one holds what is saved: its memory would stay on the device until Python
    next collects garbage. Here what is saved is the graph's of autograd, and goes with it.
    """
    call = _Call(forward, backward, frozenset(saved_for_backward_idx), dirty_idx, non_differentiable_idx)
    run: Callable[..., Any] = _Function.apply
    return run(call, *args)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(call: _Call, *args: Any) -> Any:
        output, call.saved = call.forward(*args)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call: _Call = inputs[0]
        saved, call.saved = call.saved, ()
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        if call.dirty:
            ctx.mark_dirty(*(outputs[i] for i in call.dirty))
        if call.without_gradient:
            ctx.mark_non_differentiable(*(outputs[i] for i in call.without_gradient))
        ctx.call = call
        ctx.count = len(saved)
        ctx.save_for_backward(*(value for i, value in enumerate(saved) if i in call.checked))
        ctx.rest = {i: value for i, value in enumerate(saved) if i not in call.checked}

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        checked = iter(ctx.saved_tensors)
        saved = [ctx.rest[i] if i in ctx.rest else next(checked) for i in range(ctx.count)]
        gradients = ctx.call.backward(*grads, *saved)
        return None, *(gradients if isinstance(gradients, (tuple, list)) else (gradients,))
