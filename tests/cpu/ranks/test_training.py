"""Training through ranks has the losses of one process, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.device_mesh import init_device_mesh

from ranks.harness import run_ranks
from ranks.models import MODELS, TIED
from ranks.training import MICROBATCHES, alone, in_one_process, on_ranks, with_schedule

PIPELINE = {"strategy": "pipeline", "microbatches": MICROBATCHES, "schedule": "1f1b"}


def in_two_ranks(rank: int, name: str) -> dict[str, list[float]]:
    found = {}
    found["1f1b"], plan = on_ranks(name, **PIPELINE)
    assert plan.strategy == "pipeline"
    found["gpipe"], _ = on_ranks(name, plan=with_schedule(plan, "gpipe"))
    found["replicate"], _ = on_ranks(name, replicas=2, strategy="replicate")
    return found


def in_four_ranks(rank: int, name: str) -> dict[str, list[float]]:
    found = {}
    found["hybrid"], plan = on_ranks(name, 2, **(PIPELINE | {"strategy": "hybrid"}))
    assert (plan.strategy, plan.replicas) == ("hybrid", 2)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pp"))
    found["mesh"], _ = on_ranks(name, 2, mesh, plan=with_schedule(plan, "gpipe", replicas=2))
    return found


def in_four_stages(rank: int, name: str) -> dict[str, list[float]]:
    return {"1f1b": on_ranks(name, **PIPELINE)[0]}


def check(name: str, losses: list[float], *, replicas: int = 1) -> None:
    """Exact where the sums are the same: micro-batches one after the other, every gradient added where it is made.

    A tied weight's gradient is added over the ranks last, and replicas average at the end: float32 sums in another
    order, of which ten steps make less than a millionth of a loss. A ResNet's batch norm takes its statistics of a
    micro-batch, in one process as in several; no other model knows what it is called with.
    """
    want = alone(name, MICROBATCHES * replicas)
    if replicas == 1 and name not in TIED:
        assert losses == want
    assert losses == pytest.approx(want, rel=2e-6)
    if name != "resnet":
        assert losses == pytest.approx(alone(name), rel=5e-6)
    assert losses[-1] != losses[0]


def check_one_process(name: str, schedule: str) -> None:
    check(name, in_one_process(name, microbatches=MICROBATCHES, schedule=schedule))


IN_CI = {"gpt2": "1f1b", "t5": "gpipe", "resnet": "gpipe", "moe": "1f1b"}


@pytest.mark.parametrize("name", MODELS)
def test_one_process(name: str) -> None:
    check_one_process(name, IN_CI[name])


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_one_process_in_the_other_order(name: str) -> None:
    check_one_process(name, "gpipe" if IN_CI[name] == "1f1b" else "1f1b")


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks(tmp_path: Path, name: str) -> None:
    for said in run_ranks(in_two_ranks, 2, tmp_path, name):
        check(name, said["1f1b"])
        check(name, said["gpipe"])
        assert said["replicate"] == pytest.approx(alone(name, 2), rel=5e-6)


def check_hybrid(name: str, folder: Path) -> None:
    for said in run_ranks(in_four_ranks, 4, folder, name):
        check(name, said["hybrid"], replicas=2)
        check(name, said["mesh"], replicas=2)


def test_two_replicas_of_two_stages(tmp_path: Path) -> None:
    check_hybrid("moe", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpt2", "t5", "resnet"])
def test_two_replicas_of_two_stages_of_the_others(tmp_path: Path, name: str) -> None:
    check_hybrid(name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_four_stages(tmp_path: Path, name: str) -> None:
    for said in run_ranks(in_four_stages, 4, tmp_path, name):
        check(name, said["1f1b"])
