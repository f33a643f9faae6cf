"""torch.export of a split model: the program of the forward as the user wrote it, or words that say why not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import autosplit
from autosplit import sim
from autosplit.errors import PlanError

W = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(W, W), nn.Linear(W, W)
        self.register_buffer("scale", torch.rand(W))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x))) * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def rows() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(4, W)


def halves(model: nn.Module) -> dict[str, str]:
    """Each block on two devices."""
    return {name: f"sim:{int('down' in name)}" for name, _ in model.named_modules() if name.count(".") == 1}


def check(exported: nn.Module, unsplit: nn.Module) -> None:
    program = torch.export.export(exported, (rows(),), strict=False)
    assert program.state_dict.keys() == unsplit.state_dict().keys()
    assert torch.equal(program.module()(rows()), unsplit(rows()))


@pytest.fixture
def unsplit() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def parts(unsplit):
    """A split model with forwards of ours on its submodules, that was called once."""
    with sim.cluster("2x1GiB") as cluster:
        split = autosplit.partition(
            copy.deepcopy(unsplit),
            cluster.devices,
            (rows(),),
            mode="infer",
            strategy="split",
            placement=halves(unsplit),
        )
        assert torch.equal(split(rows()), unsplit(rows()))
        yield split


@pytest.mark.parametrize("given", [(rows(),), None])
def test_on_one_device(unsplit, given) -> None:
    split = autosplit.partition(copy.deepcopy(unsplit), ["cpu"], given, mode="infer")
    check(split, unsplit)
    assert torch.equal(split(rows()), unsplit(rows()))
    check(split, unsplit)


def test_brought_to_one_device(parts, unsplit) -> None:
    forward = parts.first.__dict__["forward"]
    parts.to("cpu")
    check(parts, unsplit)
    assert parts.first.__dict__["forward"] is forward  # its parts are in their places again
    assert torch.equal(parts(rows()), unsplit(rows()))


def test_a_submodule(parts, unsplit) -> None:
    parts.to("cpu")
    check(parts.first, unsplit.first)
    check(parts.first.up, unsplit.first.up)


@pytest.mark.parametrize("path", ["", "first"])
def test_on_several_devices(parts, unsplit, path) -> None:
    with pytest.raises(PlanError, match=r"weights are on sim:0, sim:1: .* one device; .*model.to\('cpu'\)"):
        torch.export.export(parts.get_submodule(path), (rows(),), strict=False)
    assert torch.equal(parts(rows()), unsplit(rows()))


def test_a_strict_export_says_what_to_write(unsplit) -> None:
    split = autosplit.partition(copy.deepcopy(unsplit), ["cpu"], (rows(),), mode="infer")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="strict=False"):
        torch.export.export(split, (rows(),), strict=True)
