"""One decision: single, replicate, split, pipeline or hybrid, by predicted time and memory."""

from __future__ import annotations

import pytest
import torch
from msgspec import structs
from torch import nn

import autosplit
from autosplit import sim
from autosplit.api.describe import _how_issued
from autosplit.device import Cluster, Device, parse_cluster
from autosplit.placement import Option
from autosplit.placement.options import STRATEGIES


class Layers(nn.Module):
    """Equal layers, and a loss where it is asked for."""

    def __init__(self, width: int, depth: int, *, loss: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, device="meta") for _ in range(depth))
        self.loss = loss

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.square().mean() if self.loss else x


def planned(width: int, depth: int, samples: int, devices, *, loss: bool = False, **asked) -> autosplit.Plan:
    asked = {"mode": "train", "optimizer": "adamw", "profile": False, **asked}
    if asked["mode"] == "infer":
        del asked["optimizer"]
    model = Layers(width, depth, loss=loss)
    return autosplit.plan(model, devices, (torch.empty(samples, width, device="meta"),), **asked)


def options(plan: autosplit.Plan) -> dict[str, Option]:
    found = {option.strategy: option for option in plan.options}
    assert tuple(sorted(found)) == tuple(sorted(STRATEGIES))
    assert plan.options[0].strategy == plan.strategy
    return found


@pytest.fixture(scope="module")
def slow_links() -> Cluster:
    """Four A100 without NVLink."""
    return structs.replace(parse_cluster("4xA100-40GB"), default_bandwidth_bytes_per_s=25 * 10**9)


@pytest.fixture(scope="module")
def piped(slow_links) -> autosplit.Plan:
    return planned(8192, 8, 256, slow_links)


# ---------------------------------------------------------------- what fits one device


def test_large_weights_and_small_activations_are_a_pipeline(piped):
    found = options(piped)
    assert piped.strategy == "pipeline"
    assert piped.reason.startswith("fits one device, but 4 stages x ")
    assert "large weights, small activations" in piped.reason
    assert "of 4 copies, which exchange 2.0 GiB of gradients" in piped.reason
    pipeline, copies, alone = found["pipeline"], found["replicate"], found["single"]
    assert copies.samples == 4 * pipeline.samples == 4 * alone.samples == 4 * 256
    assert pipeline.step_ns * 4 < copies.step_ns
    assert alone.step_ns < copies.step_ns
    assert "of exchanging gradients after the backward" in copies.words
    assert "x what pipeline takes for a sample" in piped.why_not("replicate")


def test_the_pipeline_of_a_plan_is_whole(piped):
    assert piped.pipeline is not None
    assert len(piped.pipeline.stages) == 4
    assert 256 % piped.pipeline.microbatches == 0
    assert [name for stage in piped.pipeline.stages for name in stage] == list(piped.placement)
    assert [{piped.placement[name] for name in stage} for stage in piped.pipeline.stages] == [
        {f"gpu:{i}"} for i in range(4)
    ]
    step_ns = piped.prediction.step_ns
    assert step_ns == piped.options[0].step_ns
    assert all(0 < device.busy_ns < step_ns for device in piped.prediction.devices.values())
    assert any(line.startswith(f"pipeline: {piped.pipeline.microbatches} micro-batches") for line in piped.assumptions)
    with pytest.raises(autosplit.PlanError, match="not a pipeline or replicas"):
        autosplit.recost(piped)


def test_small_weights_and_large_activations_are_replicated(slow_links):
    plan = planned(1024, 8, 2**16, slow_links)
    found = options(plan)
    assert plan.strategy == "replicate"
    assert plan.reason.startswith("fits one device")
    assert "torchrun --nproc-per-node=4" in plan.reason
    assert plan.pipeline is None
    assert found["replicate"].step_ns < 4 * found["single"].step_ns
    assert found["split"].words == found["hybrid"].words == "not weighed: one device holds the model"
    assert "pipeline" in plan.why_not("pipeline")
    assert any("buckets of 25.0 MiB" in line for line in plan.assumptions)


def test_in_inference_copies_answer_most_samples(slow_links):
    plan = planned(4096, 4, 1024, slow_links, mode="infer")
    assert plan.strategy == "replicate"
    assert options(plan)["pipeline"].words.startswith("not weighed: with equal stages and free transfers")


def test_one_request_is_answered_soonest_by_a_pipeline(slow_links):
    plan = planned(4096, 4, 1024, slow_links, mode="infer", objective="latency")
    found = options(plan)
    assert plan.strategy == "pipeline"
    assert {option.by for option in plan.options} == {"step"}
    assert found["pipeline"].step_ns < found["single"].step_ns == found["replicate"].step_ns
    assert "are" in plan.reason
    assert plan.reason.endswith("as fast")


def test_one_micro_batch_is_a_call_as_a_whole(slow_links):
    plan = planned(4096, 4, 1024, slow_links, mode="infer", objective="latency", microbatches=1)
    assert plan.strategy != "pipeline"
    assert options(plan)["pipeline"].words.startswith("microbatches=1 was asked for")


def test_devices_that_work_one_at_a_time_are_no_pipeline():
    with sim.cluster("2x64MiB") as virtual:
        plan = planned(64, 4, 32, virtual.devices)
    assert plan.strategy == "replicate"
    assert "work one at a time" in options(plan)["pipeline"].words


def test_devices_that_work_one_at_a_time_are_split_without_replicas():
    with sim.cluster("4x8MiB") as virtual:
        plan = planned(256, 8, 32, virtual.devices)
    found = options(plan)
    assert (plan.strategy, plan.replicas) == ("split", 1)
    assert found["hybrid"].words == "not weighed: the devices work one at a time"
    assert found["single"].step_ns is None


def test_one_device_has_nothing_to_weigh():
    plan = planned(64, 4, 32, "1x1GiB")
    assert (plan.strategy, plan.options) == ("single", ())


# ---------------------------------------------------------------- what does not


def test_what_does_not_fit_is_split_into_a_pipeline():
    plan = planned(16384, 20, 1024, "4xA100-40GB", microbatches=8)
    found = options(plan)
    assert plan.strategy == "pipeline"
    assert plan.reason.startswith("does not fit one device: 4 stages x ")
    assert found["pipeline"].step_ns < found["split"].step_ns
    for name in ("single", "replicate"):
        assert found[name].words == "does not fit one device"
        assert found[name].needs_bytes > found[name].has_bytes
        assert "estimated, has 38.4 GiB" in plan.why_not(name)
    assert found["hybrid"].words == "two replicas of two devices or more do not fit on these"


def test_a_batch_of_one_is_no_pipeline():
    plan = planned(16384, 20, 1, "4xA100-40GB")
    assert plan.strategy == "split"
    assert options(plan)["pipeline"].words == "the batch is 1: there is nothing to cut into micro-batches"


def test_replicas_of_a_split_when_devices_remain():
    plan = planned(16384, 12, 1, "4xA100-40GB")
    assert plan.strategy == "hybrid"
    assert plan.replicas == 2
    assert set(plan.placement.values()) == {"gpu:0", "gpu:1"}
    assert plan.reason == (
        "does not fit one device: 2 replicas of a split over 2 devices under torchrun --nproc-per-node=2, 2 devices "
        "each; in one process one runs, on gpu:0, gpu:1"
    )
    found = options(plan)
    assert found["hybrid"].samples == 2 * found["split"].samples == 2
    assert found["hybrid"].step_ns > found["split"].step_ns  # with the exchange of gradients
    assert any("ring" in line and "after the backward" in line for line in plan.assumptions)
    assert any("each process plans strategy='split'" in line for line in plan.assumptions)
    assert any("each replica as in one process: one thread issues to queues" in line for line in plan.assumptions)


# ---------------------------------------------------------------- by name


def test_a_pipeline_by_name():
    plan = planned(512, 6, 24, "3x1GiB", strategy="pipeline", microbatches=6)
    assert (plan.strategy, plan.options) == ("pipeline", ())
    assert plan.pipeline is not None
    assert (plan.pipeline.microbatches, plan.pipeline.schedule) == (6, "gpipe")
    assert plan.reason == f"asked for: {len(plan.pipeline.stages)} stages x 6 micro-batches, GPipe"


def test_a_pipeline_by_name_on_virtual_devices():
    with sim.cluster("2x64MiB") as virtual:
        plan = planned(64, 4, 8, virtual.devices, strategy="pipeline", microbatches=4)
    assert plan.pipeline is not None
    assert len(plan.pipeline.stages) == 2
    assert sum(device.busy_ns for device in plan.prediction.devices.values()) <= plan.prediction.step_ns


def test_1f1b_holds_less_where_the_model_returns_a_loss():
    asked = {"strategy": "pipeline", "microbatches": 16, "loss": True, "optimizer": "sgd"}
    gpipe, early = (planned(256, 8, 4096, "2x1GiB", schedule=name, **asked) for name in ("gpipe", "1f1b"))
    assert (gpipe.pipeline.schedule, early.pipeline.schedule) == ("gpipe", "1f1b")
    peaks = [max(d.peak_bytes for d in plan.prediction.devices.values()) for plan in (gpipe, early)]
    assert peaks[1] < peaks[0]
    between = f"2x{(peaks[0] + peaks[1]) // 2}B"
    chosen = planned(256, 8, 4096, between, **asked)
    assert chosen.pipeline.schedule == "1f1b"  # GPipe does not fit there


def test_a_hybrid_by_name():
    plan = planned(512, 6, 24, "4x1GiB", strategy="hybrid")
    assert plan.strategy == "hybrid"
    assert plan.replicas * len(set(plan.placement.values())) == 4
    assert plan.pipeline is not None
    assert plan.reason.startswith("asked for: 2 replicas of ")
    assert "--nproc-per-node=4, a process for each device" in plan.reason


ISSUES_TO_QUEUES = "one thread issues to queues that run side by side"


@pytest.mark.parametrize(
    ("names", "used", "strategy", "said"),
    [
        ("gpu:0 gpu:1", 2, "split", ISSUES_TO_QUEUES),
        ("gpu:0 gpu:1", 2, "pipeline", ISSUES_TO_QUEUES),
        ("gpu:0 gpu:1", 2, "hybrid", f"each replica as in one process: {ISSUES_TO_QUEUES}"),
        ("gpu:0 gpu:1", 1, "single", "one thread issues to the device's queue"),
        ("gpu:0 gpu:1", 1, "replicate", "in each process one thread issues to the device's queue"),
        ("sim:0 sim:1", 2, "split", "devices work one at a time"),
        ("cpu", 1, "single", "the device works as it is called"),
        ("rank0/cpu rank1/cpu", 2, "pipeline", "each rank issues to its own devices, and ranks work side by side"),
    ],
)
def test_who_issues_is_said_for_each_strategy(names, used, strategy, said):
    devices = tuple(Device(name=name, kind="k", memory_bytes=1) for name in names.split())
    assert _how_issued(Cluster(devices=devices), names.split()[:used], strategy) == said


@pytest.mark.parametrize(
    ("asked", "batch", "words"),
    [
        ({"strategy": "pipeline"}, 1, "the batch is 1"),
        ({"strategy": "pipeline", "microbatches": 9}, 8, "9 micro-batches were asked for, and the batch has 8"),
        ({"strategy": "pipeline", "schedule": "1f1b"}, 8, "forward returns none"),
        ({"strategy": "pipeline", "schedule": "zbvzerobubble"}, 8, "several stages a device"),
        ({"strategy": "pipeline", "schedule": "fifo"}, 8, "expected one of 'auto', 'gpipe'"),
        ({"strategy": "pipeline", "batch": "max"}, 8, "batch='max'"),
        ({"strategy": "hybrid"}, 8, "need four"),
        ({"strategy": "split", "microbatches": 2}, 8, "which has no pipeline"),
        ({"microbatches": 0}, 8, "expected a number, 1 or more"),
        ({"microbatches": True}, 8, "expected a number, 1 or more"),
    ],
)
def test_what_is_asked_is_checked(asked, batch, words):
    with pytest.raises(autosplit.PlanError, match=words):
        planned(64, 4, batch, "2x1GiB", **asked)


def test_a_pipeline_that_does_not_fit_says_so():
    with pytest.raises(autosplit.CapacityError):
        planned(1024, 4, 8, "2x4MiB", strategy="pipeline")


def test_where_copies_lose_to_one_device_nothing_is_said_of_launching_them():
    torch.manual_seed(0)

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(8)))

        def forward(self, x):
            return self.body(x).square().mean()

    plan = autosplit.plan(Wide(), "4xT4", (torch.randn(1, 1024),), mode="train", optimizer="sgd")
    assert plan.strategy == "single"
    assert "torchrun" not in plan.reason
    assert plan.reason.endswith("exchanging the gradients of copies would take longer than they save")
