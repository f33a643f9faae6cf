"""Autocast for sim tensors: the same operators cast down, and up, as under ``torch.autocast("cuda")``.

The lists are those of ATen/autocast_mode.h. As there, the low-precision copy of a parameter is kept
until the outermost autocast region ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autosplit.sim.kernels import overload
from autosplit.sim.world import NAME

# AT_FORALL_LOWER_PRECISION_FP
_LOWER = (
    "_convolution",
    "_convolution.deprecated",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_tbc",
    "conv_transpose1d",
    "conv_transpose2d.input",
    "conv_transpose3d.input",
    "convolution",
    "prelu",
    "addmm",
    "addmv",
    "addr",
    "matmul",
    "einsum",
    "mm",
    "mv",
    "linalg_vecdot",
    "linear",
    "addbmm",
    "baddbmm",
    "bmm",
    "chain_matmul",
    "linalg_multi_dot",
    "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell",
    "lstm_cell",
    "gru_cell",
    "rnn_tanh_cell",
    "rnn_relu_cell",
    "scaled_dot_product_attention",
)
# AT_FORALL_FP32 and AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE; the two softmaxes are here, not below, because
# their CPU kernels cannot turn half into float on the way.
_FP32 = (
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "softplus",
    "layer_norm",
    "native_layer_norm",
    "rms_norm",
    "group_norm",
    "frobenius_norm.dim",
    "nuclear_norm",
    "nuclear_norm.dim",
    "cosine_similarity",
    "poisson_nll_loss",
    "cosine_embedding_loss",
    "nll_loss",
    "nll_loss2d",
    "hinge_embedding_loss",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "margin_ranking_loss",
    "multilabel_margin_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "multi_margin_loss",
    "binary_cross_entropy_with_logits",
    "dist",
    "pdist",
    "cdist",
    "renorm",
    "logsumexp",
    "upsample_nearest1d",
    "_upsample_nearest_exact1d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
    "norm.Scalar",
    "norm.ScalarOpt_dim",
    "softmax.int",
    "log_softmax.int",
)
# AT_FORALL_FP32_SET_OPT_DTYPE
_FP32_RESULT = (
    "prod",
    "prod.dim_int",
    "cumprod",
    "cumsum",
    "linalg_vector_norm",
    "linalg_matrix_norm",
    "linalg_matrix_norm.str_ord",
    "sum",
    "sum.dim_IntList",
)
# AT_FORALL_PROMOTE
_WIDEST = (
    "addcdiv",
    "addcmul",
    "atan2",
    "bilinear",
    "cross",
    "dot",
    "vdot",
    "grid_sampler",
    "index_put",
    "tensordot",
    "scatter_add",
)

# Low-precision copies by the id of their parameter, which each entry keeps alive.
_low_copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

_Prepare = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


def install(library: torch.library.Library, anything: torch.library.Library) -> None:
    """Register the cast lists, and that every other operator passes through autocast."""
    anything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    lists = ((_LOWER, _to_low), (_FP32, _to_full), (_FP32_RESULT, _ask_full), (_WIDEST, _to_widest))
    for names, prepare in lists:
        for name in names:
            library.impl(name, _prepared(overload(name), prepare), "AutocastPrivateUse1")
    library.impl("binary_cross_entropy", _banned, "AutocastPrivateUse1")


def forget_low_copies() -> None:
    """Drop the low-precision copies of parameters, as torch does when the outermost autocast region ends."""
    _low_copies.clear()


def _prepared(op: torch._ops.OpOverload, prepare: _Prepare) -> Callable[..., Any]:
    key = torch._C.DispatchKeySet(
        torch._C.DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]  # absent from torch's stubs
    )

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            args, kwargs = prepare(args, kwargs)
            return op(*args, **kwargs)

    return kernel


def _to_low(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _cast_all(args, kwargs, torch.get_autocast_dtype(NAME))


def _to_full(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _cast_all(args, kwargs, torch.float32)


def _to_widest(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    found = [value for value in (*args, *kwargs.values()) if _eligible(value)]
    wide = any(tensor.dtype == torch.float32 for tensor in found)
    return _cast_all(args, kwargs, torch.float32 if wide else torch.get_autocast_dtype(NAME))


def _ask_full(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if kwargs.get("dtype") is None and _eligible(args[0]):
        kwargs = {**kwargs, "dtype": torch.float32}
    return args, kwargs


def _banned(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast: "
        "use binary_cross_entropy_with_logits or BCEWithLogitsLoss"
    )


def _cast_all(
    args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_cast(value, dtype) for value in args), {name: _cast(value, dtype) for name, value in kwargs.items()}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return _cast_tensor(value, dtype) if value.dtype != dtype and _eligible(value) else value
    kind = type(value)
    if kind is list or kind is tuple:
        return kind([_cast(item, dtype) for item in value])
    return value


def _eligible(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == NAME
        and value.is_floating_point()
        and value.dtype != torch.float64
    )


def _cast_tensor(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    keep = (
        dtype == torch.get_autocast_dtype(NAME)
        and tensor.dtype == torch.float32
        and tensor.requires_grad
        and tensor.is_leaf
        and not tensor._is_view()
        and torch.is_autocast_cache_enabled()
    )
    if not keep:
        return tensor.to(dtype)
    entry = _low_copies.get(id(tensor))
    if entry is None:
        entry = _low_copies[id(tensor)] = tensor, tensor.to(dtype)
    return entry[1]
