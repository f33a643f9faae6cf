"""Tensors to measure with: of the form that a node reads, filled with harmless numbers, on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from autosplit.program import Spec, tensor_leaves

_PATTERN = 4096  # random numbers that are repeated over a tensor: as random as a kernel's speed can tell


def make(form: Any, device: torch.device, *, ones: bool = False, written: bool = False) -> Any:
    """A value of ``form``: tensors where it has Specs.

    Args:
        form: a nested value with a Spec in the place of each tensor.
        device: where the tensors are made.
        ones: integers are 1, not 0 (0 is a valid index, but no valid divisor).
        written: the value is written in place, so that no tensor may be a leaf of autograd.
    """

    def tensor(spec: Spec) -> torch.Tensor:
        made = _filled(spec, device, ones)
        if not spec.requires_grad:
            return made
        leaf = made.requires_grad_()
        with torch.enable_grad():
            return leaf.clone() if written else leaf

    return pytree.tree_map_only(Spec, tensor, form)


def form_bytes(form: Any) -> int:
    """Bytes of the tensors of ``form``, each counted once."""
    leaves = pytree.tree_leaves(form, is_leaf=lambda leaf: isinstance(leaf, Spec))
    return sum(_span(spec) * spec.dtype.itemsize for spec in leaves if isinstance(spec, Spec))


def differentiable(value: Any) -> list[torch.Tensor]:
    """The tensors in a nested value that carry a gradient."""
    return [tensor for tensor in tensor_leaves(value) if tensor.requires_grad]


def _filled(spec: Spec, device: torch.device, ones: bool) -> torch.Tensor:
    dtype = spec.dtype
    flat = torch.empty(_span(spec), dtype=dtype, device=device)
    if dtype == torch.bool or not (dtype.is_floating_point or dtype.is_complex):
        flat.fill_(True if dtype == torch.bool else int(ones))
    elif flat.numel():
        _repeat(flat, torch.randn(_PATTERN, generator=torch.Generator().manual_seed(0)).mul_(0.1).to(dtype).to(device))
    return flat.as_strided(spec.shape, spec.stride)


def _repeat(flat: torch.Tensor, pattern: torch.Tensor) -> None:
    whole = flat.numel() // _PATTERN * _PATTERN
    flat[:whole].view(-1, _PATTERN).copy_(pattern.expand(whole // _PATTERN, _PATTERN))
    flat[whole:].copy_(pattern[: flat.numel() - whole])


def _span(spec: Spec) -> int:
    """Elements from the first to the last of a strided tensor."""
    if 0 in spec.shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(spec.shape, spec.stride, strict=True))
