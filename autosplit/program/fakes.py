"""Fake tensors: tensors without data, on which a graph is run to see what it does."""

from __future__ import annotations

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv


def fake_mode() -> FakeTensorMode:
    """Fake tensors of known sizes; a number that only data can tell (``.item()`` before an assertion) is a symbol."""
    known_sizes = ShapeEnv(allow_scalar_outputs=True)
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=known_sizes, static_shapes=True)
