"""Branches and the queues of accelerators: a split may be faster than one device, and is made for who asks for that."""

from typing import Any

import torch
from torch import nn

import autosplit


class Towers(nn.Module):
    """Two towers over one input, and a head that reads both."""

    def __init__(self) -> None:
        super().__init__()
        width = 4096
        self.left = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
        self.right = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
        self.head = nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.left(x) + self.right(x))


def planned(devices: str, objective: str, **asked: Any) -> autosplit.Plan:
    with torch.device("meta"):
        model, x = Towers().eval(), torch.empty(4096, 4096)
    return autosplit.plan(model, devices, (x,), mode="infer", objective=objective, profile=False, **asked)


def test_latency_puts_branches_side_by_side():
    alone, split = planned("1xA100-80GB", "latency"), planned("2xA100-80GB", "latency", microbatches=1)
    assert (split.strategy, split.reason) == ("split", "least latency: 2 of 2 devices used")
    assert alone.prediction.step_ns > 1.5 * split.prediction.step_ns
    busy = [device.busy_ns for device in split.prediction.devices.values()]
    assert sum(busy) + split.prediction.transfer_ns > split.prediction.step_ns > max(busy)
    assert any("one thread issues to queues" in line for line in split.assumptions)


def test_micro_batches_are_sooner_still():
    plan = planned("2xA100-80GB", "latency")
    weighed = {option.strategy: option.step_ns for option in plan.options}
    assert plan.strategy == "pipeline"
    assert weighed["pipeline"] == plan.prediction.step_ns < weighed["split"] < weighed["single"]


def test_a_model_that_fits_is_replicated_when_nothing_was_asked():
    plan = planned("2xA100-80GB", "auto")
    assert plan.strategy == "replicate"
    assert 0 < plan.bound < plan.value == plan.prediction.step_ns == planned("1xA100-80GB", "auto").prediction.step_ns
