"""Random models, randomly placed, compute exactly what they computed before."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from splitting import assert_equal, observe, split_at_random, sums_may_reorder
from strategies import ROWS, WIDTH, Case, RandomModel, cases, random_case

from autosplit import sim
from autosplit.placement import Plan

CASES_IN_CI = 1000
CASES_A_TEST = 50
LONG_CASES = 100_000


def check(case: Case) -> bool:
    """One random model on one random placement; returns whether its gradients had to be equal bit for bit."""
    torch.manual_seed(case.seed)
    model = RandomModel(case.recipe).train(case.train)
    unsplit = copy.deepcopy(model)
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    names = [*dict(model.named_parameters()), *dict(model.named_buffers()), *model.state_dict()]
    identities = [id(p) for p in model.parameters()]
    with sim.cluster([2**26] * case.devices) as cluster:
        x = x.to("sim:0")
        split = split_at_random(model, (x,), {}, [str(device) for device in cluster.devices], case.seed)
        unsplit.to("sim:0")
        want = observe(unsplit, (x,), {})
        cluster.clear_transfers()
        have = observe(split, (x,), {})
        exact = not sums_may_reorder(split)
        assert_equal(want, have, exact, case)
        assert isinstance(split, RandomModel)
        assert [*dict(split.named_parameters()), *dict(split.named_buffers()), *split.state_dict()] == names
        assert [id(p) for p in split.parameters()] == identities
        both = moved(cluster.transfers)
        cluster.clear_transfers()
        with torch.set_grad_enabled(case.train):
            out = split(x)
        forward = moved(cluster.transfers)
        assert forward == planned(split.plan, gradients=False)
        assert_at_most(both, planned(split.plan, gradients=True))
        del out
        for device in cluster.devices:
            predicted = split.plan.prediction.devices[str(device)]
            assert predicted.weight_bytes <= predicted.peak_bytes <= predicted.reserved_bytes
    return exact


def moved(log: list[sim.Transfer]) -> dict[tuple[str, str], int]:
    """Bytes by (source, destination) that were copied between virtual devices."""
    total: dict[tuple[str, str], int] = {}
    for transfer in log:
        if "cpu" not in (transfer.src, transfer.dst):
            total[transfer.src, transfer.dst] = total.get((transfer.src, transfer.dst), 0) + transfer.size_bytes
    return total


def planned(plan: Plan, gradients: bool) -> dict[tuple[str, str], int]:
    """The same from the plan."""
    total: dict[tuple[str, str], int] = {}
    for transfer in plan.transfers:
        ways = [(transfer.src, transfer.dst)]
        if gradients and plan.mode == "train" and transfer.returns_gradient:
            ways.append((transfer.dst, transfer.src))
        for way in ways:
            total[way] = total.get(way, 0) + transfer.size_bytes
    return total


def assert_at_most(have: dict[tuple[str, str], int], most: dict[tuple[str, str], int]) -> None:
    """A gradient may turn out not to be needed; it is never sent without having been planned."""
    for way, size in have.items():
        assert size <= most.get(way, 0), way


@given(cases())
def test_random_models_found_by_hypothesis(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("first", range(0, CASES_IN_CI, CASES_A_TEST))
def test_seeded_random_models(first: int) -> None:
    exact = sum(check(random_case(seed)) for seed in range(first, first + CASES_A_TEST))
    assert exact > CASES_A_TEST // 2  # most are compared bit for bit, gradients included


@pytest.mark.long
def test_many_random_models() -> None:
    for seed in range(CASES_IN_CI, LONG_CASES):
        check(random_case(seed))
