"""A call like one before runs without Dynamo; whatever changed in between is noticed, and computes as unsplit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import autosplit
from autosplit import sim

W = 8
SCALE = 1.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(W, W), nn.Linear(W, W, bias=False)
        self.norm, self.drop = nn.BatchNorm1d(W), nn.Dropout(0.5)
        self.register_buffer("mean", torch.zeros(W))
        self.flag = False
        self.options = {"shift": 0.0}

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        h = self.drop(self.norm(self.a(x.to(self.a.weight.dtype))))
        if self.flag:
            h = -h
        self.mean = 0.5 * self.mean + h.detach().mean(0)
        return self.b(h) * SCALE + self.options["shift"] + self.mean + (0 if other is None else other)


class Pure(Net):
    """Without the buffer that is assigned: what compiled code is known only to read."""

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        h = self.drop(self.norm(self.a(x.to(self.a.weight.dtype))))
        h = -h if self.flag else h
        return self.b(h) * SCALE + self.options["shift"] + (0 if other is None else other)


def counted(split: nn.Module) -> list[int]:
    """Grows by one whenever a call goes through Dynamo."""
    frontend, calls = split._autosplit.call._frontend, []
    anew = frontend._anew
    frontend._anew = lambda *given: calls.append(1) or anew(*given)
    return calls


def pair(cls: type[nn.Module], devices: list[str], training: bool = False) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """An unsplit model, its twin in halves on the devices, and an input, called twice with it."""
    torch.manual_seed(0)
    plain, x = cls().train(training), torch.randn(4, W)
    placement = {"a": devices[0], "b": devices[-1]}
    with torch.set_grad_enabled(training):
        split = autosplit.partition(copy.deepcopy(plain), devices, (x,), placement=placement, optimizer="sgd")
        for _ in range(2):
            same(plain, split, x)
    return plain, split, x


def same(plain: nn.Module, split: nn.Module, *args: torch.Tensor) -> None:
    """Equal output, gradients and buffers of one call."""
    outs = []
    for model in (plain, split):
        torch.manual_seed(1)
        out = model(*args)
        if out.requires_grad:
            model.zero_grad()
            out.float().square().mean().backward()
        outs.append(out.detach())
    assert torch.equal(*outs)
    assert outs[0].dtype == outs[1].dtype
    for one, two in zip(plain.buffers(), split.buffers(), strict=True):
        assert torch.equal(one, two.cpu())
    for one, two in zip(plain.parameters(), split.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.allclose(one.grad, two.grad.cpu(), rtol=1e-6, atol=1e-6)


@pytest.fixture(params=["cpu", "sim"])
def devices(request: pytest.FixtureRequest):
    if request.param == "cpu":
        yield ["cpu"]
    else:
        with sim.cluster("2x1GiB") as cluster:
            yield [str(device) for device in cluster.devices]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cls", [Net, Pure])
def test_a_call_as_before_goes_past_dynamo(cls: type[nn.Module], training: bool, devices: list[str]) -> None:
    plain, split, x = pair(cls, devices, training)
    calls = counted(split)
    with torch.set_grad_enabled(training):
        for _ in range(3):
            same(plain, split, x)
            same(plain, split, torch.randn(4, W))
    assert not calls


def turn_flag(model: nn.Module) -> None:
    model.flag = True


def change_option(model: nn.Module) -> None:
    model.options["shift"] = 2.0


def change_dropout(model: nn.Module) -> None:
    model.drop.p = 0.1


def add_hook(model: nn.Module) -> None:
    model.b.register_forward_hook(lambda module, args, out: out * 3)


def own_forward(model: nn.Module) -> None:
    model.b.forward = lambda h: h * 4


def replace_weight(model: nn.Module) -> None:
    weight = model.b.weight
    model.b.weight = nn.Parameter(torch.full((W, W), 0.5, device=weight.device))


def replace_child(model: nn.Module) -> None:
    torch.manual_seed(3)
    device = model.b.weight.device
    model.b = nn.Linear(W, W, bias=True).to(device)


def tie(model: nn.Module) -> None:
    model.b.weight.data = model.a.weight.data.to(model.b.weight.device).clone()


def narrow(model: nn.Module) -> None:
    """Another shape in the same tensor."""
    model.b.weight.data = model.b.weight.data[:1].clone()


def transpose(model: nn.Module) -> None:
    model.b.weight.data = model.b.weight.data.t()


def double(model: nn.Module) -> None:
    model.double()


def freeze(model: nn.Module) -> None:
    model.a.weight.requires_grad_(False)


def reload(model: nn.Module) -> None:
    model.load_state_dict({name: torch.ones_like(value) for name, value in model.state_dict().items()})


def reload_by_assignment(model: nn.Module) -> None:
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def other_mode(model: nn.Module) -> None:
    model.train(not model.training)


def one_module_in_other_mode(model: nn.Module) -> None:
    model.drop.train(not model.drop.training)


CHANGES = [
    turn_flag, change_option, change_dropout, add_hook, own_forward, replace_weight, replace_child, tie, narrow,
    transpose, double, freeze, reload, reload_by_assignment, other_mode, one_module_in_other_mode,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_seen(change: Callable[[nn.Module], None], devices: list[str]) -> None:
    if change is own_forward and len(devices) > 1:
        pytest.skip("a forward of the user's own does not replace that of a part")
    plain, split, x = pair(Pure, devices, training=True)
    change(plain)
    change(split)
    for _ in range(2):
        same(plain, split, x)


def test_a_changed_global_is_seen(devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, split, x = pair(Pure, devices)
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    same(plain, split, x)


def test_modes_of_the_caller_are_seen(devices: list[str]) -> None:
    plain, split, x = pair(Pure, devices, training=True)
    for _ in range(2):
        with torch.no_grad():
            same(plain, split, x)
        same(plain, split, x)
        same(plain, split, torch.randn(6, W))
        same(plain, split, x.double())
        same(plain, split, x.clone().requires_grad_())


def test_autocast_is_seen() -> None:
    plain, split, x = pair(Pure, ["cpu"])
    for enabled in (True, False, True):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            same(plain, split, x)


def test_a_weight_among_the_arguments(devices: list[str]) -> None:
    plain, split, x = pair(Pure, devices)
    other = torch.randn(W)
    for first, second in ((other, other), (plain.mean, split.mean), (other, other), (plain.mean, split.mean)):
        with torch.no_grad():
            assert torch.equal(plain(x, first), split(x, second).cpu())


def test_an_attribute_of_the_input_is_put_back() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(W, W)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x
            return self.a(x)

    x = torch.randn(4, W)
    split = autosplit.partition(Keeps(), ["cpu"], (x,), mode="infer")
    for _ in range(3):
        x = torch.randn(4, W)
        split(x)
        assert split.last is x
