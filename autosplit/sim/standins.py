"""Python stand-ins for kernels that a CPU build has only under another name or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autosplit.sim.fallback import Kernel, run

_FLASH_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def install(library: torch.library.Library) -> None:
    """Register convolution, the fused recurrent cells and attention for the sim key."""
    library.impl("convolution_overrideable", _convolution, "PrivateUse1")
    library.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
    cells: dict[str, Callable[..., Any]] = {
        "_thnn_fused_lstm_cell": _lstm_cell,
        "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
        "_thnn_fused_gru_cell": _gru_cell,
        "_thnn_fused_gru_cell_backward": _gru_cell_backward,
    }
    for name, function in cells.items():
        library.impl(name, _cell_kernel(Kernel(f"aten::{name}", function)), "PrivateUse1")
    for key in ("AutogradPrivateUse1", "PrivateUse1"):
        library.impl("scaled_dot_product_attention", _attention, key)


def _cell_kernel(kernel: Kernel) -> Callable[..., Any]:
    return lambda *args, **kwargs: run(kernel, args, kwargs)


_conv = torch.ops.aten.convolution.default
_conv_kernel = Kernel(_conv.name(), _conv, _conv._schema)
_conv_backward = torch.ops.aten.convolution_backward.default
_conv_backward_kernel = Kernel(_conv_backward.name(), _conv_backward, _conv_backward._schema)


def _convolution(*args: Any) -> Any:
    return run(_conv_kernel, args, {})


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    """``rest``: stride, padding, dilation, transposed, output_padding, groups, output_mask."""
    transposed, groups = rest[3], rest[5]
    bias_sizes = [weight.shape[1] * groups if transposed else weight.shape[0]]
    return run(_conv_backward_kernel, (grad, x, weight, bias_sizes, *rest), {})


def _lstm_cell(
    igates: Tensor, hgates: Tensor, cx: Tensor, ibias: Tensor | None = None, hbias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the hidden state, the cell state and the workspace (the four activated gates)."""
    gates = igates + hgates
    if ibias is not None and hbias is not None:
        gates = gates + ibias + hbias
    i, f, n, o = gates.chunk(4, 1)
    i, f, n, o = i.sigmoid(), f.sigmoid(), n.tanh(), o.sigmoid()
    cy = f * cx + i * n
    return o * cy.tanh(), cy, torch.cat([i, f, n, o], 1)


def _lstm_cell_backward(
    grad_hy: Tensor | None, grad_cy: Tensor | None, cx: Tensor, cy: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of the gates, of the previous cell state and of the bias."""
    i, f, n, o = workspace.chunk(4, 1)
    tanh_cy = cy.tanh()
    grad_hy = torch.zeros_like(cy) if grad_hy is None else grad_hy
    grad_c = grad_hy * o * (1 - tanh_cy * tanh_cy)
    if grad_cy is not None:
        grad_c = grad_c + grad_cy
    gates = [
        grad_c * n * i * (1 - i),
        grad_c * cx * f * (1 - f),
        grad_c * i * (1 - n * n),
        grad_hy * tanh_cy * o * (1 - o),
    ]
    grad_gates = torch.cat(gates, 1)
    return grad_gates, grad_c * f, _bias_gradient(grad_gates, has_bias)


def _gru_cell(
    igates: Tensor, hgates: Tensor, hx: Tensor, ibias: Tensor | None = None, hbias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the hidden state and the workspace (gates, previous state, hidden part of the new gate)."""
    if ibias is not None and hbias is not None:
        igates, hgates = igates + ibias, hgates + hbias
    ir, iz, inew = igates.chunk(3, 1)
    hr, hz, hnew = hgates.chunk(3, 1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (inew + r * hnew).tanh()
    return n + z * (hx - n), torch.cat([r, z, n, hx, hnew], 1)


def _gru_cell_backward(
    grad_hy: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of the input gates, hidden gates, previous state and the two biases."""
    r, z, n, hx, hnew = workspace.chunk(5, 1)
    grad_n = grad_hy * (1 - z) * (1 - n * n)
    grad_z = grad_hy * (hx - n) * z * (1 - z)
    grad_r = grad_n * hnew * r * (1 - r)
    grad_igates = torch.cat([grad_r, grad_z, grad_n], 1)
    grad_hgates = torch.cat([grad_r, grad_z, grad_n * r], 1)
    biases = _bias_gradient(grad_igates, has_bias), _bias_gradient(grad_hgates, has_bias)
    return grad_igates, grad_hgates, grad_hy * z, *biases


def _bias_gradient(grad_gates: Tensor, has_bias: bool) -> Tensor:
    return grad_gates.sum(0) if has_bias else grad_gates.new_empty(0)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Flash attention where the CPU build has it (it saves what CUDA's saves), else the math path.

    ``scaled_dot_product_attention`` is composite and picks by device type, so it would take the math path always.
    """
    aten = torch.ops.aten
    if dropout_p == 0.0 and not enable_gqa and _flash_fits(query, key, value, attn_mask, is_causal):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def _flash_fits(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> bool:
    if attn_mask is not None and (is_causal or attn_mask.requires_grad or attn_mask.dim() not in (2, 4)):
        return False
    return (
        query.dim() == 4
        and query.dtype in _FLASH_DTYPES
        and query.shape[-1] == value.shape[-1]
        and query.numel() > 0
        and key.numel() > 0
        and all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    )
