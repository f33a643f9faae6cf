"""A plan for devices that were described runs on the ranks' devices, in their order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import autosplit
from ranks.harness import run_ranks
from ranks.models import batch, build
from ranks.training import MICROBATCHES, alone, on_ranks


def planned() -> bytes:
    plan = autosplit.plan(
        build("moe"), "2x1GiB", kwargs=batch("moe"), strategy="pipeline", microbatches=MICROBATCHES, profile=False
    )
    return plan.to_json()


def on_two(_: int, stored: bytes) -> tuple[list[float], set[str]]:
    losses, plan = on_ranks("moe", plan=autosplit.Plan.from_json(stored))
    return losses, set(plan.placement.values())


def test_a_described_plan_runs_through_ranks(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for losses, devices in run_ranks(on_two, 2, tmp_path / "ranks", planned()):
        assert devices == {"rank0/cpu", "rank1/cpu"}
        assert losses == pytest.approx(alone("moe", MICROBATCHES), rel=2e-6)
