"""The ladder: models that are not one graph run split all the same, and say how far they fell and why."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from splitting import observe, to
from torch import nn

import autosplit
from autosplit import sim

W = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(W), nn.Linear(W, 2 * W), nn.Linear(2 * W, W)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Blocks(nn.Module):
    """Four blocks and a head; the trap is how they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(W, W)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.leave = nn.Linear(W, 3)
        self.double()


class EarlyExit(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = block(h)
            if h.abs().max() > 1e6:
                break
        return self.leave(h)


class Prints(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x)
        for block in self.blocks:
            print("block", tuple(h.shape))
            h = block(h)
        return self.leave(h)


class Counts(Blocks):
    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        kept = []
        h = self.enter(x)
        for i, block in enumerate(self.blocks):
            h = block(h)
            kept.append(float(h.detach().sum()))
            if kept[-1] != kept[-1]:
                raise ValueError(f"block {i} gave NaN")
        return {"out": self.leave(h), "kept": kept}


class Numpy(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.blocks[0](self.enter(x))
        order = np.argsort(h.detach().cpu().numpy().sum(axis=1)).copy()
        h = h[torch.from_numpy(order)]
        for block in self.blocks[1:]:
            h = block(h)
        return self.leave(h)


class Routes(nn.Module):
    """A mixture of experts, routed by data, one expert after another."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate = nn.Linear(W, W), nn.Linear(W, 3)
        self.experts = nn.ModuleList(Block() for _ in range(3))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x)
        chosen = self.gate(h).argmax(-1)
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().flatten()
            if len(rows):
                out[rows] = expert(h[rows])
        return out


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gru, self.leave = Block(), nn.GRU(W, W, batch_first=True), Block()
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x)[None].expand(3, -1, -1)
        packed = nn.utils.rnn.pack_padded_sequence(h, torch.tensor([3, 2, 2]), batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.leave(out)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        return grad * w, (grad * x).sum(0)


class Custom(Blocks):
    """A custom function, a checkpoint and a branch on data."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(W, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = Double.apply(self.enter(x), self.scale)
        for block in self.blocks:
            if bool((h == h).all()):
                h = torch.utils.checkpoint.checkpoint(block, h, use_reentrant=False)
        return self.leave(h)


MODELS = {
    "early exit": (EarlyExit, "graphs"),
    "prints": (Prints, "graphs"),
    "counts": (Counts, "graph"),
    "numpy": (Numpy, "graph"),
    "routes": (Routes, "graphs"),
    "packed": (Packed, "opaque"),
    "custom": (Custom, "opaque"),
}


def spread(model: nn.Module) -> dict[str, str]:
    """Every leaf module on a device of its own, in turn."""
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    return {name: f"sim:{i % 3}" for i, name in enumerate(leaves)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_one_graph_runs_split(name, training) -> None:
    build, rung = MODELS[name]
    torch.manual_seed(0)
    model = build().train(training)
    unsplit = copy.deepcopy(model)
    x = torch.randn(5, W, dtype=torch.float64)
    with sim.cluster(["1GiB"] * 3) as cluster:
        split = autosplit.partition(model, cluster.devices, (x.to("sim:0"),), placement=spread(model))
        assert split.plan.capture == rung, split.plan.assumptions
        said = [line for line in split.plan.assumptions if line.startswith("capture:")]
        assert any(".py:" in line for line in said) == (rung != "graph"), said
        for rows in (5, 7):
            y = torch.randn(rows, W, dtype=torch.float64)
            want, have = observe(unsplit, (y,), {}), observe(split, (y.to("sim:0"),), {})
            assert list(want) == list(have)
            for key, expected in want.items():
                torch.testing.assert_close(have[key], expected, rtol=1e-12, atol=1e-12, msg=f"{name}: {key}")
        assert {str(p.device) for p in split.parameters()} == {"sim:0", "sim:1", "sim:2"}
        assert cluster.transfers


@pytest.mark.parametrize("name", [name for name, (_, rung) in MODELS.items() if rung != "graph"])
def test_a_pinned_graph_is_refused_with_the_line(name) -> None:
    model = MODELS[name][0]()
    x = torch.randn(5, W, dtype=torch.float64)
    with pytest.raises(autosplit.CaptureError, match=r"one graph at .*\.py:\d+"):
        autosplit.plan(model, "2x1GiB", (x,), capture="graph")


def test_modules_can_be_asked_for() -> None:
    model = nn.Sequential(Block(), Block()).double()
    unsplit = copy.deepcopy(model)
    x = torch.randn(5, W, dtype=torch.float64)
    with sim.cluster(["1GiB"] * 2) as cluster:
        split = autosplit.partition(
            model, cluster.devices, (x,), placement={"0": "sim:0", "1": "sim:1"}, capture="modules"
        )
        assert (split.plan.capture, split.plan.parts) == ("modules", ())
        want, have = observe(unsplit, (x,), {}), observe(split, (to(x, "sim:0"),), {})
        assert all(torch.equal(want[key], have[key]) for key in want)


def test_a_plan_with_parts_goes_through_a_file(tmp_path) -> None:
    torch.manual_seed(0)
    model = EarlyExit()
    unsplit = copy.deepcopy(model)
    x = torch.randn(5, W, dtype=torch.float64)
    with sim.cluster(["1GiB"] * 3) as cluster:
        autosplit.plan(model, cluster.devices, (x,), placement=spread(model)).save(tmp_path / "plan.json")
        split = autosplit.apply(model, autosplit.Plan.load(tmp_path / "plan.json"))
        again = copy.deepcopy(split)
        for one in (split, again):
            assert torch.equal(one(x.to("sim:0")).cpu(), unsplit(x))


def test_a_call_that_cannot_be_captured_runs_all_the_same_and_says_so() -> None:
    class Sometimes(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.enter(x)
            for block in self.blocks:
                h = block(h)
                if not self.training and h.sum() > 1e6:
                    break
            return self.leave(h)

    torch.manual_seed(0)
    model = Sometimes()
    unsplit = copy.deepcopy(model)
    x = torch.randn(5, W, dtype=torch.float64)
    with sim.cluster(["1GiB"] * 3) as cluster:
        split = autosplit.partition(model, cluster.devices, (x,), placement=spread(model), optimizer="sgd")
        assert split.plan.capture == "graph"
        with pytest.warns(UserWarning, match="plain Python"):
            have = split.eval()(x.to("sim:0"))
        assert torch.equal(have.cpu(), unsplit.eval()(x))
        assert torch.equal(split(x.to("sim:0")).cpu(), unsplit(x))  # and says it once
        pinned = autosplit.partition(
            split.train(), cluster.devices, (x,), placement=spread(model), capture="graph", optimizer="sgd"
        )
        with pytest.raises(autosplit.CaptureError, match="one graph"):
            pinned.eval()(x.to("sim:0"))


def test_a_model_that_looks_at_data_cannot_be_planned_on_meta() -> None:
    with pytest.raises(autosplit.CaptureError, match="load them on one device"):
        autosplit.plan(EarlyExit().to("meta"), "2x1GiB", (torch.randn(5, W, dtype=torch.float64, device="meta"),))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_part_is_planned() -> None:
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 4))
    plan = autosplit.plan(model, "2x1GiB", args=(torch.randn(2, 4),), mode="infer", strategy="split", profile=False)
    assert len(plan.placement) >= 3
