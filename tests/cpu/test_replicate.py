"""The model fits one device and a process group is up: two gloo ranks under DDP give the whole batch's gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import autosplit

RANKS = 2


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, 16), torch.randint(0, 4, (8,))


def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    nn.functional.cross_entropy(model(x), y).backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    try:
        x, y = (half.chunk(RANKS)[rank] for half in batch())
        model = autosplit.partition(build(), ["cpu"], (x,))
        said: dict[str, Any] = {
            "class": type(model),
            "strategy": model.plan.strategy,
            "gradients": gradients(model, x, y),
            "refused": refused_without_inputs(),
        }
        torch.save(said, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def refused_without_inputs() -> str:
    with pytest.raises(autosplit.PlanError) as caught:
        autosplit.partition(build(), ["cpu"])
    return str(caught.value)


def test_two_ranks_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=RANKS)
    want = gradients(copy.deepcopy(build()), *batch())
    for rank in range(RANKS):
        said = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        assert said["class"] is DistributedDataParallel
        assert said["strategy"] == "replicate"
        assert "pass args" in said["refused"]
        assert list(said["gradients"]) == list(want)
        for name, expected in want.items():
            torch.testing.assert_close(said["gradients"][name], expected, rtol=1e-6, atol=1e-7)


def test_without_a_process_group_the_plan_says_how_to_launch() -> None:
    model = build()
    split = autosplit.partition(model, ["cpu"], (batch()[0],))
    assert split is model
    assert split.plan.strategy == "single"
    assert split.plan.reason.startswith("fits one device")
    described = autosplit.plan(build(), "4x1GiB", (batch()[0],))
    assert described.strategy == "replicate"
    assert "torchrun --nproc-per-node=4" in described.reason


def test_a_capture_within_ddp_is_not_cut_at_its_buckets() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wide = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))  # the first bucket has 1 MiB: one of them
        whole = copy.deepcopy(wide)
        model = autosplit.partition(wide, ["cpu"], (torch.randn(8, 512),))
        x = torch.randn(5, 512)  # captured anew, within DDP's forward
        assert torch.equal(model(x), whole(x))
        nodes = model.module.graph_module.graph.nodes
        assert sum(node.target is nn.functional.linear for node in nodes) == 4
    finally:
        dist.destroy_process_group()
