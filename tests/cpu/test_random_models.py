"""Random models, randomly placed, compute exactly what they computed before."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from hypothesis import given
from strategies import ROWS, WIDTH, Case, RandomModel, cases, random_case

from autosplit import sim
from autosplit.api.planning import Request, make_plan
from autosplit.api.public import apply_captured
from autosplit.capture import Frontend
from autosplit.hardware import resolve
from autosplit.placement import Plan
from autosplit.runtime import unsplit_class

CASES_IN_CI = 1000
CASES_A_TEST = 50
LONG_CASES = 100_000


def run(model: torch.nn.Module, x: torch.Tensor, train: bool) -> dict[str, torch.Tensor]:
    """Outputs, gradients and buffers of one call, on the host, by name."""
    torch.manual_seed(7)
    with torch.set_grad_enabled(train):
        out = model(x)
    seen = {"last": out["last"], "some": out["some"][0], "total": out["some"][1]}
    if train and out["some"][1].requires_grad:
        (out["some"][1] + out["some"][0].sum()).backward()
    seen |= {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    seen |= {f"buffer {name}": b for name, b in model.named_buffers()}
    return {name: value.detach().cpu().clone() for name, value in seen.items()}


def sums_may_reorder(split: torch.nn.Module) -> bool:
    """Whether a copy has several readers, and its original others: the gradients are then summed in another order."""
    differentiable = {transfer.tensor for transfer in split.plan.transfers if transfer.returns_gradient}
    for node in split.graph_module.graph.nodes:
        copies = [user for user in node.users if user.name.startswith("to")]
        shared = [c for c in copies if len(c.users) > 1 and c.meta["value_name"] in differentiable]
        if shared and len(node.users) > 1:
            return True
    return False


def split_at_random(model: torch.nn.Module, x: torch.Tensor, devices: list[str], case: Case) -> torch.nn.Module:
    """Every node on a device of its own choice, but for groups, which follow their first node."""
    frontend = Frontend(model, unsplit_class(model))
    mode = "train" if case.train else "infer"
    program = frontend.capture((x,), {}, mode)
    rng = random.Random(case.seed)
    wanted, device = {}, devices[0]
    for node in program.nodes:
        device = rng.choice([device, *devices])
        wanted[program.names[node]] = device
    request = Request(resolve(devices), mode, placement=wanted, optimizer="sgd")
    return apply_captured(model, make_plan(model, frontend, (x,), {}, request), frontend)


def check(case: Case) -> bool:
    """One random model on one random placement; returns whether its gradients had to be equal bit for bit."""
    torch.manual_seed(case.seed)
    unsplit = RandomModel(case.recipe).train(case.train)
    split = copy.deepcopy(unsplit)
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    names = [*dict(split.named_parameters()), *dict(split.named_buffers()), *split.state_dict()]
    identities = [id(p) for p in split.parameters()]
    with sim.cluster([2**26] * case.devices) as cluster:
        split = split_at_random(split, x, [str(device) for device in cluster.devices], case)
        reference = unsplit.to("sim:0")
        want = run(reference, x.to("sim:0"), case.train)
        cluster.clear_transfers()
        have = run(split, x.to("sim:0"), case.train)
        exact = not sums_may_reorder(split)
        assert list(have) == list(want)
        for name, expected in want.items():
            if exact or not name.startswith("grad"):
                assert torch.equal(have[name], expected), (name, case)
            else:
                torch.testing.assert_close(have[name], expected, rtol=1e-10, atol=1e-10)
        assert isinstance(split, RandomModel)
        assert [*dict(split.named_parameters()), *dict(split.named_buffers()), *split.state_dict()] == names
        assert [id(p) for p in split.parameters()] == identities
        assert_transfers_are_the_planned_ones(split.plan, cluster.transfers, case)
    return exact


def assert_transfers_are_the_planned_ones(plan: Plan, log: list[sim.Transfer], case: Case) -> None:
    """Bytes moved between devices by the forward are what the plan claims; io_device is sim:0 here."""


@given(cases())
def test_random_models_found_by_hypothesis(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("first", range(0, CASES_IN_CI, CASES_A_TEST))
def test_seeded_random_models(first: int) -> None:
    exact = sum(check(random_case(seed)) for seed in range(first, first + CASES_A_TEST))
    assert exact > CASES_A_TEST // 3  # most are compared bit for bit, gradients included


@pytest.mark.long
def test_many_random_models() -> None:
    for seed in range(CASES_IN_CI, LONG_CASES):
        check(random_case(seed))
