"""Training through ranks has the losses of one process, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.distributed.device_mesh import init_device_mesh

import autosplit
from ranks.harness import run_ranks
from ranks.models import MODELS, TIED
from ranks.training import MICROBATCHES, alone, on_ranks, with_schedule

PIPELINE = {"strategy": "pipeline", "microbatches": MICROBATCHES, "schedule": "1f1b"}


def in_two_ranks(rank: int, names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        losses, plan = on_ranks(name, **PIPELINE)
        found[name] = {"1f1b": losses, "plan": plan.to_json()}
        found[name]["gpipe"], _ = on_ranks(name, plan=with_schedule(plan, "gpipe"))
        if name != "resnet":  # batch norm's statistics are of a micro-batch, and of a replica
            found[name]["replicate"], _ = on_ranks(name, replicas=2, strategy="replicate")
    return found


def in_four_ranks(rank: int, name: str, plan: bytes, deep: bool) -> dict[str, list[float]]:
    two = autosplit.Plan.from_json(plan)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pp"))
    found = {"mesh": on_ranks(name, 2, mesh, plan=with_schedule(two, "gpipe", replicas=2))[0]}
    if deep:
        found["hybrid"] = on_ranks(name, 2, plan=with_schedule(two, "1f1b", replicas=2))[0]
        found["1f1b"], _ = on_ranks(name, **PIPELINE)
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(in_two_ranks, 2, tmp_path_factory.mktemp("two"), list(MODELS))


def check(name: str, losses: list[float], *, same_sums: bool = True) -> None:
    """Exact where the sums are the same: micro-batches one after the other, every gradient added where it is made.

    A tied weight's gradient is added over the ranks last, and replicas average at the end: float32 sums in another
    order, of which ten steps make less than a millionth of a loss.
    """
    want = alone(name, MICROBATCHES)
    if same_sums and name not in TIED:
        assert losses == want
    assert losses == pytest.approx(want, rel=2e-6)
    if name != "resnet":
        assert losses == pytest.approx(alone(name), rel=5e-6)
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_two_stages_on_two_ranks(two_ranks: list[dict[str, Any]], name: str, schedule: str) -> None:
    for said in two_ranks:
        check(name, said[name][schedule])
    assert autosplit.Plan.from_json(two_ranks[0][name]["plan"]).strategy == "pipeline"


@pytest.mark.parametrize("name", ["gpt2", "t5", "moe"])
def test_two_replicas(two_ranks: list[dict[str, Any]], name: str) -> None:
    for said in two_ranks:
        assert said[name]["replicate"] == pytest.approx(alone(name), rel=5e-6)


def test_two_replicas_of_two_stages(two_ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    for said in run_ranks(in_four_ranks, 4, tmp_path, "moe", two_ranks[0]["moe"]["plan"], False):
        check("moe", said["mesh"], same_sums=False)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_four_ranks(two_ranks: list[dict[str, Any]], tmp_path: Path, name: str) -> None:
    for said in run_ranks(in_four_ranks, 4, tmp_path, name, two_ranks[0][name]["plan"], True):
        check(name, said["1f1b"])
        if name != "resnet":
            check(name, said["hybrid"], same_sums=False)
            check(name, said["mesh"], same_sums=False)
