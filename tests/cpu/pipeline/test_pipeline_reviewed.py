"""Answers that were wrong in silence, or crashed, until a review of pipelines."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autosplit

SCHEDULES = ["gpipe", "1f1b"]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)


@pytest.fixture
def cluster():
    with autosplit.sim.cluster("2x1GiB") as opened:
        yield opened


def pipelined(model, cluster, args, **asked):
    return autosplit.partition(model, cluster.devices, args, strategy="pipeline", profile=False, **asked)


@pytest.mark.parametrize("enabled", [False, True])
def test_autocast_within_forward_is_kept(cluster, enabled):
    class Cast(Layers):
        def forward(self, x):
            h = self.a(x)
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=enabled):
                h = self.b(h)
            return self.c(h.float()), h

    torch.manual_seed(0)
    model, x = Cast(), torch.randn(4, 8)
    alone = copy.deepcopy(model)
    split = pipelined(model, cluster, (x,), microbatches=2)
    have, want = split(x), alone(x)
    assert [t.dtype for t in have] == [t.dtype for t in want]
    for a, b in zip(have, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3 if enabled else 1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("samples", [7, 5, 3])
def test_a_mean_over_targets_with_parts_of_unlike_size(cluster, schedule, samples):
    class Classes(Layers):
        def forward(self, x, y):
            return F.cross_entropy(self.c(torch.tanh(self.a(x))), y)

    torch.manual_seed(0)
    model, args = Classes(), (torch.randn(samples, 8), torch.randint(0, 8, (samples,)))
    alone = copy.deepcopy(model)
    split = pipelined(model, cluster, args, microbatches=min(4, samples), schedule=schedule)
    split(*args).backward()
    alone(*args).backward()
    for name, parameter in alone.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(split.get_parameter(name).grad.cpu(), parameter.grad)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_where_every_target_is_ignored_the_loss_is_not_a_number_and_gradients_are_zero(cluster, schedule):
    class Classes(Layers):
        def forward(self, x, y):
            return F.cross_entropy(self.c(torch.tanh(self.a(x))), y)

    torch.manual_seed(0)
    model, args = Classes(), (torch.randn(4, 8), torch.full((4,), -100))
    alone = copy.deepcopy(model)
    split = pipelined(model, cluster, args, microbatches=2, schedule=schedule)
    have, want = split(*args), alone(*args)
    have.backward()
    want.backward()
    assert torch.isnan(want)
    assert torch.isnan(have)
    for name, parameter in alone.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(split.get_parameter(name).grad.cpu(), parameter.grad)


@pytest.mark.parametrize("samples", [3, 4, 5])
def test_a_micro_batch_of_one_that_loses_its_dimension_is_not_taken(cluster, samples):
    class Squeezes(Layers):
        def forward(self, x):
            return self.b(self.a(x)[:, None].squeeze())

    torch.manual_seed(0)
    model, x = Squeezes(), torch.randn(8, 8)
    alone = copy.deepcopy(model)
    split = pipelined(model, cluster, (x,), microbatches=4)
    torch.testing.assert_close(split(x), alone(x))
    fewer = x[:samples]
    with pytest.warns(UserWarning, match="as a split, without micro-batches"):
        have = split(fewer)
    torch.testing.assert_close(have, alone(fewer))


def test_a_number_that_one_size_has_alone_is_not_taken(cluster):
    class Odd(Layers):
        def forward(self, x):
            return self.b(self.a(x) * (2 if len(x) != 2 else 3))

    torch.manual_seed(0)
    model, x = Odd(), torch.randn(12, 8)
    alone = copy.deepcopy(model)
    split = pipelined(model, cluster, (x,), microbatches=3)
    torch.testing.assert_close(split(x), alone(x))
    with pytest.warns(UserWarning, match="has other numbers with 2 samples"):
        have = split(x[:7])
    torch.testing.assert_close(have, alone(x[:7]))


def test_a_counter_of_calls_goes_on(cluster):
    class Counts(Layers):
        n = 0

        def forward(self, x):
            self.n += 1
            return self.b(self.a(x))

    torch.manual_seed(0)
    model, x = Counts(), torch.randn(4, 8)
    alone = copy.deepcopy(model)
    split = pipelined(model, cluster, (x,), microbatches=2)
    with pytest.warns(UserWarning, match="as a split, without micro-batches: it returns or keeps a number"):
        have = [split(x) for _ in range(4)]
    for value in have:
        torch.testing.assert_close(value, alone(x))
    assert split.n == 4


def test_a_written_buffer_that_is_saved_for_the_backward_is_refused(cluster):
    class Kept(Layers):
        def __init__(self):
            super().__init__()
            self.register_buffer("k", torch.ones(()))

        def forward(self, x):
            self.k.add_(1)
            return self.b(self.a(x) * self.k)

    with pytest.raises(autosplit.PlanError, match="micro-batches of Kept cannot go back"):
        pipelined(Kept(), cluster, (torch.randn(4, 8),), microbatches=2)


def test_micro_batches_that_run_other_operators_are_said_and_are_not_chosen(cluster):
    class Alone(Layers):
        """Of one sample it runs another operator."""

        def forward(self, x, y):
            h = self.a(x)
            h = torch.tanh(h) if len(x) > 1 else torch.sin(h)
            return F.mse_loss(self.c(self.b(h)), y)

    torch.manual_seed(0)
    args = (torch.randn(4, 8), torch.randn(4, 8))
    said = "with micro-batches of 1 it runs other operators than with"
    alone = Alone()
    split = pipelined(copy.deepcopy(alone), cluster, args, microbatches=4)
    assert any(said in line for line in split.plan.assumptions)
    want = torch.stack([alone(x, y) for x, y in zip(*(a.split(1) for a in args), strict=True)]).mean()
    with pytest.warns(UserWarning, match=f"may change what this model computes: {said}"):
        torch.testing.assert_close(split(*args), want)
    plan = autosplit.plan(Alone(), "2x24GiB", args, mode="train", microbatches=4, profile=False)
    assert plan.pipeline is None
    split = pipelined(copy.deepcopy(alone), cluster, args, microbatches=2)
    torch.testing.assert_close(split(*args), alone(*args))
    with pytest.warns(UserWarning, match=f"may change what this model computes: {said}"):
        split(*(arg[:3] for arg in args))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("called_before", [False, True])
def test_a_hook_that_changes_what_is_captured_runs_in_plain_python(cluster, schedule, called_before):
    class Mean(Layers):
        def forward(self, x):
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x))))).mean()

    torch.manual_seed(0)
    model, x = Mean(), torch.randn(8, 8)
    alone, seen = copy.deepcopy(model), []
    split = pipelined(model, cluster, (x,), microbatches=4, schedule=schedule)
    if called_before:
        split(x)
    split.b.register_forward_hook(lambda module, args, output: seen.append(output.shape))

    def two_steps(model):
        for _ in range(2):
            model(x).backward()

    with pytest.warns(UserWarning, match=r"in plain Python: Mean.forward is another program at each") as said:
        two_steps(split)
    assert len(said) == 1
    assert seen[-2:] == [x.shape, x.shape]
    two_steps(alone)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(split.get_parameter(name).grad.cpu(), parameter.grad)
