"""A pipeline in one process computes what its micro-batches compute one after the other, bit for bit."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from models import ARCHITECTURES, loss_of
from splitting import in_microbatches, pipeline_at_random
from torch import nn

import autosplit
from autosplit.errors import PlanError

DEVICES = 3
SCHEDULES = ["gpipe", "1f1b"]


class Regression(nn.Module):
    def __init__(self, width: int = 8, depth: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.layers(x)
        return nn.functional.mse_loss(out, y), out


class Features(Regression):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def regression(samples: int = 8) -> tuple[Regression, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return Regression(), (torch.randn(samples, 8), torch.randn(samples, 8))


def split_up(model: nn.Module, args: tuple = (), schedule: str = "gpipe", microbatches: int = 4, **kwargs: object):
    devices = [f"sim:{i}" for i in range(DEVICES)]
    return pipeline_at_random(model, args, kwargs, devices, microbatches=microbatches, schedule=schedule)


@pytest.fixture
def cluster():
    with autosplit.sim.cluster(f"{DEVICES}x1GiB") as opened:
        yield opened


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


IN_CI = {("GPT-2", "gpipe"), ("GPT-2", "1f1b"), ("Mixtral", "1f1b"), ("ViT", "gpipe")}
ALL = [
    pytest.param(name, schedule, marks=() if (name, schedule) in IN_CI else pytest.mark.long)
    for name in ("GPT-2", "Llama", "BERT", "ViT", "Mixtral")
    for schedule in SCHEDULES
]


@pytest.mark.parametrize(("name", "schedule"), ALL)
def test_real_architectures_train_as_their_micro_batches_do(cluster, name, schedule):
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    torch.manual_seed(0)
    model, inputs = architecture.build(1)
    alone = copy.deepcopy(model)
    for module in (*model.modules(), *alone.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (alone, model)]
    split = split_up(model, schedule=schedule, microbatches=2, **inputs)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        in_microbatches(alone, (), inputs, 2, early=schedule == "1f1b")
        loss = loss_of(split(**inputs))
        loss.backward()
        have, want = gradients(split), gradients(alone)
        assert have.keys() == want.keys()
        for key, expected in want.items():
            largest = float(expected.abs().max())  # a mean over targets is weighed by counts: rounded otherwise
            torch.testing.assert_close(have[key], expected, rtol=0, atol=1e-5 * largest)
        for optimizer in optimizers:
            optimizer.step()
    assert len(split.stage_modules) == DEVICES


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_are_equal_bit_for_bit(cluster, schedule):
    model, args = regression()
    alone = copy.deepcopy(model)
    split = split_up(model, args, schedule)
    in_microbatches(alone, args, {}, 4, early=schedule == "1f1b")
    split(*args)[0].backward()
    have = gradients(split)
    for name, want in gradients(alone).items():
        assert torch.equal(have[name], want), name


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_a_later_batch_that_does_not_divide(cluster, schedule, samples):
    model, args = regression()
    alone = copy.deepcopy(model)
    split = split_up(model, args, schedule)
    split(*args)[0].backward()
    split.zero_grad()
    fewer = tuple(arg[:samples] for arg in args)
    loss, out = split(*fewer)
    loss.backward()
    want, expected = alone(*fewer)
    want.backward()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(out, expected)
    for name, gradient in gradients(alone).items():
        torch.testing.assert_close(gradients(split)[name], gradient)


def test_a_loss_outside_the_model_is_the_callers_own(cluster):
    torch.manual_seed(0)
    model, x, y = Features(), torch.randn(8, 8), torch.randn(8, 8)
    alone = copy.deepcopy(model)
    split = split_up(model, (x,), "gpipe")
    for m in (split, alone):
        nn.functional.huber_loss(m(x), y).backward()
    for name, want in gradients(alone).items():
        torch.testing.assert_close(gradients(split)[name], want)


def test_1f1b_of_a_model_without_a_loss_runs_as_a_split_and_says_so(cluster):
    torch.manual_seed(0)
    x = torch.randn(8, 8)
    split = split_up(Features(), (x,), "1f1b")
    with pytest.warns(UserWarning, match="runs? as a split, without micro-batches: .*returns 0 scalars"):
        split(x)


def test_1f1b_refuses_a_gradient_of_what_is_not_the_loss(cluster):
    model, args = regression()
    split = split_up(model, args, "1f1b")
    loss, out = split(*args)
    with pytest.raises(PlanError, match="a gradient came for output 1 of the model"):
        (loss + out.sum()).backward()


def test_1f1b_hands_gradients_out_once(cluster):
    model, args = regression()
    loss, _ = split_up(model, args, "1f1b")(*args)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out once"):
        loss.backward()


def test_1f1b_scales_adds_up_and_calls_hooks_as_backward_does(cluster):
    model, args = regression()
    alone = copy.deepcopy(model)
    split = split_up(model, args, "1f1b")
    seen: list[str] = []
    for name, parameter in split.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
    assert seen == []
    for _ in range(2):
        (split(*args)[0] * 3).backward()
        (alone(*args)[0] * 3).backward()
    for name, want in gradients(alone).items():
        torch.testing.assert_close(gradients(split)[name], want)
    assert sorted(seen) == sorted(2 * [name for name, _ in split.named_parameters()])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_inputs_that_require_a_gradient_get_one(cluster, schedule):
    model, (x, y) = regression()
    alone = copy.deepcopy(model)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    split_up(model, (ours, y), schedule)(ours, y)[0].backward()
    alone(theirs, y)[0].backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_gradients_there_is_only_forward(cluster, schedule):
    model, args = regression()
    want = copy.deepcopy(model).eval()(*args)
    split = split_up(model, args, schedule)
    split.eval()
    with torch.no_grad():
        have = split(*args)
    assert not have[0].requires_grad
    for a, b in zip(have, want, strict=True):
        torch.testing.assert_close(a, b.detach())


def test_a_changed_attribute_is_captured_again(cluster):
    class Flagged(Regression):
        factor = 1.0

        def forward(self, x, y):
            loss, out = super().forward(x, y)
            return loss * self.factor, out

    torch.manual_seed(0)
    model, args = Flagged(), (torch.randn(8, 8), torch.randn(8, 8))
    split = split_up(model, args)
    first = split(*args)[0].detach()
    split.factor = 5.0
    torch.testing.assert_close(split(*args)[0].detach(), first * 5)


def test_1f1b_takes_less_memory_than_gpipe():
    peaks = {}
    for schedule in SCHEDULES:
        torch.manual_seed(0)
        model, args = Regression(64, 12), (torch.randn(512, 64), torch.randn(512, 64))
        with autosplit.sim.cluster(f"{DEVICES}x1GiB"):
            split = split_up(model, args, schedule, microbatches=16)
            split(*args)[0].backward()
            peaks[schedule] = torch.sim.max_memory_allocated(DEVICES - 1)
    assert peaks["1f1b"] < 0.7 * peaks["gpipe"]


def test_copies_are_those_that_the_stages_need(cluster):
    model, args = regression()
    split = split_up(model, args, "gpipe", microbatches=4)
    with torch.no_grad():
        split.eval()(*args)
        cluster.clear_transfers()
        split(*args)
    between = [t for t in cluster.transfers if "sim" in t.src and "sim" in t.dst]
    assert len(between) == 4 * (DEVICES - 1)  # one activation, each micro-batch, each boundary


def test_a_pipeline_can_be_copied_and_unsplit(cluster):
    model, args = regression()
    split = split_up(model, args)
    want = split(*args)[0].detach()
    with warnings.catch_warnings():
        twin = copy.deepcopy(split)
    torch.testing.assert_close(twin(*args)[0].detach(), want)
    torch.testing.assert_close(split.to("cpu")(*args)[0].detach(), want)
