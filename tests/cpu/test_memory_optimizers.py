"""The memory of a training step with the user's optimizer, whatever it keeps."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

import autosplit
from autosplit import sim
from autosplit.optimizers import optimizer_factory
from autosplit.predict import measure_optimizer

Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


class Lion(torch.optim.Optimizer):
    """Sign of a momentum (Chen et al. 2023): one state of the size of the parameter."""

    def __init__(self, params, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                update = momentum.mul(group["betas"][0]).add_(p.grad, alpha=1 - group["betas"][0]).sign_()
                p.add_(update, alpha=-group["lr"])
                momentum.lerp_(p.grad, 1 - group["betas"][1])


class EightBit(torch.optim.Optimizer):
    """A momentum kept in uint8, with a scale for each block of 64."""

    def __init__(self, params, lr: float = 1e-4) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["codes"] = torch.full_like(p, 128, dtype=torch.uint8)
                    state["scale"] = torch.zeros(-(-p.numel() // 64), device=p.device)
                blocks = state["codes"].flatten().float().sub_(128)
                momentum = (blocks.view(-1, 64) * state["scale"].unsqueeze(1)).view_as(p).mul_(0.9).add_(p.grad)
                scale = momentum.view(-1, 64).abs().amax(1).div_(127)
                codes = (momentum.view(-1, 64) / scale.clamp(min=1e-12).unsqueeze(1)).round_().add_(128)
                state["codes"].copy_(codes.view_as(p))
                state["scale"].copy_(scale)
                p.add_(momentum, alpha=-group["lr"])


OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, foreach=True),
    "sgd, one by one": lambda p: torch.optim.SGD(p, lr=1e-3, foreach=False),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw, one by one": lambda p: torch.optim.AdamW(p, foreach=False),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, foreach=True, amsgrad=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, foreach=True, momentum=0.5),
    "rmsprop, one by one": lambda p: torch.optim.RMSprop(p, foreach=False),
    "adagrad": lambda p: torch.optim.Adagrad(p, foreach=True),
    "adagrad, one by one": lambda p: torch.optim.Adagrad(p, foreach=False),
    "lion": Lion,
    "8 bits": EightBit,
}


def model() -> nn.Module:
    """Matrices and vectors of sizes that differ, so that a part that is forgotten shows."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 256), nn.Linear(256, 64))


def three_steps(split: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    """As a caller trains, who has outputs and loss until the step is over."""
    for _ in range(3):
        out = split(batch)
        loss = out.sum()
        loss.backward()
        optimizer.step()
        split.zero_grad()
        del out, loss


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_predicted_to_the_byte(name: str) -> None:
    with sim.cluster(["1GiB"]) as cluster:
        batch = torch.randn(32, 256, device="sim:0")
        split = autosplit.partition(
            model(), cluster.devices, (batch,), mode="train", strategy="single", optimizer=OPTIMIZERS[name]
        )
        optimizer = OPTIMIZERS[name](list(split.parameters()))
        gc.collect()
        cluster.reset_peaks()
        three_steps(split, optimizer, batch)
        device = split.plan.prediction.devices["sim:0"]
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        kept = sum(-(-v.untyped_storage().nbytes() // 512) * 512 for v in state if v.device.type == "sim")
        assert device.peak_bytes == cluster.peak_bytes("sim:0")
        assert device.reserved_bytes == cluster.peak_reserved_bytes("sim:0")
        assert device.breakdown.optimizer_bytes == kept
        if "sgd" not in name:
            assert kept > 0


def halves(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    matrices = [p for p in net.parameters() if p.dim() > 1]
    return matrices, [p for p in net.parameters() if p.dim() == 1]


INSTANCES: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "options in a group": lambda net: torch.optim.RMSprop(
        [{"params": net.parameters(), "momentum": 0.9, "centered": True}], foreach=True
    ),
    "options in one of two": lambda net: torch.optim.SGD(
        [{"params": halves(net)[0], "momentum": 0.9}, {"params": halves(net)[1]}], lr=1e-3, foreach=True
    ),
    "some weights": lambda net: torch.optim.AdamW(halves(net)[1], foreach=True),
    "weights of one device": lambda net: torch.optim.AdamW(net[0].parameters(), foreach=True),
}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", INSTANCES)
def test_an_instance_is_planned_with_its_groups(name: str, devices: int) -> None:
    with sim.cluster(["1GiB"] * devices) as cluster:
        batch, net = torch.randn(32, 256, device="sim:0"), model()
        optimizer = INSTANCES[name](net)
        placement = {str(i): f"sim:{i * devices // len(net)}" for i in range(len(net))}
        asked = {"mode": "train", "placement": placement, "optimizer": optimizer}
        split = autosplit.partition(net, cluster.devices, (batch,), **asked)
        gc.collect()
        cluster.reset_peaks()
        three_steps(split, optimizer, batch)
        for device, predicted in split.plan.prediction.devices.items():
            assert predicted.peak_bytes == cluster.peak_bytes(device)
            assert predicted.reserved_bytes == cluster.peak_reserved_bytes(device)


def test_what_is_kept_in_8_bits_is_a_quarter_and_its_scales() -> None:
    parts = {
        name: autosplit.plan(model(), "1x1GiB", (torch.randn(32, 256),), mode="train", optimizer=OPTIMIZERS[name])
        .prediction.devices["gpu:0"]
        .breakdown
        for name in ("momentum", "8 bits")
    }
    ratio = parts["8 bits"].optimizer_bytes / parts["momentum"].optimizer_bytes
    assert 0.265 <= ratio < 0.28  # 1 byte of 4, and 4 for each 64; small vectors are rounded up


def test_fused_takes_no_temporaries() -> None:
    batch = torch.randn(32, 256)
    found = {}
    for how in ("foreach", "fused"):
        made = torch.optim.AdamW(model().parameters(), **{how: True})
        plan = autosplit.plan(model(), "1x1GiB", (batch,), mode="train", optimizer=made)
        found[how] = plan.prediction.devices["gpu:0"]
    timeline = {how: device.timeline for how, device in found.items()}
    steps = {how: [at for name, at in line.phases if name == "step"][-1] for how, line in timeline.items()}
    most = {
        how: max(size for at, size in zip(line.positions, line.allocated_bytes, strict=True) if at > steps[how])
        for how, line in timeline.items()
    }
    weights = found["fused"].weight_bytes
    assert most["fused"] <= 4 * weights + 20 * 512 < 4.9 * weights < most["foreach"]


@pytest.mark.parametrize(("name", "kept"), [("sgd", 0), ("momentum", 1), ("adam", 2), ("adamw", 2), ("rmsprop", 1)])
def test_the_solvers_estimate_knows_what_a_matrix_costs(name: str, kept: int) -> None:
    state, _ = measure_optimizer(optimizer_factory(name, foreach=True))
    assert state == pytest.approx(kept, abs=0.001)


def test_the_solvers_estimate_knows_that_adafactor_factors_matrices() -> None:
    state, _ = measure_optimizer(optimizer_factory("adafactor", foreach=False))
    assert 0 < state < 0.001


def test_an_instance_is_not_touched() -> None:
    mine = model()
    optimizer = torch.optim.AdamW(mine.parameters(), lr=0.5)
    before = copy.deepcopy(optimizer.state_dict())
    autosplit.plan(mine, "1x1GiB", (torch.randn(32, 256),), mode="train", optimizer=optimizer)
    assert optimizer.state_dict() == before


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "adafactor", "adagrad", "rmsprop"])
@pytest.mark.parametrize("devices", ["1x1GiB", "cpu"])
def test_every_name_plans_for_an_accelerator_and_for_a_cpu(name: str, devices: str) -> None:
    plan = autosplit.plan(nn.Linear(64, 64), devices, (torch.randn(4, 64),), mode="train", optimizer=name)
    (device,) = plan.prediction.devices.values()
    assert device.breakdown.gradients_bytes >= 4 * 64 * 64
    assert (device.breakdown.optimizer_bytes > 0) == (name != "sgd")
