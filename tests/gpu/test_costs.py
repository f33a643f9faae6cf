"""On a real GPU: measured times add up to what passes take, and predicted memory is what the allocator says."""

from __future__ import annotations

import statistics

import pytest
import torch
from models import ARCHITECTURES, loss_of

import autosplit
from autosplit.capture import Frontend, climb
from autosplit.emit import assign, rewrite
from autosplit.hardware import resolve, torch_devices
from autosplit.profiler import profile
from autosplit.runtime import unsplit_class

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


@pytest.mark.parametrize("name", ["GPT-2", "ResNet"])
def test_times_add_up_on_cuda(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = BY_NAME[name].build(4)
    model.eval()
    program = climb(Frontend(model, unsplit_class(model)), (), inputs, "infer", None).program
    assignment = assign(program, dict.fromkeys(program.names.values(), "cuda:0"), {}, "cuda:0")
    emitted = rewrite(program, assignment, torch_devices(resolve(["cuda:0"])), "cuda:0").graph_module
    found = profile(program, emitted, torch.device("cuda:0"), fits=True)
    assert not found.notes
    model.to("cuda:0")
    inputs = {key: value.to("cuda:0") for key, value in inputs.items()}
    whole = statistics.median(_forward_ns(model, inputs) for _ in range(10))
    assert sum(timing.forward_ns for timing in found.timings.values()) == pytest.approx(whole, rel=0.5)


@pytest.mark.parametrize("name", ["GPT-2", "ResNet"])
def test_predicted_memory_is_the_allocators(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = BY_NAME[name].build(4)
    model.train()
    plan = autosplit.plan(model, ["cuda:0"], kwargs=inputs, optimizer="sgd")
    model.to("cuda:0")
    inputs = {key: value.to("cuda:0") for key, value in inputs.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        loss_of(model(**inputs)).backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = torch.cuda.max_memory_allocated()
    assert plan.prediction.devices["cuda:0"].peak_bytes == pytest.approx(peak, rel=0.1)


def _forward_ns(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.no_grad():
        start.record()
        model(**inputs)
        end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e6
