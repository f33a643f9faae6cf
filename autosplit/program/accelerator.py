"""Fake tensors are CPU tensors to torch; these are the forms that operators take on an accelerator instead.

Without them a prediction would count what the CPU saves: a float mask for dropout where accelerators save a bool one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as everybody calls it
from torch import Tensor
from torch._decomp import decomposition_table
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

UNROLLED: dict[Any, Any] = {torch.lstm: torch.ops.aten.lstm, torch.gru: torch.ops.aten.gru}
"""Recurrent layers that are run time step by time step, by operators that every device has."""


def unrolled(operator: Any, *args: Any) -> Any:
    """A recurrent layer by torch's own decomposition; the CPU's fused kernel takes scratch that none can predict."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # what torch.backends.mkldnn.flags does, without its warning about TF32
    try:
        return decomposition_table[operator](*args)
    finally:
        torch._C._set_mkldnn_enabled(enabled)


class AcceleratorForms(TorchFunctionMode):
    """Inside, dropout is the fused operator, also within attention; literals are on the device that they ask for."""

    @staticmethod
    def kept(function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` that runs under the forms wherever it is called, if they are on now.

        Autograd calls back, to recompute a checkpoint, where no mode is on.
        """
        if not any(isinstance(mode, AcceleratorForms) for mode in _get_current_function_mode_stack()):
            return function

        def call(*args: Any) -> Any:
            with AcceleratorForms():
                return function(*args)

        return call

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.dropout, torch.dropout):
            return _dropout(*args, **kwargs)
        if func in UNROLLED:
            form = "data" if isinstance(args[3], (list, tuple)) else "input"  # of a packed sequence, or a tensor
            with self:  # dropout between the layers
                return unrolled(getattr(UNROLLED[func], form), *args)
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return _multi_head_attention(*args, **kwargs)
        if func is torch.tensor and kwargs.get("device") is not None:
            return literal(*args, **kwargs)
        return func(*args, **kwargs)


def literal(data: Any, *, device: torch.device | str, **kwargs: Any) -> Tensor:
    """torch.tensor on a device, which fake tensors get wrong for a CPU with an index."""
    made = torch.tensor(data, **kwargs)
    if torch.device(device) == made.device:
        return made  # its value stays known, as an optimizer's count of its steps needs
    return torch.empty(made.shape, dtype=made.dtype, device=device).copy_(made)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not 0 < p < 1 or inplace or not input.numel():
        return F.dropout(input, p, training, inplace)
    return torch.native_dropout(input, p, True)[0]


def _attend(*args: Any, **kwargs: Any) -> Tensor:
    attend = _attention if _dropout_of(*args, **kwargs) > 0 else F.scaled_dot_product_attention
    return attend(*args, **kwargs)


def _dropout_of(*args: Any, dropout_p: float = 0.0, **_: Any) -> float:
    return args[4] if len(args) > 4 else dropout_p


def _attention(  # noqa: PLR0917  # torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention with dropout, by the operations of torch's math path, in their order and with their lifetimes."""
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    mask = _float_mask(attn_mask, query.dtype)
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    scaled = query * root  # it lives until the end, as the local variable of torch's that it is
    scores = scaled @ (key.transpose(-2, -1) * root)
    if mask is not None:
        scores.add_(mask)
    scores = torch.ops.aten._safe_softmax(scores, -1)
    scores = torch.native_dropout(scores, dropout_p, True)[0]
    return scores @ value


def _float_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What a boolean mask adds to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero, never = (torch.scalar_tensor(x, dtype=dtype, device=mask.device) for x in (0.0, -math.inf))
    return torch.where(mask, zero, never)


# torch's own function, which calls others of torch.nn.functional by their names: no mode is on inside a mode's handler.
_multi_head_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    vars(F) | {"dropout": _dropout, "scaled_dot_product_attention": _attend, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
