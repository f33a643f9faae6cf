"""``recost``: a plan at another batch and on other devices, without planning again."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from misfits import net, samples
from torch import nn

import autosplit
from autosplit import Cluster, Device, PlanError, Rates
from autosplit.placement import Plan

FAST = Cluster(
    devices=(
        Device(name="new:0", kind="fast", memory_bytes=2**30, flops_per_s=Rates(float32=10**15), launch_ns=1000),
        Device(name="new:1", kind="fast", memory_bytes=2**30, flops_per_s=Rates(float32=10**15), launch_ns=1000),
    )
)


@pytest.fixture(scope="module")
def model():
    return net(3)


@pytest.fixture(scope="module", params=[("1x1GiB", "train"), ("2x6MiB", "train"), ("2x3MiB", "infer")], ids=str)
def plan(request, model):
    devices, mode = request.param
    return autosplit.plan(model, devices, samples(8), mode=mode)


def test_as_it_is_it_costs_what_was_planned(plan):
    prediction = autosplit.recost(plan)
    assert prediction.devices == plan.prediction.devices
    assert (prediction.step_ns, prediction.transfer_ns) == (plan.prediction.step_ns, plan.prediction.transfer_ns)
    assert (prediction.memory_source, plan.prediction.memory_source) == ("estimated", "emitted")


@pytest.mark.parametrize("batch", [4, 16, 64])
def test_another_batch_is_near_an_exact_plan_of_the_same_placement(plan, model, batch):
    roomy = dict.fromkeys(plan.cluster.names, "1GiB")
    cluster = Cluster(devices=tuple(Device(name=name, kind="6MiB", memory_bytes=2**30) for name in roomy))
    exact = autosplit.plan(model, cluster, samples(batch), mode=plan.mode, placement=plan.placement).prediction
    estimated = autosplit.recost(plan, batch=batch)
    assert estimated.step_ns == pytest.approx(exact.step_ns, rel=0.01)
    for name, device in exact.devices.items():
        assert estimated.devices[name].peak_bytes == pytest.approx(device.peak_bytes, rel=0.05)
        assert estimated.devices[name].weight_bytes == device.weight_bytes


def test_other_devices_have_their_own_speed_and_names(plan, model):
    estimated = autosplit.recost(plan, devices=FAST)
    placement = {node: f"new:{device[-1]}" for node, device in plan.placement.items()}
    exact = autosplit.plan(model, FAST, samples(8), mode=plan.mode, placement=placement).prediction
    assert estimated.step_ns == exact.step_ns < plan.prediction.step_ns
    assert estimated.devices.keys() <= {"new:0", "new:1"}
    for name, device in estimated.devices.items():
        assert (device.peak_bytes, device.busy_ns) == (exact.devices[name].peak_bytes, exact.devices[name].busy_ns)


@settings(max_examples=30)
@given(batches=st.lists(st.integers(1, 10_000), min_size=2, max_size=2))
def test_more_samples_never_cost_less(plan, batches):
    less, more = (autosplit.recost(plan, batch=batch) for batch in sorted(batches))
    assert less.step_ns <= more.step_ns
    for name, device in less.devices.items():
        assert device.weight_bytes <= device.peak_bytes <= more.devices[name].peak_bytes


def test_a_plan_of_the_largest_batch_needs_no_capture(model, monkeypatch):
    made = autosplit.plan(model, "1x16MiB", samples(8), mode="infer", batch="max")
    monkeypatch.setattr("autosplit.api.batch.climb", None)
    assert autosplit.recost(made, batch=made.batch // 2).step_ns < made.prediction.step_ns


def test_the_costs_are_in_no_file_and_no_comparison(plan):
    stored = Plan.from_json(plan.to_json())
    assert stored == plan
    for other in (stored, copy.deepcopy(plan)):
        with pytest.raises(PlanError, match="does not carry its costs"):
            autosplit.recost(other)


def test_the_plan_does_not_keep_the_model():
    gone = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    made = autosplit.plan(
        gone, "1x1GiB", (torch.empty(8, 64),), mode="train", optimizer=torch.optim.SGD(gone.parameters())
    )
    known = weakref.ref(gone[0].weight)
    del gone
    gc.collect()
    assert known() is None
    assert autosplit.recost(made, devices=FAST).step_ns > 0
    with pytest.raises(PlanError, match="the model of this plan is gone"):
        autosplit.recost(made, batch=16)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.weight * x


def test_what_cannot_be_recosted_says_why(plan):
    by_scalar = autosplit.plan(Scaled(), "1x1GiB", (torch.tensor(1.0),), mode="infer")
    with pytest.raises(PlanError, match="no input of this plan has samples"):
        autosplit.recost(by_scalar, batch=2)
    for batch in (0, "max"):
        with pytest.raises(PlanError, match="expected a number of samples"):
            autosplit.recost(plan, batch=batch)
    if plan.strategy == "split":
        with pytest.raises(PlanError, match="nothing stands for gpu:1"):
            autosplit.recost(plan, devices="1x1GiB")
