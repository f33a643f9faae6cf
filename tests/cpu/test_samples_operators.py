"""torch's database of operators: what is called exact is equal in parts, whichever dimension is the batch."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from micro_batches import LARGE, SMALL, Ran, cut, gap, merge_all, resized
from operators import OPS, SUPPORTED
from torch import fx
from torch.utils import _pytree as pytree

from autosplit.program import Input, Program, Spec
from autosplit.samples import follow_samples

SAMPLES = int(os.environ.get("SAMPLES_PER_OPERATOR", "1"))


def program(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Program:
    """A graph of one call; every tensor is an input."""
    graph, inputs = fx.Graph(), []

    def place(tensor: torch.Tensor) -> fx.Node:
        name = f"x{len(inputs)}"
        inputs.append(Input("input", name, Spec.of(tensor)))
        return graph.placeholder(name)

    args, kwargs = pytree.tree_map_only(torch.Tensor, place, (args, kwargs))
    made = graph.call_function(function, tuple(args), kwargs)
    graph.output((made,))
    return Program(fx.GraphModule({}, graph), inputs, "infer")


def tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def named(args: Any, kwargs: Any) -> dict[str, Any]:
    return {f"input/x{i}": tensor for i, tensor in enumerate(tensors((args, kwargs)))}


def check(function: Any, args: Any, kwargs: Any, dim: int) -> str:
    """ "exact" after a comparison, else why not."""
    whole = resized((args, kwargs), LARGE, dim)
    parts = cut(whole, LARGE, LARGE // SMALL, dim)
    small = program(function, *resized((args, kwargs), SMALL, dim))
    samples = follow_samples(small, program(function, *whole))
    if samples.mixing or None in samples.outputs or samples.random:
        return "mixing"
    clones = pytree.tree_map_only(torch.Tensor, torch.clone, (whole, parts))
    one = function(*clones[0][0], **clones[0][1])
    if not isinstance(one, torch.Tensor):
        return "mixing"
    rans = [Ran(small, [function(*a, **k)], named(a, k)) for a, k in clones[1]]
    together = merge_all(samples, rans)[0]
    distance = gap(together.detach(), one.detach())
    assert distance <= 1e-4, (samples.outputs, distance)
    return "exact"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if i % 8 == 0 else pytest.mark.long) for i, name in enumerate(SUPPORTED)]
)
def test_what_is_called_exact_is_equal_in_parts(name: str) -> None:
    op = OPS[name]
    if torch.float32 not in op.dtypes:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, sample in enumerate(op.sample_inputs("cpu", torch.float32, requires_grad=False)):
            if number == SAMPLES:
                break
            args = [sample.input, *sample.args]
            for dim in range(3):
                if runs(op.op, args, sample.kwargs, dim):
                    check(op.op, args, sample.kwargs, dim)


def runs(function: Any, args: Any, kwargs: Any, dim: int) -> bool:
    """Whether the sample has such a dimension, and the operator takes it at both sizes."""
    sizes = [t.shape[dim] for t in tensors((args, kwargs)) if t.dim() > dim]
    if LARGE in sizes and sizes[0] != LARGE:
        return False  # cut would not tell it from the batch
    try:
        for batch in (SMALL, LARGE):
            given, named = resized((args, kwargs), batch, dim)
            program(function, given, named)
            function(*given, **named)
    except Exception:
        return False
    return True
