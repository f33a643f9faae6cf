"""Ranks that no device of theirs holds the model of share it, without being asked for a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import autosplit
from ranks.harness import run_ranks


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.layers(x), y)


def losses(model: nn.Module, args: tuple[torch.Tensor, ...]) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(*args)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def main(_: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, args = Wide(), (torch.randn(16, 512), torch.randn(16, 512))
    memory = {"cpu": "28MiB"}  # for both; weights and gradients are 16 MiB, more than a rank has
    split = autosplit.partition(model, memory, args, optimizer="sgd", profile=False)
    return {
        "strategy": split.plan.strategy,
        "names": [name for name, _ in split.named_parameters()],
        "losses": losses(split, args),
    }


def test_what_fits_no_rank_is_shared_by_all(tmp_path: Path) -> None:
    said = run_ranks(main, 2, tmp_path / "ranks")
    torch.manual_seed(0)
    model, args = Wide(), (torch.randn(16, 512), torch.randn(16, 512))
    assert [rank["strategy"] for rank in said] == ["pipeline", "pipeline"]
    assert sorted(said[0]["names"] + said[1]["names"]) == sorted(name for name, _ in model.named_parameters())
    want = losses(model, args)
    for rank in said:
        torch.testing.assert_close(rank["losses"], want)
