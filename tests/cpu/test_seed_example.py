"""The four-layer network of the usual two-GPU tutorial: hand-written, by a given placement, and by the planner."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import autosplit
from autosplit import sim

WIDTH = 512


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        self.fc3 = nn.Linear(WIDTH, WIDTH)
        self.fc4 = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = F.relu(self.fc3(x))
        return self.fc4(x)


class HandWritten(Net):
    def __init__(self) -> None:
        super().__init__()
        for layer, device in zip(self.children(), ("sim:0", "sim:1", "sim:1", "sim:0"), strict=True):
            layer.to(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(x.to("sim:0")))
        x = F.relu(self.fc2(x.to("sim:1")))
        x = F.relu(self.fc3(x))
        return self.fc4(x.to("sim:0"))


TUTORIAL = {"fc1": "sim:0", "fc2": "sim:1", "fc3": "sim:1", "fc4": "sim:0"}


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    out = model(x)
    out.sum().backward()
    return [out.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]


def test_given_the_tutorials_placement_the_split_is_the_hand_written_one() -> None:
    with sim.cluster("2x256MiB") as cluster:
        hand = HandWritten()
        model = Net()
        model.load_state_dict({name: value.cpu() for name, value in hand.state_dict().items()})
        x = torch.randn(8, 64).to("sim:0")
        plan = autosplit.plan(model, cluster.devices, (x,), placement=TUTORIAL)
        split = autosplit.partition(model, cluster.devices, plan=plan)
        cluster.clear_transfers()
        have = step(split, x)
        moved = [(t.src, t.dst, t.shape) for t in cluster.transfers if "cpu" not in (t.src, t.dst)]
        cluster.clear_transfers()
        want = step(hand, x)
        by_hand = [(t.src, t.dst, t.shape) for t in cluster.transfers if "cpu" not in (t.src, t.dst)]
        assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))
        assert moved == by_hand
        assert [(t.src, t.dst) for t in plan.transfers] == [("sim:0", "sim:1"), ("sim:1", "sim:0")]
        assert split.graph_module.code.count(".to(") == 2


def test_tight_memory_makes_the_planner_split_by_itself() -> None:
    model = Net().train()
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x8MiB") as cluster:
        x = torch.randn(8, 64).to("sim:0")
        with pytest.raises(autosplit.CapacityError):
            autosplit.plan(model, cluster.devices[:1], (x,), optimizer="adamw")
        split = autosplit.partition(model, cluster.devices, (x,), optimizer="adamw")
        assert split.plan.strategy == "split"
        optimizer = torch.optim.AdamW(split.parameters())
        for _ in range(3):
            split(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        for device in cluster.devices:
            assert 0 < cluster.peak_reserved_bytes(device) <= 8 * 2**20
        host = torch.optim.AdamW(unsplit.parameters(), foreach=True)
        for _ in range(3):
            unsplit(x.cpu()).sum().backward()
            host.step()
            host.zero_grad()
        for have, want in zip(split.parameters(), unsplit.parameters(), strict=True):
            assert torch.equal(have.cpu(), want)
