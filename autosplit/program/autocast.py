"""What an accelerator's autocast casts, for tensors that torch's own lists do not know: fakes, and virtual devices.

Fakes are CPU tensors to torch, and the CPU's lists are others: accelerators take softmax, layer_norm, pow or the losses
in float32, the CPU takes cat in the widest type or fft in float32. The lists are those of ATen/autocast_mode.h, which
CUDA has. As there, the low-precision copy of a parameter is kept until the outermost autocast region ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]

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


class Casts:
    """The lists for the tensors of one device type.

    Args:
        device_type: torch's name for it, whose autocast says whether to cast and to what.
        keys: the dispatch keys that are off in a kernel that was cast for; the first is the one it is registered with.
    """

    def __init__(self, device_type: str, *keys: str) -> None:
        self.device_type = device_type
        self.key = keys[0]
        found = [torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in keys]
        self._off = found[0] if len(found) == 1 else found[0] | found[1]
        self._low_copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by their parameter's id; it is kept alive

    def install(self, library: torch.library.Library, anything: torch.library.Library) -> None:
        """Register the lists, and that every other operator passes through."""
        anything.fallback(torch.library.fallthrough_kernel, self.key)
        lists = (
            (_LOWER, self._to_low),
            (_FP32, self._to_full),
            (_FP32_RESULT, self._ask_full),
            (_WIDEST, self._widest),
        )
        for names, prepare in lists:
            for name in names:
                library.impl(name, partial(self._call, overload(name), prepare), self.key)

    def forget_low_copies(self) -> None:
        """Drop the low-precision copies of parameters, as torch does when the outermost autocast region ends."""
        self._low_copies.clear()

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Meanwhile the low-precision copies end when those of torch do, whose cache is C++."""
        clear_autocast_cache = torch.clear_autocast_cache

        def clear() -> None:
            self.forget_low_copies()
            clear_autocast_cache()

        torch.clear_autocast_cache = clear
        try:
            yield
        finally:
            torch.clear_autocast_cache = clear_autocast_cache
            self.forget_low_copies()

    def _call(self, op: torch._ops.OpOverload, prepare: Callable[..., _Arguments], *args: Any, **kwargs: Any) -> Any:
        on = torch.is_autocast_enabled(self.device_type)
        with torch._C._ExcludeDispatchKeyGuard(self._off):
            if on:
                args, kwargs = prepare(args, kwargs)
            return op(*args, **kwargs)

    def _low(self) -> torch.dtype:
        return torch.get_autocast_dtype(self.device_type)

    def _to_low(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
        return self._cast_all(args, kwargs, self._low())

    def _to_full(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
        return self._cast_all(args, kwargs, torch.float32)

    def _widest(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
        found = [value for value in (*args, *kwargs.values()) if self._eligible(value)]
        wide = any(tensor.dtype == torch.float32 for tensor in found)
        return self._cast_all(args, kwargs, torch.float32 if wide else self._low())

    def _ask_full(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
        if kwargs.get("dtype") is None and self._eligible(args[0]):
            kwargs = {**kwargs, "dtype": torch.float32}
        return args, kwargs

    def _cast_all(self, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> _Arguments:
        cast = self._cast
        return tuple(cast(value, dtype) for value in args), {name: cast(value, dtype) for name, value in kwargs.items()}

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            return self._cast_tensor(value, dtype) if value.dtype != dtype and self._eligible(value) else value
        kind = type(value)
        if kind is list or kind is tuple:
            return kind([self._cast(item, dtype) for item in value])
        return value

    def _eligible(self, value: Any) -> bool:
        return (
            isinstance(value, torch.Tensor)
            and value.device.type == self.device_type
            and value.is_floating_point()
            and value.dtype != torch.float64
        )

    def _cast_tensor(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        keep = (
            dtype == self._low()
            and tensor.dtype == torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not keep:
            return tensor.to(dtype)
        entry = self._low_copies.get(id(tensor))
        if entry is None:
            entry = self._low_copies[id(tensor)] = tensor, tensor.to(dtype)
        return entry[1]


_KEY = "AutocastIPU"
"""The dispatch key that fakes are cast with: of a device that this torch has no tensors for, before the CPU's key."""

_libraries: list[torch.library.Library] = []  # one takes its kernels back when it is collected


@contextmanager
def accelerator_casts() -> Iterator[None]:
    """Inside, autocast treats fakes, which are CPU tensors to torch, by the lists of an accelerator."""
    casts, key = _casts_of_fakes(), getattr(torch._C.DispatchKey, _KEY)
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        with torch._C._IncludeDispatchKeyGuard(key), casts.forgetting():
            yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, excluded)


@cache
def _casts_of_fakes() -> Casts:
    aten, anything = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    _libraries.extend((aten, anything))
    casts = Casts("cpu", _KEY, "AutocastCPU")
    casts.install(aten, anything)
    for higher in torch._ops._higher_order_ops.values():  # cond and its like dispatch by themselves
        higher.fallthrough(getattr(torch._C.DispatchKey, _KEY))
    listed = {f"aten::{name}" for names in (_LOWER, _FP32, _FP32_RESULT, _WIDEST) for name in names}
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and name not in listed and has_kernel(name, "AutocastCPU"):
            op = overload(name.removeprefix("aten::"))
            aten.impl(op, partial(_uncast, casts, op), _KEY)
    return casts


def overload(name: str) -> torch._ops.OpOverload:
    """The aten operator ``name`` or ``name.overload``."""
    packet, _, variant = name.partition(".")
    op: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, packet), variant or "default")
    return op


def _uncast(casts: Casts, op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """An operator that only the CPU's lists have: of an accelerator's, those that it is made of may be listed."""
    if op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return op.decompose(*args, **kwargs)
    with torch._C._ExcludeDispatchKeyGuard(casts._off):
        return op(*args, **kwargs)
