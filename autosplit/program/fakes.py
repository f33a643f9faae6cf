"""Fake tensors: tensors without data, on which a graph is run to see what it does."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_UNBOUNDED = 2**48


def fake_mode() -> FakeTensorMode:
    """Fake tensors of known sizes.

    What only data can tell is a symbol: the number that ``.item()`` gives, the rows that a mask selects.
    """
    shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes, static_shapes=True)


def most(size: int | torch.SymInt) -> int:
    """The size, or the most that it can be where data decides; 0 where nothing bounds it."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    known = size.node.maybe_as_int()
    if known is not None:
        return int(known)
    upper = size.node.shape_env.bound_sympy(size.node.expr).upper
    return int(upper) if upper < _UNBOUNDED else 0
