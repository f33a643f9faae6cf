"""Bad input: a typed error that names what was asked and found, and a model that is exactly as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import autosplit
from autosplit import sim


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(256, 256)
        self.register_buffer("scale", torch.ones(256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale


class Branches(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if x.sum() > 0 else x


class Inverts(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        window = torch.ones(256, device=x.device)
        return torch.istft(torch.stft(self.inner(x), 256, window=window, return_complex=True), 256, window=window)


class Bare(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


X = torch.ones(4, 256)


def part(model: nn.Module, devices: Any, args: Any = (X,), **options: Any) -> Callable[[], object]:
    return lambda: autosplit.partition(model, devices, args, **options)


CASES: dict[str, tuple[type[nn.Module], Any, type[Exception], str]] = {
    "no devices": (Net, lambda m: part(m, []), autosplit.DeviceError, "no devices"),
    "zero described": (Net, lambda m: part(m, "0x24GiB"), autosplit.DeviceError, "zero devices"),
    "twice": (Net, lambda m: part(m, ["sim:0", "sim:0"]), autosplit.DeviceError, "'sim:0' appears more than once"),
    "cpu twice": (Net, lambda m: part(m, ["cpu:0", "cpu:1"]), autosplit.DeviceError, "'cpu' appears more than once"),
    "unknown type": (Net, lambda m: part(m, ["gpuu:0"]), autosplit.DeviceError, "unknown device 'gpuu:0'"),
    "absent": (Net, lambda m: part(m, ["sim:7"]), autosplit.DeviceError, "'sim:7' is not present"),
    "described": (Net, lambda m: part(m, "2x24GiB"), autosplit.DeviceError, "described, not present"),
    "not devices": (Net, lambda m: part(m, 3), autosplit.DeviceError, "devices=3"),
    "bits": (Net, lambda m: part(m, {"sim:0": "24Gb"}), autosplit.AutosplitError, "'Gb' means bits"),
    "too small": (Net, lambda m: part(m, {"sim:0": 1000, "sim:1": 1000}), autosplit.CapacityError, "B"),
    "looks at data": (
        Inverts, lambda m: part(m, ["sim:0"], capture="graph"), autosplit.CaptureError,
        "istft cannot be planned without running it",
    ),
    "no parameters": (Bare, lambda m: part(m, ["sim:0"]), autosplit.PlanError, "no parameters"),
    "not a module": (Bare, lambda m: part("model", ["sim:0"]), autosplit.PlanError, "is a str"),
    "no tensors": (Net, lambda m: part(m, ["sim:0"], (3,)), autosplit.CaptureError, "without a tensor (found int)"),
    "missing args": (Net, lambda m: part(m, ["sim:0"], ()), autosplit.CaptureError, "do not match Net.forward"),
    "odd kwargs": (
        Net, lambda m: part(m, ["sim:0"], (X,), kwargs={"y": X}), autosplit.CaptureError, "unexpected keyword argument"
    ),
    "wrong shape": (
        Net, lambda m: part(m, ["sim:0"], (torch.ones(4, 3),)), autosplit.CaptureError, "shapes cannot be multiplied"
    ),
    "branches": (
        Branches, lambda m: part(m, ["sim:0"], capture="graph"), autosplit.CaptureError, "test_bad_input.py:"
    ),
    "one device to split": (Net, lambda m: part(m, ["sim:0"], strategy="split"), autosplit.PlanError, "one device"),
    "odd optimizer": (Net, lambda m: part(m, ["sim:0"], optimizer="lion"), autosplit.PlanError, "'lion' is unknown"),
    "odd placement": (
        Net, lambda m: part(m, ["sim:0", "sim:1"], placement={"outer": "sim:1"}), autosplit.PlanError, "'outer'"
    ),
    "placed nowhere": (
        Net, lambda m: part(m, ["sim:0", "sim:1"], placement={"inner": "sim:9"}), autosplit.DeviceError, "'sim:9'"
    ),
    "verify unseen": (
        Net, lambda m: part(m, ["sim:0"], None, verify=True), autosplit.PlanError, "needs example inputs"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_and_the_model_is_as_it_was(name: str) -> None:
    kind, call, error, words = CASES[name]
    model = kind()
    before = {n: (id(t), t.device, t._version) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    attributes = dict(model.__dict__)
    with sim.cluster("2x64MiB"):
        with pytest.raises(error) as caught:
            call(model)()
        assert words in str(caught.value)
    assert type(model) is kind
    assert model.__dict__ == attributes
    after = {n: (id(t), t.device, t._version) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    assert after == before
    assert all(module.training for module in model.modules())


def test_a_capacity_error_carries_bytes() -> None:
    with sim.cluster("2x64MiB"), pytest.raises(autosplit.CapacityError) as caught:
        autosplit.partition(Net(), {"sim:0": 1000, "sim:1": 1000}, (X,))
    assert set(caught.value.has_bytes.values()) == {1000}
    assert caught.value.short_bytes
    assert all(isinstance(short, int) and short > 0 for short in caught.value.short_bytes.values())


class Widens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Linear(256, 256)
        self.large = nn.Linear(1024, 1024)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.large(self.small(x).repeat(1, 4))


def test_a_failed_move_puts_the_weights_back() -> None:
    model = Widens()
    with sim.cluster("1x64MiB,1x32MiB"):
        x = X.to("sim:0")
        sizes = {"sim:0": "64MiB", "sim:1": "32MiB"}
        plan = autosplit.plan(model, sizes, (x,), placement={"small": "sim:0", "large": "sim:1"})
        taken = torch.empty(30 * 2**20, dtype=torch.uint8, device="sim:1")  # by somebody else, after planning
        with pytest.raises(torch.OutOfMemoryError):
            autosplit.apply(model, plan)
        del taken
        assert all(p.device.type == "cpu" for p in model.parameters())
        assert type(model) is Widens


def test_a_forward_set_on_the_object_is_refused() -> None:
    model = Net()
    model.forward = lambda x: x
    with sim.cluster("1x64MiB"), pytest.raises(autosplit.PlanError, match="a forward of its own"):
        autosplit.partition(model, ["sim:0"], (X,))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_wrapped_models_are_refused_with_what_to_pass() -> None:
    x = torch.ones(4, 256)
    with pytest.raises(autosplit.PlanError, match="_orig_mod"):
        autosplit.plan(torch.compile(Net()), "2x64MiB", (x,))
    traced = torch.jit.trace(nn.Linear(256, 2), (x,))
    with pytest.raises(autosplit.PlanError, match="TorchScript"):
        autosplit.plan(traced, "2x64MiB", (x,))


def test_a_plan_for_another_model_is_stale() -> None:
    with sim.cluster("2x64MiB") as cluster:
        plan = autosplit.plan(Net(), cluster.devices, (X,))
        other = nn.Sequential(nn.Linear(256, 8))
        with pytest.raises(autosplit.PlanError, match="stale plan"):
            autosplit.apply(other, plan)
        assert type(other) is nn.Sequential
        with pytest.raises(autosplit.PlanError, match="stale plan: it uses sim:1"):
            autosplit.partition(Net(), ["sim:0"], plan=plan)


def test_meta_weights_are_planned_but_not_placed() -> None:
    with torch.device("meta"):
        model = Net()
    with sim.cluster("2x64MiB") as cluster:
        plan = autosplit.plan(model, cluster.devices, (X,))
        with pytest.raises(autosplit.PlanError, match="meta device and has no data"):
            autosplit.apply(model, plan)
    assert type(model) is Net
    assert all(p.is_meta for p in model.parameters())
