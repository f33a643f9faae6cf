"""torch.func transforms of a split model: they run in plain Python, and give what they give of the unsplit model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import func, nn
from torch.utils import _pytree as pytree

import autosplit
from autosplit import sim
from autosplit.errors import CaptureError

W = 4


class Block(nn.Module):
    """Its two layers are on two devices: it is a part that is captured by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(W, W), nn.Linear(W, W)
        self.register_buffer("scale", torch.rand(W))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(torch.tanh(self.up(x))) * self.scale
        y += x
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = Block(), Block(), nn.LayerNorm(W)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.second(self.first(x)))


def rows() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, W)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def loss(model: nn.Module) -> Callable[..., torch.Tensor]:
    return lambda given, x: func.functional_call(model, given, (x,)).pow(2).sum()


TRANSFORMS: dict[str, Callable[[nn.Module], Any]] = {
    "grad of weights": lambda m: func.grad(loss(m))(weights(m), rows()),
    "grad of the input": lambda m: func.grad(lambda x: m(x).pow(2).sum())(rows()),
    "gradients by sample": lambda m: func.vmap(func.grad(loss(m)), in_dims=(None, 0))(weights(m), rows()[:, None]),
    "vmap": lambda m: func.vmap(m)(rows()[:, None]),
    "jacrev": lambda m: func.jacrev(m)(rows()),
    "jacfwd": lambda m: func.jacfwd(m)(rows()),
    "jvp": lambda m: func.jvp(m, (rows(),), (rows(),)),
    "hessian": lambda m: func.hessian(lambda x: m(x).pow(2).sum())(rows()[0]),
    "of a part": lambda m: func.jacrev(m.first)(rows()),
}


def same(found: Any, expected: Any) -> None:
    leaves, others = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    for leaf, other in zip(leaves, others, strict=True):
        torch.testing.assert_close(leaf.cpu(), other)


def halves(model: nn.Module) -> dict[str, str]:
    return {name: f"sim:{int('down' in name)}" for name, _ in model.named_modules() if name.count(".") == 1} | {
        "norm": "sim:1"
    }


@pytest.fixture
def unsplit() -> nn.Module:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(params=["one device", "two devices", "two devices, called before"])
def split(request, unsplit):
    if request.param == "one device":
        yield autosplit.partition(copy.deepcopy(unsplit), ["cpu"], (rows(),))
        return
    with sim.cluster("2x1GiB") as cluster:
        model = autosplit.partition(
            copy.deepcopy(unsplit), cluster.devices, (rows(),), strategy="split", placement=halves(unsplit)
        )
        if request.param.endswith("before"):
            same(model(rows()), unsplit(rows()))
        yield model


@pytest.mark.filterwarnings("ignore:this and later calls")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, of forward gradients
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(split, unsplit, name) -> None:
    for _ in range(2):
        same(TRANSFORMS[name](split), TRANSFORMS[name](unsplit))
    same(split(rows()), unsplit(rows()))


def test_it_is_said_once_and_other_calls_are_captured_still(split, unsplit) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            func.vmap(split)(rows()[:, None])
    assert [("plain Python" in str(one.message), "torch.func" in str(one.message)) for one in said] == [(True, True)]
    same(split(rows()), unsplit(rows()))
    assert split.graph_module is not None


def test_a_graph_was_asked_for(unsplit) -> None:
    split = autosplit.partition(unsplit, ["cpu"], (rows(),), capture="graph")
    with pytest.raises(CaptureError, match=r"within torch.func .*capture='graph'"):
        func.vmap(split)(rows()[:, None])
