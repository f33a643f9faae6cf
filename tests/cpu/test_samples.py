"""follow_samples: what is called exact is equal in micro-batches; what lets samples see each other is said."""

from __future__ import annotations

import random
from typing import Any

import pytest
import strategies
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from micro_batches import compared, programs
from models import ARCHITECTURES
from torch import nn
from torch.utils.checkpoint import checkpoint

from autosplit.samples import Merge, follow_samples

CLOSE = 1e-5
"""Of the largest value: kernels sum in another order for another number of rows."""


class Does(nn.Module):
    """A linear layer and a function of what it gives."""

    def __init__(self, function: Any, *modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.first = function, nn.Linear(6, 6)
        self.modules_ = nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.first(x), *self.modules_)


def positions(x):
    return x[torch.arange(x.shape[0]), x[:, :, 0].argmax(1)]


def in_place(x):
    made = x * 1
    made[:, 0] = 0
    made[:, 1:].mul_(2)
    return made


def filled(x):
    made = torch.zeros(x.shape[0], 5, 6)
    made[:, 1:3] = x[:, :2]
    return made


def experts(x):
    rows = x.reshape(-1, 6)
    order = rows[:, 0].round().long().clamp(0, 3)
    _, places = torch.sort(order.repeat_interleave(2))
    sorted_rows = rows[places // 2] * 2
    back = torch.empty_like(places)
    back[places] = torch.arange(places.shape[0])
    return sorted_rows[back].view(-1, 2, 6).sum(1)


ROWS, MEAN, SUM = Merge("cat", 0), Merge("mean"), Merge("sum")
EXACT = {
    "elements": (lambda x: torch.relu(x) * 2 + 1, ROWS),
    "softmax": (lambda x: x.softmax(-1).cumsum(1), ROWS),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), ROWS),
    "matrices": (lambda x: x @ x.transpose(1, 2), ROWS),
    "einsum": (lambda x: torch.einsum("btd,bsd->bts", x, x), ROWS),
    "heads": (lambda x: x.view(x.shape[0], -1, 2, 3).transpose(1, 2).reshape(-1, x.shape[1], 3).sum(1), ROWS),
    "flat": (lambda x: x.reshape(-1, 6).relu().view(x.shape), ROWS),
    "turned": (lambda x: x.transpose(0, 1).reshape(-1, 6).relu().view(x.shape[1], x.shape[0], 6), Merge("cat", 1)),
    "token": (lambda x: torch.cat([torch.ones(1, 1, 6).expand(x.shape[0], -1, -1), x], 1), ROWS),
    "twice": (lambda x: sum(torch.cat([x, x * 2]).relu().chunk(2)), ROWS),
    "positions": (positions, ROWS),
    "in place": (in_place, ROWS),
    "filled": (filled, ROWS),
    "experts": (experts, ROWS),
    "mean": (lambda x: x.square().mean(), MEAN),
    "sum": (lambda x: x.sum() * 2, SUM),
    "sum by hand": (lambda x: x.square().sum() / x.shape[0], MEAN),
    "two means": (lambda x: x.mean() + 0.1 * x.abs().mean() + 1, MEAN),
    "mean of rows": (lambda x: x.mean(0), MEAN),
    "gram": (lambda x: x[:, 0].T @ x[:, 1], SUM),
    "no batch": (lambda x: torch.arange(4), Merge("same")),
    "mse": (lambda x: F.mse_loss(x, torch.zeros_like(x)), MEAN),
    "kl": (lambda x: F.kl_div(x.log_softmax(-1), x.softmax(-1), reduction="batchmean"), MEAN),
    "checkpoint": (lambda x: checkpoint(lambda y: y.relu().softmax(-1), x, use_reentrant=False), ROWS),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_keeps_samples_apart_is_exact(name: str) -> None:
    function, merge = EXACT[name]
    samples, gaps = compared(Does(function), {"x": torch.randn(2, 4, 6)})
    assert samples.mixing == ()
    assert samples.inputs == {"x": 0}
    assert merge in samples.outputs
    assert max(g for g in gaps if g is not None) <= CLOSE


TRAPS = {
    "centred": lambda x: x - x.mean(0),
    "pairs": lambda x: x[:, 0] @ x[:, 0].T,
    "softmax": lambda x: x.softmax(0),
    "cumsum": lambda x: x.cumsum(0),
    "first": lambda x: x[0],
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "turned": lambda x: x.transpose(0, 1).reshape(x.shape[0], -1),
    "inside": lambda x: x.view(-1, x.shape[0], 6).softmax(1),
    "product of means": lambda x: x.mean() * x.square().mean(),
    "sum and mean": lambda x: x.sum() + x.mean(),
    "sum and constant": lambda x: x.sum() + 1,
    "root": lambda x: x.square().mean().sqrt(),
    "largest": lambda x: x.amax(),
    "size": lambda x: x * x.shape[0],
    "numbers": lambda x: x + torch.arange(x.shape[0]).view(-1, 1, 1),
    "sort": lambda x: x[:, 0, 0].sort()[0],
    "spread": lambda x: x.std(0),
    "neighbours": lambda x: x[1:] - x[:-1],
    "another": lambda x: x[torch.arange(x.shape[0]).flip(0)],
    "nonzero": lambda x: x[x > 0],
    "weighted": lambda x: F.cross_entropy(x[:, 0], x[:, 1].argmax(-1), weight=torch.arange(6.0)),
    "masked mean": lambda x: (x * (x > 0)).sum() / (x > 0).sum(),
    "uniform softmax": lambda x: x * torch.ones(x.shape[0]).softmax(0).view(-1, 1, 1),
    "uniform tril": lambda x: x * torch.ones(x.shape[0], 4).tril()[..., None],
    "not put back": lambda x: x[x[:, 0, 0].argsort()],
    "by keys of two orders": lambda x: x[x[:, 0, 0].argsort()] + x[x[:, 0, 1].argsort()],
}


@pytest.mark.parametrize("name", TRAPS)
def test_what_lets_samples_see_each_other_is_said(name: str) -> None:
    samples = follow_samples(*programs(Does(TRAPS[name]), {"x": torch.randn(2, 4, 6)}))
    assert samples.mixing
    assert "test_samples.py" in samples.mixing[0]


def test_a_batch_norm_in_training_mixes_and_goes_on() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    samples = follow_samples(*programs(model, (torch.randn(2, 3, 4, 4),), "train"))
    assert len(samples.mixing) == 1
    assert "batch statistics are those of the micro-batch" in samples.mixing[0]
    assert samples.outputs == (ROWS,)
    assert compared(model, (torch.randn(2, 3, 4, 4),))[0].mixing == ()


@pytest.mark.parametrize(("first", "dim"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_net_has_its_batch_where_it_says(kind: type[nn.Module], first: bool, dim: int) -> None:
    model = kind(6, 5, num_layers=2, bidirectional=True, batch_first=first)
    samples, gaps = compared(model, (torch.randn(2, 3, 6) if first else torch.randn(3, 2, 6),), dim=dim)
    assert samples.mixing == ()
    assert samples.outputs[0] == Merge("cat", dim)
    assert samples.outputs[1] == Merge("cat", 1)
    assert max(gaps) <= CLOSE


def test_a_recurrent_net_cut_along_its_steps_mixes() -> None:
    assert follow_samples(*programs(nn.LSTM(6, 5), (torch.randn(2, 3, 6),))).mixing


def test_targets_that_are_ignored_weigh_nothing() -> None:
    class Classifies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 5)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(self.head(x).transpose(1, 2), y[..., 1:], ignore_index=-1)

    x, y = torch.randn(4, 3, 6), torch.tensor([[0, -1, -1, 2], [1, -1, 1, -1], [1, 2, 3, 4], [2, 0, 1, 2]])
    samples, gaps = compared(Classifies(), {"x": x, "y": y})
    (merge,) = samples.outputs
    assert merge is not None
    assert merge.counted is not None
    assert (merge.kind, merge.counted[1], samples.mixing) == ("mean", -1, ())
    assert max(g for g in gaps if g is not None) <= CLOSE


def test_random_numbers_are_said_and_do_not_mix() -> None:
    samples = follow_samples(*programs(nn.Dropout(0.5), (torch.randn(2, 3),), "train"))
    assert (len(samples.random), samples.mixing, samples.outputs) == (1, (), (ROWS,))


def test_a_counter_is_written_by_every_micro_batch() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x * self.count

    (line,) = follow_samples(*programs(Counts(), (torch.randn(2, 3),))).mixing
    assert "writes count: every micro-batch does it again" in line


def test_other_operators_at_another_size_are_not_known() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu() if x.shape[0] > 2 else x.tanh()

    samples = follow_samples(*programs(Branches(), (torch.randn(2, 3),)))
    assert samples.outputs == (None,)
    assert "other operators" in samples.mixing[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_architectures_are_exact(architecture: Any) -> None:
    torch.manual_seed(0)
    model, inputs = architecture.build(1)
    if inputs.get("labels", torch.zeros(())).dim() == 2:
        inputs["labels"] = inputs["labels"].clone()
        inputs["labels"][0, :5] = -100
    samples, gaps = compared(model, inputs)
    assert samples.mixing == ()
    assert None not in samples.outputs
    assert max(g for g in gaps if g is not None) <= CLOSE


@settings(max_examples=8, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_random_models_are_never_wrongly_exact(seed: int) -> None:
    rng = random.Random(seed)
    names = sorted(set(strategies._STEPS) - {"factory", "view", "expand"})  # which have a fixed number of rows
    recipe = tuple((rng.choice(names), rng.randrange(99), rng.randrange(99)) for _ in range(rng.randint(1, 8)))
    torch.manual_seed(seed)
    inputs = (torch.randn(strategies.ROWS, strategies.WIDTH, dtype=torch.float64),)
    samples, gaps = compared(strategies.RandomModel(recipe), inputs)
    if not samples.mixing and not samples.random:
        assert all(g is None or g <= 1e-12 for g in gaps), recipe
