"""A pipeline over two CUDA devices: the numbers of its micro-batches, and work side by side."""

from __future__ import annotations

import copy

import pytest
import torch
from splitting import in_microbatches, pipeline_at_random
from torch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices: found fewer"),
]


class Regression(nn.Module):
    def __init__(self, width: int = 256, depth: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.layers(x), y)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_gradients_are_those_of_the_micro_batches(schedule: str) -> None:
    torch.manual_seed(0)
    model = Regression().cuda(0)
    alone = copy.deepcopy(model)
    args = (torch.randn(64, 256, device="cuda:0"), torch.randn(64, 256, device="cuda:0"))
    split = pipeline_at_random(model, args, {}, ["cuda:0", "cuda:1"], microbatches=8, schedule=schedule)
    for _ in range(3):
        for m in (alone, split):
            m.zero_grad()
        in_microbatches(alone, args, {}, 8, early=schedule == "1f1b")
        split(*args).backward()
    torch.cuda.synchronize()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(split.get_parameter(name).grad.to("cuda:0"), parameter.grad)


def test_the_stages_work_side_by_side() -> None:
    """The second device begins before the first has done its last micro-batch."""
    torch.manual_seed(0)
    model = Regression(4096, 16).cuda(0).eval()
    args = (torch.randn(4096, 4096, device="cuda:0"), torch.randn(4096, 4096, device="cuda:0"))
    with torch.no_grad():
        split = pipeline_at_random(model, args, {}, ["cuda:0", "cuda:1"], microbatches=8, schedule="gpipe", seed=1)
        split(*args)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            split(*args)
            torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = {index: [e.time_range for e in kernels if e.device_index == index] for index in (0, 1)}
    assert min(span.start for span in spans[1]) < max(span.end for span in spans[0])
