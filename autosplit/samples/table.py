"""Which rule is whose: by the operator's name in aten."""

from __future__ import annotations

from typing import Any

import torch

from autosplit.samples import folding, moving, working
from autosplit.samples.kinds import Call, Kind, MixingError, base_name
from autosplit.samples.moving import Rule
from autosplit.samples.ordering import reordered

_POINTWISE = """_to_copy copy fill zero masked_fill dropout native_dropout bernoulli normal uniform random exponential
    lift_fresh lift_fresh_copy alias detach clone real imag view_as_real view_as_complex conj _conj
    resolve_conj _neg_view resolve_neg isin where nan_to_num logical_not poisson rrelu_with_noise
    rrelu_with_noise_functional _prelu_kernel log_sigmoid_forward cauchy log_normal geometric positive
    complex polar _fused_dropout special_digamma _thnn_fused_lstm_cell _thnn_fused_gru_cell floor_divide
    softplus hardswish mish rand_like randn_like randint_like max min _conj_physical"""

_ALONG_DIM = """_softmax _safe_softmax _log_softmax softmax log_softmax cumsum cumprod cummax cummin logcumsumexp sort
    topk glu linalg_cross flip _fft_r2c _fft_c2c _fft_c2r"""

_LAST = {
    1: """avg_pool1d adaptive_avg_pool1d reflection_pad1d replication_pad1d upsample_nearest1d upsample_linear1d
    _upsample_nearest_exact1d max_pool1d_with_indices""",
    2: """max_pool2d_with_indices avg_pool2d adaptive_max_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d
    reflection_pad2d replication_pad2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
    _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa fractional_max_pool2d tril triu
    mkldnn_max_pool2d max_pool2d max_unpool2d linalg_inv_ex linalg_cholesky_ex cholesky _linalg_det
    matrix_exp linalg_matrix_exp""",
    3: """max_pool3d_with_indices avg_pool3d adaptive_max_pool3d adaptive_avg_pool3d _adaptive_avg_pool3d
    reflection_pad3d replication_pad3d upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle max_unpool3d""",
}

_FACTORIES = """zeros ones full empty empty_strided new_zeros new_ones new_full new_empty new_empty_strided rand randn
    randint empty_permuted"""

_LOSSES = "mse_loss smooth_l1_loss huber_loss binary_cross_entropy soft_margin_loss"

_REDUCTIONS = """amax amin max min argmax argmin prod var std var_mean std_mean any all logsumexp linalg_vector_norm
        norm
    median nanmedian mode kthvalue aminmax"""


def _row_ops() -> dict[str, Rule]:
    through = working.through
    return {
        "convolution": through("input"),
        "_convolution": through("input"),
        "native_group_norm": through("input"),
        "im2col": through("self"),
        "col2im": through("self"),
        "grid_sampler_2d": through("input", "grid"),
        "grid_sampler_3d": through("input", "grid"),
        "affine_grid_generator": through("theta"),
        "multinomial": through("self"),
        "_native_multi_head_attention": through("query", "key", "value", "mask"),
        "_transformer_encoder_layer_fwd": through("src", "mask"),
        "_trilinear": through("i1", "i3"),
        "feature_dropout": through("input"),
    }


def _products() -> dict[str, Rule]:
    product, vectors = working.product, working.vectors
    return {
        "mm": product("self", "mat2"),
        "bmm": product("self", "mat2"),
        "addmm": product("mat1", "mat2", "self"),
        "baddbmm": product("batch1", "batch2", "self"),
        "_addmm_activation": product("mat1", "mat2", "self"),
        "mv": vectors("self", "vec"),
        "dot": vectors("self", "tensor"),
        "_cdist_forward": working.cdist,
        "_euclidean_dist": working.cdist,
    }


def _moves() -> dict[str, Rule]:
    views = dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy"), moving.reshape)
    writes = dict.fromkeys(("index_add", "index_copy", "index_fill"), moving.index_write)
    scatters = dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), moving.scatter)
    return {
        **views,
        **writes,
        **scatters,
        **dict.fromkeys(("permute", "transpose", "t", "swapaxes"), moving.permute),
        **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), moving.split),
        **dict.fromkeys(("select", "unbind"), moving.select),
        **dict.fromkeys(("index", "_unsafe_index"), moving.index),
        **dict.fromkeys(("index_put", "_unsafe_index_put", "_index_put_impl"), moving.index_put),
        **dict.fromkeys(("slice_scatter", "select_scatter"), moving.scattered_slice),
        **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like"), moving.like),
        **dict.fromkeys(_FACTORIES.split(), moving.new),
        "unsqueeze": moving.unsqueeze,
        "squeeze": moving.squeeze,
        "expand": moving.expand,
        "repeat": moving.repeat,
        "slice": moving.slicing,
        "diagonal": moving.diagonal,
        "unfold": moving.unfold,
        "cat": moving.cat,
        "stack": moving.stack,
        "index_select": moving.index_select,
        "gather": moving.gather,
        "arange": moving.arange,
        "constant_pad_nd": moving.pad,
        "roll": working.along("dims"),
        "flip": working.along("dims"),
    }


def _folds() -> dict[str, Rule]:
    return {
        **dict.fromkeys(_REDUCTIONS.split(), folding.fold()),
        **dict.fromkeys(_LOSSES.split(), folding.loss),
        "sum": folding.fold("sum"),
        "nansum": folding.fold("sum"),
        "count_nonzero": folding.fold("sum"),
        "mean": folding.fold("mean"),
        "nll_loss_forward": folding.nll_loss,
        "nll_loss2d_forward": folding.nll_loss,
        "multi_margin_loss": folding.row_loss,
        "multilabel_margin_loss_forward": folding.with_rest(folding.row_loss),
    }


def _norms() -> dict[str, Rule]:
    batch = """native_batch_norm _native_batch_norm_legit _batch_norm_with_update _native_batch_norm_legit_no_training
    _native_batch_norm_legit_functional cudnn_batch_norm miopen_batch_norm _batch_norm_impl_index"""
    attend = """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable scaled_dot_product_attention
    _scaled_dot_product_attention_math"""
    return {
        **dict.fromkeys(batch.split(), working.batch_norm),
        **dict.fromkeys(attend.split(), working.attention),
        "native_layer_norm": working.layer_norm,
        "_fused_rms_norm": working.layer_norm,
        "embedding": working.embedding,
        "bucketize": working.grouped_rows("self", "boundaries"),
        "take": working.grouped_rows("index", "self"),
        "mkldnn_rnn_layer": working.rnn_layer,
    }


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE.split(), working.pointwise),
    **dict.fromkeys(_ALONG_DIM.split(), working.along("dim", "dims")),
    **{name: working.last(count) for count, names in _LAST.items() for name in names.split()},
    **_row_ops(),
    **_products(),
    **_norms(),
    **_folds(),
    **_moves(),
}

_BY_OVERLOAD: dict[Any, Rule] = {
    torch.ops.aten.max.other: working.pointwise,
    torch.ops.aten.min.other: working.pointwise,
    torch.ops.aten.view.dtype: working.last(1),
}

_SIZES = """view _unsafe_view reshape _reshape_alias expand repeat slice split split_with_sizes unsafe_split arange
    unsafe_split_with_sizes native_group_norm"""
_SIZED = frozenset([*_SIZES.split(), *_FACTORIES.split()])
"""Operators that may be told the number of samples: what they make of it is in the shape, or their rule looks at it."""

_NOT_BY_TAG = ("equal", "allclose", "is_same_size")


def rule_of(func: Any) -> Rule | None:
    """The rule of an operator; None when there is none."""
    if func in _BY_OVERLOAD:
        return _BY_OVERLOAD[func]
    name = base_name(func)
    rule = _RULES.get(name)
    if rule is None and name not in _NOT_BY_TAG and _is_pointwise(func, name):
        rule = working.pointwise
    if rule is None or name in _SIZED or rule is working.pointwise:
        return rule
    return working.guarded(rule)


def _is_pointwise(func: Any, name: str) -> bool:
    """As torch says of the operator or, of one in place, of its other form."""
    if "::" in name or not hasattr(func, "tags"):
        return False
    if torch.Tag.pointwise in func.tags:
        return True
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())


def apply_rule(call: Call) -> list[Kind]:
    """The kind of every tensor that a call returns.

    Raises:
        MixingError: samples see each other in it, or nothing is known of it.
    """
    rule = rule_of(call.func)
    kinds = call.all_kinds()
    if all(kind is None for kind in kinds) and not call.differing() and not _varies(call):
        return [None] * len(call.made)
    if (found := reordered(call)) is not None:
        return found
    if rule is None:
        raise MixingError("nothing is known of this operator")
    found = rule(call)
    return list(found) if isinstance(found, list) else [found] * len(call.made)


def _varies(call: Call) -> bool:
    return any(call.sizes.varying(*made) for made in call.made)
