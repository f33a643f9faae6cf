"""Random models: DAG modules with fan-out, skips, views, in-place writes, ties, buffers, dropout and regions.

A model is made from a recipe, a tuple of (operation, operand indices) pairs drawn by hypothesis or by ``random``. Its
values are float64 of shape (ROWS, WIDTH), so any two can be combined, and sums of gradients do not depend on luck.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

ROWS, WIDTH = 3, 4

Recipe = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Case:
    """A random model and where to put it: ``seeds`` choose a device for each node."""

    recipe: Recipe
    devices: int
    seed: int
    train: bool


class RandomModel(nn.Module):
    """Runs a recipe. Operand i of step n is value i modulo the number of values so far; value 0 is the input."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = nn.ModuleDict()
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("shift", torch.randn(WIDTH))
        self.register_buffer("hidden", torch.randn(WIDTH), persistent=False)
        linears: list[nn.Linear] = []
        for n, (name, _, pick) in enumerate(recipe):
            if name == "linear":
                linears.append(nn.Linear(WIDTH, WIDTH))
                self.layers[f"{n}"] = linears[-1]
            elif name == "tied":
                tied = nn.Linear(WIDTH, WIDTH)
                if linears:
                    tied.weight = linears[pick % len(linears)].weight
                self.layers[f"{n}"] = tied
            elif name == "norm":
                self.layers[f"{n}"] = nn.LayerNorm(WIDTH)
            elif name == "batch_norm":
                self.layers[f"{n}"] = nn.BatchNorm1d(WIDTH)
            elif name == "dropout":
                self.layers[f"{n}"] = nn.Dropout(0.25)
            elif name == "relu_":
                self.layers[f"{n}"] = nn.ReLU(inplace=True)
        self.double()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        values = [x]
        for n, (name, first, second) in enumerate(self.recipe):
            a, b = values[first % len(values)], values[second % len(values)]
            values.append(_STEPS[name](self, _layer(self.layers, n), a, b))
        return {"last": values[-1], "some": (values[len(values) // 2], (values[-1] * self.scale).sum())}


def _layer(layers, n):
    return layers[f"{n}"] if f"{n}" in layers else None  # noqa: SIM401  # a ModuleDict has no get


def _chunk(model, layer, a, b):
    left, right = a.chunk(2, dim=1)
    return torch.cat([right, left * 2], dim=1) + b


def _max(model, layer, a, b):
    values, indices = a.max(dim=1, keepdim=True)
    return b - values + indices


def _write(model, layer, a, b):
    fresh = a + 1
    fresh.add_(b)
    return fresh


def _write_view(model, layer, a, b):
    fresh = a * 1.5
    window = fresh[:, 1:3]
    before = fresh.sum(dim=1, keepdim=True) * 1
    window.add_(b[:, :2])
    return fresh + before


def _read_stale_view(model, layer, a, b):
    fresh = a * 2
    view = fresh.t()
    early = view.sum(0, keepdim=True).t()
    fresh.mul_(0.5)
    return view.t() + b * early


def _relu_(model, layer, a, b):
    return layer(a - 0.1) + b


def _count(model, layer, a, b):
    model.count.add_(1)
    return a * (model.count + 1) + b


def _no_grad(model, layer, a, b):
    with torch.no_grad():
        frozen = a.tanh() * 2
    return frozen * b + a


def _sizes(model, layer, a, b):
    return a.reshape(a.size(1), a.shape[0]).reshape(b.shape) / a.size(0)


def _factory(model, layer, a, b):
    return a + torch.arange(WIDTH, device=a.device, dtype=a.dtype) * torch.ones(ROWS, 1, dtype=a.dtype, device=b.device)


_STEPS = {
    "linear": lambda model, layer, a, b: layer(a),
    "tied": lambda model, layer, a, b: layer(a) + b,
    "norm": lambda model, layer, a, b: layer(a) + b,
    "batch_norm": lambda model, layer, a, b: layer(a),
    "dropout": lambda model, layer, a, b: layer(a),
    "relu_": _relu_,
    "add": lambda model, layer, a, b: a + b,
    "mul": lambda model, layer, a, b: torch.tanh(a) * b,
    "gelu": lambda model, layer, a, b: F.gelu(a),
    "softmax": lambda model, layer, a, b: torch.softmax(a, dim=1),
    "attend": lambda model, layer, a, b: torch.softmax(a @ b.t(), dim=-1) @ b,
    "scale": lambda model, layer, a, b: a * model.scale,
    "buffer": lambda model, layer, a, b: a + model.shift * model.hidden,
    "view": lambda model, layer, a, b: a.t().contiguous().view(ROWS, WIDTH),
    "expand": lambda model, layer, a, b: a[:1].expand(ROWS, WIDTH) + b,
    "chunk": _chunk,
    "max": _max,
    "write": _write,
    "write_view": _write_view,
    "stale_view": _read_stale_view,
    "count": _count,
    "no_grad": _no_grad,
    "sizes": _sizes,
    "factory": _factory,
}
OPERATIONS = tuple(_STEPS)


@st.composite
def cases(draw: st.DrawFn, max_steps: int = 12) -> Case:
    """A random model, two to four devices, and a seed for the placement."""
    step = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 30), st.integers(0, 30))
    recipe = tuple(draw(st.lists(step, min_size=2, max_size=max_steps)))
    return Case(recipe, draw(st.integers(2, 4)), draw(st.integers(0, 2**16)), draw(st.booleans()))


def random_case(seed: int, max_steps: int = 12) -> Case:
    """The same distribution without hypothesis, for long seeded runs."""
    rng = random.Random(seed)
    recipe = tuple(
        (rng.choice(OPERATIONS), rng.randrange(31), rng.randrange(31)) for _ in range(rng.randint(2, max_steps))
    )
    return Case(recipe, rng.randint(2, 4), rng.randrange(2**16), rng.random() < 0.7)
