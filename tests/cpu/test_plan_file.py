"""A plan that comes from a file is applied exactly, or refused: stale, edited, or for other devices than there are."""

from __future__ import annotations

import copy
import io
import json
import pickle

import msgspec
import pytest
import torch
from torch import nn

import autosplit
from autosplit import CapacityError, DeviceError, PlanError, sim
from autosplit.placement import Plan

X = torch.linspace(-1, 1, 8 * 256).reshape(8, 256)


class Net(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(256, width), nn.Linear(width, width), nn.Linear(width, 256)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


class Other(Net):
    def forward(self, x):
        return self.c(self.b(self.a(x).tanh()).relu())


class Longer(Net):
    def forward(self, x):
        return super().forward(x) + 1


class Writes(Net):
    def forward(self, x):
        x = self.a(x)
        y = x.view(-1)
        y.mul_(2)
        return self.c(self.b(x))


@pytest.fixture
def devices():
    with sim.cluster("2x64MiB") as cluster:
        yield cluster.devices


@pytest.fixture
def file(tmp_path, devices):
    path = tmp_path / "plan.json"
    autosplit.plan(Net(), devices, (X,), mode="infer", placement={"a": "sim:0", "b": "sim:0", "c": "sim:1"}).save(path)
    return path


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_saved_plan_is_applied_exactly(file, devices, with_inputs):
    stored = Plan.load(file)
    assert not stored.is_edited
    split = autosplit.partition(Net(), devices, (X,) if with_inputs else None, plan=str(file))
    assert split.plan == stored
    assert {n: str(w.device) for n, w in split.named_parameters()} == stored.weights
    assert torch.equal(split(X), Net()(X))
    assert autosplit.apply(Net(), file).plan == stored


def test_inputs_of_another_size_are_costed(file, devices):
    split = autosplit.partition(Net(), devices, (X.repeat(64, 1),), plan=file)
    assert split.plan.placement == Plan.load(file).placement
    assert split.plan.prediction.devices["sim:0"].peak_bytes > Plan.load(file).prediction.devices["sim:0"].peak_bytes
    assert split.plan.assumptions[0].startswith("costed again")
    with pytest.raises(CapacityError, match="sim:0 needs"):
        autosplit.partition(Net(), devices, (X.repeat(8192, 1),), plan=file)


def test_verify_beside_a_plan(file, devices):
    assert autosplit.partition(Net(), devices, (X,), plan=file, verify=True).plan == Plan.load(file)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Net(128), r"weight 'a.weight' is float32\[128, 256\], planned was float32\[256, 256\]"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), r"weight 'a.weight', float32\[256, 256\], is not in the model"),
        (lambda: Net().double(), r"weight 'a.weight' is float64\[256, 256\]"),
        (lambda: _with(Net(), d=nn.Linear(2, 2)), r"weight 'd.weight', float32\[2, 2\], is not in the plan"),
        (lambda: _with(Net(), a=nn.Linear(256, 256)), "weights are in another order: 'b.weight' where 'a.weight' was"),
    ],
)
def test_another_model_is_refused_by_the_first_weight(file, model, says):
    with pytest.raises(PlanError, match=f"stale plan: .*{says}"):
        autosplit.apply(model(), file)


def _with(model, **modules):
    for name, module in modules.items():
        model._modules.pop(name, None)
        setattr(model, name, module)
    return model


@pytest.mark.parametrize(
    ("model", "says"), [(Other, "node 1 is '/tanh' now, '/relu' was planned"), (Longer, "'/add' is not in the plan")]
)
def test_another_forward_is_refused_by_the_first_node(file, devices, model, says):
    with pytest.raises(PlanError, match=f"stale plan: .*{says}"):
        autosplit.partition(model(), devices, (X,), plan=file)


def test_the_same_nodes_with_other_shapes_are_refused(tmp_path, devices):
    class Sized(Net):
        wide = 4

        def forward(self, x):
            return super().forward(x)[:, : self.wide] * 2

    path = tmp_path / "plan.json"
    autosplit.plan(Sized(), devices, (X,), mode="infer").save(path)
    model = Sized()
    model.wide = 5
    with pytest.raises(PlanError, match="tensors of other shapes"):
        autosplit.partition(model, devices, (X,), plan=path)


def test_an_edited_placement_is_costed_again(file, devices):
    def move(document):
        document["placement"]["b/linear"] = "sim:1"

    before = Plan.load(file)
    edit(file, move)
    assert Plan.load(file).is_edited
    split = autosplit.partition(Net(), devices, (X,), plan=file)
    fresh = split.plan
    assert fresh.placement["b/linear"] == "sim:1"
    assert fresh.weights["b.weight"] == "sim:1" != before.weights["b.weight"]
    assert fresh.prediction.devices["sim:1"].weight_bytes > before.prediction.devices["sim:1"].weight_bytes
    assert fresh.assumptions[0].startswith("costed again")
    assert torch.equal(split(X), Net()(X))


def test_an_edited_placement_that_does_not_fit_is_refused(file, devices):
    def grow(document):
        for device in document["cluster"]["devices"]:
            device["memory_bytes"] = 600_000
        for used in document["prediction"]["devices"].values():
            used |= {"reserved_bytes": 10, "peak_bytes": 10, "breakdown": {}}

    edit(file, grow)
    with pytest.raises(CapacityError, match="sim:0 needs"):
        autosplit.partition(Net(), devices, (X,), plan=file)
    edit(file, lambda d: d["cluster"]["devices"][0].update(memory_bytes=100_000))
    with pytest.raises(CapacityError, match="the weights that the plan puts there take 514"):
        autosplit.apply(Net(), file)


def test_an_edited_plan_without_inputs_says_what_was_not_checked(file):
    edit(file, lambda document: document["placement"].update({"b/linear": "sim:1"}))
    split = autosplit.apply(Net(), file)
    assert "not predicted again" in split.plan.assumptions[0]
    assert torch.equal(split(X), Net()(X))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["placement"].update({"no.such/op": "sim:0"}), "'no.such/op'"),
        (lambda d: d["weights"].update({"d.weight": "sim:0"}), "'d.weight'"),
        (lambda d: d["weights"].pop("b.bias"), "no device for weight 'b.bias'"),
    ],
)
@pytest.mark.parametrize("with_inputs", [True, False])
def test_an_edit_to_what_the_model_has_not_is_refused(file, devices, change, says, with_inputs):
    edit(file, change)
    with pytest.raises(PlanError, match=says):
        autosplit.partition(Net(), devices, (X,) if with_inputs else None, plan=file)


def test_an_edit_that_tears_a_group_apart_is_refused(tmp_path, devices):
    path = tmp_path / "plan.json"
    autosplit.plan(Writes(), devices, (X,), mode="infer").save(path)
    node = next(name for name in Plan.load(path).placement if "mul_" in name)
    edit(path, lambda d: (d["placement"].update({node: "sim:1"}), d.update(strategy="split")))
    with pytest.raises(PlanError, match=r"cannot be on 'sim:.': what it stays together with"):
        autosplit.partition(Writes(), devices, (X,), plan=path)


@pytest.mark.parametrize("capture", ["graph", "modules"])
def test_a_plan_holds_on_each_rung(tmp_path, devices, capture):
    path = tmp_path / "plan.json"
    made = autosplit.plan(Writes(), devices, (X,), mode="infer", strategy="split", capture=capture)
    made.save(path)
    assert autosplit.partition(Writes(), devices, (X,), plan=path).plan == made


def test_training_takes_the_optimizer_of_the_plan(tmp_path, devices):
    path = tmp_path / "plan.json"
    made = autosplit.plan(Net(), devices, (X,), mode="train", optimizer="SGD", strategy="split")
    made.save(path)
    assert (made.optimizer, Plan.load(path)) == ("sgd", made)
    assert autosplit.partition(Net(), devices, (X,), plan=path).plan == made
    other = autosplit.partition(Net(), devices, (X,), plan=path, optimizer="adamw").plan
    assert other.prediction.devices["sim:0"].peak_bytes > made.prediction.devices["sim:0"].peak_bytes


def test_other_devices(tmp_path):
    path = tmp_path / "plan.json"
    with sim.cluster("2x64MiB") as cluster:
        autosplit.plan(Net(), cluster.devices, (X,), mode="infer", strategy="split").save(path)
    with sim.cluster("1x64MiB"), pytest.raises(DeviceError, match="'sim:1', which is not present: present are sim:0"):
        autosplit.apply(Net(), path)
    with sim.cluster("2x100000B"), pytest.raises(CapacityError, match=r"the plan needs .* on sim:0"):
        autosplit.apply(Net(), path)
    with sim.cluster("2x64MiB"), pytest.raises(CapacityError, match=r"the plan needs .* on sim:0"):
        autosplit.partition(Net(), {"sim:0": 1000, "sim:1": 1000}, plan=path)
    with pytest.raises(DeviceError, match="'sim:0', which is not present"):
        autosplit.apply(Net(), path)


@pytest.mark.parametrize("name", ["gpu:0", "__import__('os')", "cuda:0; rm -rf /", "../../etc", "\x1b[31m"])
def test_device_names_are_never_more_than_names(file, name):
    text = file.read_text().replace('"sim:0"', json.dumps(name))
    file.write_text(text)
    with pytest.raises(DeviceError, match="is described, not present") as caught:
        autosplit.apply(Net(), file)
    assert "\x1b" not in str(caught.value)


def test_a_plan_for_described_devices_runs_on_as_many(tmp_path, devices):
    path = tmp_path / "plan.json"
    autosplit.plan(Net(), "2x4MiB", (X,), mode="infer", placement={"a": "gpu:0", "b": "gpu:0", "c": "gpu:1"}).save(path)
    model = Net()
    want = model(X)
    split = autosplit.partition(model, devices, (X,), plan=path)
    assert set(split.plan.placement.values()) == {"sim:0", "sim:1"}
    assert split.plan.io_device == "host"
    assert set(split.plan.weights.values()) == {"sim:0", "sim:1"}
    assert split.plan.assumptions[0] == (
        "devices: planned for others than it runs on, in their order: gpu:0 (4MiB) is sim:0 (sim), "
        "gpu:1 (4MiB) is sim:1 (sim)"
    )
    assert torch.equal(split(X), want)
    with pytest.raises(PlanError, match="give as many devices as were described"):
        autosplit.partition(Net(), devices[:1], (X,), plan=path)
    small = {"sim:0": "256KiB", "sim:1": "256KiB"}
    with pytest.raises(CapacityError, match=r"on sim:0, which has 256\.0 KiB"):
        autosplit.partition(Net(), small, (X,), plan=path)
    document = json.loads(path.read_text())
    document["reason"] = "another"
    path.write_text(json.dumps(document))
    assert autosplit.partition(Net(), devices, (X,), plan=path).plan.assumptions[0].startswith("costed again")


def test_no_plan_and_no_file(tmp_path, devices):
    with pytest.raises(PlanError, match="plan is a int"):
        autosplit.partition(Net(), devices, plan=3)
    with pytest.raises(PlanError, match="No such file"):
        autosplit.apply(Net(), tmp_path / "no.json")


def test_an_edited_pipeline_is_refused(file, devices):
    def staged(document):
        names = list(document["placement"])
        document |= {"pipeline": {"microbatches": 2, "schedule": "gpipe", "stages": [names]}, "strategy": "pipeline"}

    edit(file, staged)
    with pytest.raises(PlanError, match="pipeline cannot be costed again"):
        autosplit.partition(Net(), devices, (X,), plan=file)


def test_a_pipeline_is_applied_from_its_file(tmp_path, devices):
    path = tmp_path / "plan.json"
    made = autosplit.plan(Net(), devices, (X,), mode="infer", strategy="pipeline", microbatches=2)
    made.save(path)
    assert made.pipeline is not None
    split = autosplit.partition(Net(), devices, (X,), plan=path)
    assert split.plan == made
    assert torch.allclose(split(X), Net()(X))
    other = autosplit.partition(Net(), devices, (X.repeat(2, 1),), plan=path).plan
    assert other.placement == made.placement
    assert other.assumptions[0].startswith("memory: not predicted again: a pipeline")
    with pytest.raises(PlanError, match="stale plan: node 1 is '/tanh' now"):
        autosplit.partition(Other(), devices, (X,), plan=path)


def test_a_copy_in_memory_is_held_to_its_inputs_too(file, devices):
    plan = Plan.load(file)
    torn = msgspec.structs.replace(plan, placement={**plan.placement, "b/linear": "sim:1"})
    assert autosplit.partition(Net(), devices, (X,), plan=torn).plan.weights["b.weight"] == "sim:1"


def test_print_shows_the_table(file):
    assert str(Plan.load(file)).splitlines()[0] == "SPLIT for inference  2 stages: placed by hand: 2 of 2 devices used"
    assert repr(Plan.load(file)).startswith("Plan(format=")


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_split_model_is_copied_but_not_pickled(file, protocol):
    split = autosplit.apply(Net(), file)
    assert torch.equal(copy.deepcopy(split)(X), split(X))
    with pytest.raises(PlanError, match=r"a split Net cannot be pickled: save its state_dict\(\) and its plan"):
        pickle.dumps(split, protocol)
    with pytest.raises(PlanError, match="a split Net cannot be pickled"):
        torch.save(split, io.BytesIO())
