"""Operators whose result has a size, or is a number, that depends on data: fake tensors have none to ask."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.utils._mode_utils import no_dispatch

aten = torch.ops.aten
_NUMBER = aten._local_scalar_dense.default


def call_on_fakes(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], mode: AbstractContextManager[Any]
) -> Any:
    """Call an operator on fake tensors; a result that depends on data is the largest that it can be.

    So shapes fit together as they do at run time, and memory is planned for the worst case. The few that have no
    bound (``bincount``, ``repeat_interleave`` without its output size) are taken as large as their input, numbers as 1.

    Args:
        func: the operator.
        args: its arguments.
        kwargs: its keyword arguments.
        mode: the mode that looks on; it sees what the substitute is made of.
    """
    if func is _NUMBER and isinstance(args[0], FakeTensor):  # not by an exception: optimizers ask thousands of times
        return _number(args[0]) if args[0].constant is None else _constant(args[0].constant)
    try:
        return func(*args, **kwargs)
    except (DynamicOutputShapeException, DataDependentOutputException):
        if func not in _LARGEST:
            raise
        with mode:
            return _LARGEST[func](*args, **kwargs)


def _nonzero(x: Tensor) -> Tensor:
    return _indices(x, x.numel(), x.dim())


def _masked_select(x: Tensor, mask: Tensor) -> Tensor:
    return x.new_empty(x.numel())  # what a captured graph asserts, also for a mask that is larger than x


def _index(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    """A boolean mask becomes the places where it is true, as in the kernel."""
    places: list[Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype in (torch.bool, torch.uint8)
        places += _nonzero(index).unbind(1) if masks and index is not None else [index]
    selected: Tensor = aten.index.Tensor(x, places)
    return selected


def _unique(x: Tensor, sorted: bool = True, inverse: bool = False) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.numel()), _indices(x, *(x.shape if inverse else (0,)))


def _unique2(
    x: Tensor, sorted: bool = True, inverse: bool = False, counts: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    return *_unique(x, sorted, inverse), _indices(x, x.numel() if counts else 0)


def _unique_consecutive(
    x: Tensor, inverse: bool = False, counts: bool = False, dim: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return _unique2(x, True, inverse, counts) if dim is None else _unique_dim(x, dim, True, inverse, counts)


def _unique_dim(
    x: Tensor, dim: int, sorted: bool = True, inverse: bool = False, counts: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    length = x.shape[dim]
    return x.new_empty(x.shape), _indices(x, length if inverse else 0), _indices(x, length if counts else 0)


def _bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    dtype = torch.int64
    if weights is not None:
        dtype = weights.dtype if weights.dtype == torch.float32 else torch.float64
    return x.new_empty(max(x.numel(), minlength), dtype=dtype)


def _repeat_interleave(repeats: Tensor, *, output_size: int | None = None) -> Tensor:
    return repeats.new_empty(repeats.numel() if output_size is None else output_size)


def _number(x: Tensor) -> complex | bool:
    """One, as the element type has it: as a size it makes the fewest shapes impossible, as a flag it passes checks."""
    if x.dtype == torch.bool:
        return True
    if x.dtype.is_complex:
        return 1 + 0j
    return 1.0 if x.dtype.is_floating_point else 1


def _constant(x: Tensor) -> Any:
    with no_dispatch():
        return x.item()


def _indices(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.int64)


_LARGEST: dict[Any, Callable[..., Any]] = {
    aten._unique.default: _unique,
    aten._unique2.default: _unique2,
    aten.bincount.default: _bincount,
    aten.index.Tensor: _index,
    aten.masked_select.default: _masked_select,
    aten.nonzero.default: _nonzero,
    aten.repeat_interleave.Tensor: _repeat_interleave,
    aten.unique_consecutive.default: _unique_consecutive,
    aten.unique_dim.default: _unique_dim,
}
