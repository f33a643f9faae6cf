"""Python stand-ins for kernels that a CPU build has only under another name or not at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from autosplit.program.accelerator import UNROLLED, unrolled
from autosplit.sim.fallback import Kernel, run


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
        for operator in (overload for packet in UNROLLED.values() for overload in (packet.input, packet.data)):
            library.impl(operator.name(), partial(unrolled, operator), key)
    library.impl("histc", _histogram, "PrivateUse1")


def _cell_kernel(kernel: Kernel) -> Callable[..., Any]:
    return lambda *args, **kwargs: run(kernel, args, kwargs)


_histc = torch.ops.aten.histc.default
_histc_kernel = Kernel(_histc.name(), _histc, _histc._schema)


def _histogram(x: Tensor, bins: int = 100, minimum: float = 0, maximum: float = 0) -> Any:
    """Integers too, which CUDA's kernel counts and the CPU's does not."""
    if x.is_floating_point():
        return run(_histc_kernel, (x, bins, minimum, maximum), {})
    return run(_histc_kernel, (x.double(), bins, minimum, maximum), {}).to(x.dtype)


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
    """The kernel that the CPU would choose, on the mask that it would make.

    ``scaled_dot_product_attention`` is composite and chooses by device type; for ours it knows only the math path.
    """
    aten = torch.ops.aten
    mask = _float_mask(attn_mask, query.dtype)
    q, k, v, form = (None if tensor is None else _form_on_cpu(tensor) for tensor in (query, key, value, mask))
    choice = aten._fused_sdp_choice(q, k, v, form, dropout_p, is_causal, enable_gqa=enable_gqa)
    if choice == SDPBackend.FLASH_ATTENTION.value:
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(
        query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def _float_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask becomes what is added to the scores, by the operations that torch itself uses."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero, minus_infinity = (torch.scalar_tensor(x, dtype=dtype, device=mask.device) for x in (0.0, float("-inf")))
    return torch.where(mask, zero, minus_infinity)


def _form_on_cpu(tensor: Tensor) -> Tensor:
    """A CPU tensor of the same sizes, strides, dtype and requires_grad without memory."""
    form = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    form.untyped_storage().resize_(0)
    return form.requires_grad_(tensor.requires_grad)
