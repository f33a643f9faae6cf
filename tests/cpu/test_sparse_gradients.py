"""Sparse gradients, whose memory depends on data: a training step that has them is refused in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autosplit
from autosplit import sim
from autosplit.errors import PlanError


class Table(nn.Module):
    """Two ways to say it: a module's flag, and a function's argument."""

    def __init__(self, table: type[nn.Module] = nn.Embedding, *, flag: bool = True, argument: bool = False) -> None:
        super().__init__()
        self.words, self.other = table(20, 8, sparse=flag), nn.Embedding(20, 8)
        self.unused, self.head = nn.Embedding(20, 8, sparse=True), nn.Linear(8, 4)
        self.argument = argument

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = self.words(ids)
        found = found.sum(1) if found.dim() == 3 else found  # a bag sums by itself
        return self.head(found + F.embedding(ids[:, 0], self.other.weight, sparse=self.argument))


def ids() -> torch.Tensor:
    return torch.arange(12).reshape(4, 3)


@pytest.fixture
def devices():
    with sim.cluster("2x1GiB") as cluster:
        yield cluster.devices


@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("decide", [autosplit.plan, autosplit.partition])
def test_training_names_the_weight(devices, table, decide) -> None:
    with pytest.raises(
        PlanError, match=r"training step of Table has sparse gradients, of words.weight: .*sparse=False"
    ):
        decide(Table(table), devices, (ids(),), mode="train")


def test_the_largest_batch_too(devices) -> None:
    with pytest.raises(PlanError, match=r"words\.weight"):
        autosplit.plan(Table(), devices, (ids(),), mode="train", batch="max")


@pytest.mark.parametrize("capture", ["graph", "modules"])
def test_in_any_capture(devices, capture) -> None:
    with pytest.raises(PlanError, match=r"words\.weight"):
        autosplit.plan(Table(), devices, (ids(),), mode="train", capture=capture)


def test_a_function_that_is_told_so(devices) -> None:
    with pytest.raises(PlanError, match=r"layout torch.sparse_coo.*sparse=False"):
        autosplit.plan(Table(flag=False, argument=True), devices, (ids(),), mode="train")


def test_a_frozen_table_and_one_that_is_not_used_are_no_matter(devices) -> None:
    model = Table()
    model.words.requires_grad_(False)
    assert autosplit.plan(model, devices, (ids(),), mode="train").mode == "train"
    assert autosplit.plan(Table(flag=False), devices, (ids(),), mode="train").mode == "train"


def test_inference_is_planned(devices) -> None:
    torch.manual_seed(0)
    model = Table().eval()
    expected = model(ids())
    split = autosplit.partition(model, devices, (ids(),), mode="infer", strategy="split", objective="memory")
    with torch.no_grad():
        assert torch.equal(split(ids()), expected)
