"""The memory of a pipeline of which two micro-batches were run is that of one of which all were."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from torch import nn

import autosplit
from autosplit.api import pipelining
from autosplit.pipeline.descent import Descent
from autosplit.pipeline.rehearsal import CannotPlayError, Rehearsal
from autosplit.placement import Plan

W = 16


class Tied(nn.Module):
    """The embedding is the head as well, on another stage; the loss leaves out some targets."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, W)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(W, 4 * W), nn.GELU(), nn.Linear(4 * W, W)) for _ in range(5)
        )

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(x)
        scores = x @ self.embedding.weight.t()
        return nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten()), scores


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        num_hidden_layers=5,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=100,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def inputs(model: nn.Module, samples: int) -> dict[str, torch.Tensor]:
    ids = torch.zeros(samples, 8, dtype=torch.long)
    return {"ids" if isinstance(model, Tied) else "input_ids": ids, "labels": ids.clone()}


def planned(model: nn.Module, samples: int, microbatches: int, descent: type[Descent]) -> tuple[Plan, int]:
    """The plan, and how many passes ran operators."""
    ran = mock.patch.object(Descent, "_forward", autospec=True, side_effect=Descent._forward)
    with mock.patch.object(pipelining, "Rehearsal", descent), ran as counted:
        plan = autosplit.plan(
            model, "3x256MiB", kwargs=inputs(model, samples), mode="train", strategy="pipeline", schedule="1f1b",
            microbatches=microbatches, profile=False, placement=None,
        )  # fmt: skip
    return plan, counted.call_count


@pytest.mark.parametrize(
    ("made", "samples", "microbatches", "run"),
    [(Tied, 16, 8, 2), (Tied, 14, 4, 3), (llama, 12, 6, 2)],  # 4, 4, 3, 3 samples: the first, and one of each size
)
def test_same_memory(made: Any, samples: int, microbatches: int, run: int) -> None:
    torch.manual_seed(0)
    model = made()
    played, passes = planned(model, samples, microbatches, Rehearsal)
    whole, all_passes = planned(model, samples, microbatches, Descent)
    assert played.pipeline == whole.pipeline
    assert played.pipeline is not None
    stages = len(played.pipeline.stages)
    assert (passes, all_passes) == (stages * run, stages * microbatches)
    for name, device in played.prediction.devices.items():
        other = whole.prediction.devices[name]
        for field in ("peak_bytes", "reserved_bytes", "breakdown", "weight_bytes"):
            assert getattr(device, field) == getattr(other, field), (name, field)


def test_what_cannot_be_played_is_run() -> None:
    with mock.patch.object(Rehearsal, "_check", side_effect=CannotPlayError("no")):
        plan, passes = planned(Tied(), 8, 4, Rehearsal)
    assert plan.pipeline is not None
    stages = len(plan.pipeline.stages)
    assert passes == stages * (2 + 4)
