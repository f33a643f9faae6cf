"""Buffers, tied weights and random numbers: a split model keeps the state that it had as a whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from semantics import ROWS, Case, Net, W, check, families, modes, of, rows
from torch import nn
from torch.nn.utils import parametrize

# ---------------------------------------------------------------- buffers


def assigned(m, h):
    old, m.mean = m.mean, 0.9 * m.mean + 0.1 * m.l2(h).detach().mean(0)
    m.count += 1
    m.seen = m.seen + h.shape[0]
    return m.l3(h - old) * m.count + m.seen


def swapped(m, h):
    m.mean, m.other = m.other, m.mean
    return m.l3(h * m.mean) + m.l2(h * m.other)


def ring(m, h):
    m.ring[m.count[None] % 4] = m.l2(h).detach().mean(0)
    m.ring.index_copy_(0, torch.tensor([3], device=h.device), h.detach()[:1])
    m.count.add_(1)
    return m.l3(h) @ m.ring.t()


def lerped(m, h):
    with torch.no_grad():
        m.mean.lerp_(m.l2(h).mean(0), 0.25)
        torch._foreach_add_([m.other, m.count], 1)
    return m.l3(h) - m.mean + m.other


def norm_twice(m, h):
    return m.l2(m.norm(m.l0(m.norm(h))))


def images(m, h):
    grid = h.reshape(1, ROWS, 2, 4)
    return m.norm(m.norm2(grid).relu()).reshape(ROWS, W)


def grown_buffer(m, h):
    m.seen = torch.cat([m.seen, m.l2(h).detach()[:1]])
    return m.l3(h) + m.seen.sum(0)


def kept_on_attribute(m, h):
    m.last = m.l2(h)
    return m.l3(m.last)


def buffers() -> dict[str, torch.Tensor]:
    zero = torch.zeros((), dtype=torch.int64)
    return {"mean": rows(W), "other": rows(W), "count": zero, "seen": zero.clone(), "ring": rows(4, W)}


def with_buffers(step) -> Case:
    return Case(lambda: Net(step, **buffers()))


def hidden_buffer() -> nn.Module:
    layer = nn.Linear(W, W)
    layer.register_buffer("mask", (torch.arange(W) % 2).double(), persistent=False)
    layer.register_buffer("none", None)
    return layer


BUFFERS = {
    "assigned": with_buffers(assigned),
    "swapped": with_buffers(swapped),
    "ring": with_buffers(ring),
    "lerped": with_buffers(lerped),
    "that grows": Case(lambda: Net(grown_buffer, seen=rows(1, W))),
    "kept on an attribute": of(kept_on_attribute),
    "not persistent": of(lambda m, h: m.l2(m.inner(h) * m.inner.mask), inner=hidden_buffer),
    "batch norm": of(norm_twice, norm=lambda: nn.BatchNorm1d(W)),
    "batch norm, no statistics": of(norm_twice, norm=lambda: nn.BatchNorm1d(W, track_running_stats=False)),
    "batch norm, no affine": of(norm_twice, norm=lambda: nn.BatchNorm1d(W, affine=False)),
    "instance norm": of(
        images,
        norm=lambda: nn.InstanceNorm2d(ROWS, affine=True, track_running_stats=True),
        norm2=lambda: nn.BatchNorm2d(ROWS, momentum=0.3),
    ),
}

# ---------------------------------------------------------------- tied


class Shared(nn.Module):
    """A parametrization: the weight of another module, scaled."""

    def __init__(self, source: nn.Parameter) -> None:
        super().__init__()
        self.source = source
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, own: torch.Tensor) -> torch.Tensor:
        return self.source * self.gain + 0 * own


def language_model() -> Net:
    model = Net(
        lambda m, h, ids: m.head(torch.tanh(m.embed(ids).mean(1) + m.l2(h))),
        embed=nn.Embedding(16, W), head=nn.Linear(W, 16, bias=False),
    )  # fmt: skip
    model.head.weight = model.embed.weight
    return model


def transposed_tie() -> Net:
    return Net(lambda m, h, ids: m.l2(F.linear(h, m.embed.weight)[:, :W]) + m.embed(ids).sum(1),
               embed=nn.Embedding(16, W))  # fmt: skip


def tied_across() -> Net:
    model = Net(lambda m, h: m.l3(m.l2(m.l0(h))))
    model.l3.weight = model.l0.weight
    model.l2.bias = model.l0.bias
    return model


def tied_by_parametrization() -> Net:
    model = Net(lambda m, h: m.l3(m.l2(m.l0(h))))
    parametrize.register_parametrization(model.l2, "weight", Shared(model.l0.weight))
    return model.double()


def one_module_twice() -> Net:
    model = Net(lambda m, h: m.again(m.l2(m.first(h))), first=nn.Sequential(nn.Linear(W, W), nn.BatchNorm1d(W)))
    model.again = model.first
    return model


def tied_buffer() -> Net:
    inner = hidden_buffer()
    model = Net(lambda m, h: m.l2(h * m.mask) + m.inner(h) * m.inner.mask.cumsum(0), inner=inner)
    model.register_buffer("mask", model.inner.mask)
    return model


def ids() -> tuple[torch.Tensor]:
    return (torch.randint(0, 16, (ROWS, 5)),)


TIED = {
    "embedding and head": Case(language_model, ids),
    "an embedding read as a matrix": Case(transposed_tie, ids),
    "across layers": Case(tied_across),
    "by a parametrization": Case(tied_by_parametrization),
    "one module twice": Case(one_module_twice),
    "a buffer": Case(tied_buffer, home="cpu"),  # Module.to unties buffers
}

# ---------------------------------------------------------------- random


def many_dropouts(m, h):
    a = F.dropout(m.l0(h), 0.4, m.training)
    b = F.dropout(m.l2(a), 0.2, m.training, inplace=True)
    c = F.alpha_dropout(m.l3(h), 0.3, m.training)
    return m.drop(b) + c + F.feature_alpha_dropout(a[None], 0.5, m.training)[0]


def many_draws(m, h):
    noise = torch.randn_like(h) + torch.rand(ROWS, 1, device=h.device, dtype=h.dtype)
    order = torch.randperm(W, device=h.device)
    kept = torch.bernoulli(torch.sigmoid(m.l2(h)).detach())
    picked = torch.multinomial(h.detach().softmax(-1), 2)
    fresh = torch.empty_like(h).uniform_() * torch.empty(W, device=h.device, dtype=h.dtype).normal_()
    return m.l3((h + noise)[:, order]) * kept + fresh, picked, torch.randint(0, 5, (3,), device=h.device)


def draws_in_branches(m, h):
    gates = F.gumbel_softmax(m.l2(h), hard=True)
    return m.l0(gates) + F.rrelu(m.l3(h), training=m.training)


RANDOM = {
    "dropouts": of(many_dropouts, drop=lambda: nn.Dropout1d(0.5)),
    "draws": of(many_draws),
    "gumbel and rrelu": of(draws_in_branches),
}


CASES = families(buffer=BUFFERS, tied=TIED, random=RANDOM)


@pytest.mark.parametrize(("case", "training"), modes(CASES))
def test_state(case: Case, training: bool) -> None:
    check(case, training)
