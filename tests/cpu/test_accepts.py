"""What a user already has: a traced GraphModule, an exported program."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import autosplit
from autosplit import sim


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.norm(self.a(x)).relu()
        return {"out": self.b(h), "h": h}


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_module(training: bool) -> None:
    traced = torch.fx.symbolic_trace(Net()).train(training)
    unsplit = copy.deepcopy(traced)
    x = torch.randn(5, 4)
    with sim.cluster("2x64MiB") as cluster:
        split = autosplit.partition(
            traced, cluster.devices, (x.to("sim:0"),), placement={"a": "sim:0", "norm": "sim:0", "b": "sim:1"}
        )
        assert isinstance(split, torch.fx.GraphModule)
        assert list(split.state_dict()) == list(unsplit.state_dict())
        want, have = unsplit(x), split(x.to("sim:0"))
        assert all(torch.equal(want[key], have[key].cpu()) for key in want)
        assert torch.equal(split.norm.running_mean.cpu(), unsplit.norm.running_mean)


def test_an_exported_program_brings_its_inputs_and_names() -> None:
    model = Net().eval()
    x = torch.randn(5, 4)
    want = model(x)
    exported = torch.export.export(model, (x,))  # it shares the model's weights: they are placed in place
    with sim.cluster("2x64MiB") as cluster:
        plan = autosplit.plan(exported, cluster.devices, mode="infer", strategy="split", objective="memory")
        split = autosplit.apply(exported, plan)
        assert set(split.state_dict()) == set(model.state_dict())
        assert {str(weight.device) for weight in split.parameters()} == {"sim:0", "sim:1"}
        have = split(x.to("sim:0"))
        assert all(torch.equal(want[key], have[key].cpu()) for key in want)
        again = autosplit.partition(exported, cluster.devices, mode="infer")
        assert torch.equal(again(x)["out"].cpu(), want["out"])
