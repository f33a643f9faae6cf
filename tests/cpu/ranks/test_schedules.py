"""torch's schedules of several stages a rank, on stages cut by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

import autosplit
from autosplit.capture import Frontend
from autosplit.placement import Pipeline
from ranks.harness import run_ranks
from ranks.models import batch, build
from ranks.training import MICROBATCHES, alone, on_ranks

RANKS, STAGES = 2, 4
LOOPED = [0, 1, 0, 1]
FOLDED = [0, 1, 1, 0]
SCHEDULES = {
    "interleaved1f1b": LOOPED,
    "loopedbfs": LOOPED,
    "interleavedzerobubble": LOOPED,
    "zbvzerobubble": FOLDED,
}


def by_hand(name: str, schedule: Any, ranks: list[int]) -> autosplit.Plan:
    """Four stages with as many nodes each, on the ranks that the schedule wants."""
    model, kwargs = build(name), batch(name)
    program = Frontend(model, type(model)).capture((), kwargs, "train")
    first = {node: group[0] for group in program.groups for node in group}
    stage: dict[Any, int] = {}
    for place, node in enumerate(program.nodes):
        stage.setdefault(first.get(node, node), place * STAGES // len(program.nodes))
    at = {program.names[node]: stage[first.get(node, node)] for node in program.nodes}
    devices = tuple(autosplit.Device(name=f"rank{r}/cpu", kind="cpu", memory_bytes=2**33) for r in range(RANKS))
    placement = {node: f"rank{ranks[s]}/cpu" for node, s in at.items()}
    plan = autosplit.plan(model, autosplit.Cluster(devices=devices), kwargs=kwargs, placement=placement, profile=False)
    stages = tuple(tuple(node for node in plan.placement if at[node] == s) for s in range(STAGES))
    pipeline = Pipeline(microbatches=MICROBATCHES, schedule=schedule, stages=stages)
    return msgspec.structs.replace(plan, strategy="pipeline", pipeline=pipeline)


def on_rank(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for schedule, ranks in SCHEDULES.items():
        found[schedule], _ = on_ranks("moe", evaluates=True, plan=by_hand("moe", schedule, ranks))
    with pytest.raises(autosplit.PlanError) as caught:
        on_ranks("moe", plan=by_hand("moe", "zbvzerobubble", LOOPED))
    found["refused"] = str(caught.value)
    return found


def test_four_stages_on_two_ranks(tmp_path: Path) -> None:
    want = alone("moe", MICROBATCHES, evaluates=True)
    for said in run_ranks(on_rank, RANKS, tmp_path):
        for schedule in SCHEDULES:
            # the passes for weights come apart from those for inputs, or in another order of micro-batches
            assert said[schedule] == pytest.approx(want, rel=2e-6), schedule
        assert "ranks 0, 1, 1, 0" in said["refused"]
