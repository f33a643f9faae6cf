"""Sums of gradients in place, as autograd takes them on a device whose kernels are not written in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from autosplit.program import GradientSums

_HELD_ONCE = 3  # uses of a tensor that autograd alone holds: it, the Python object, and the call
_STORED_ONCE = 2  # uses of a storage that one tensor has: it, and the Python object that is asked

_add = torch.ops.aten.add.Tensor
_is_dense = torch.ops.aten.is_non_overlapping_and_dense.default


class _Watch:
    """The backward that runs now."""

    sums: GradientSums | None = None


def install(library: torch.library.Library) -> None:
    """Register addition for the sim key."""
    library.impl("add.Tensor", _add_kernel, "PrivateUse1")


@contextmanager
def watched(roots: Sequence[Any]) -> Iterator[None]:
    """The backward of ``roots`` runs inside."""
    before, _Watch.sums = _Watch.sums, GradientSums()
    try:
        _Watch.sums.watch(roots)
        yield
    finally:
        _Watch.sums = before


def _add_kernel(a: torch.Tensor, b: torch.Tensor, *, alpha: float = 1) -> torch.Tensor:
    if _Watch.sums is not None and _Watch.sums.is_one() and _takes(a, b):
        return a.add_(b)
    result: torch.Tensor = _add._op_dk(torch._C.DispatchKey.CompositeExplicitAutogradNonFunctional, a, b, alpha=alpha)
    return result


def _takes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the sum can be written over ``a``, as autograd decides it."""
    held_once = a._use_count() <= _HELD_ONCE  # type: ignore[attr-defined]  # absent from torch's stubs
    stored_once = torch._C._storage_Use_Count(a.untyped_storage()._cdata) <= _STORED_ONCE
    same_form = a.dtype == b.dtype and a.shape == b.shape
    return held_once and stored_once and same_form and _is_dense(a)
