"""A call in micro-batches: its inputs cut, the outputs of the parts merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autosplit.samples import Merge

Values = dict[str, Any]
"""Values by the program's name of their node."""


def sizes(samples: int, microbatches: int) -> list[int]:
    """Samples of each micro-batch, as equal as they come; no more micro-batches than samples.

    >>> sizes(10, 4)
    [3, 3, 2, 2]
    """
    count = min(samples, microbatches)
    return [samples // count + (i < samples % count) for i in range(count)]


def cut(values: Mapping[str, Any], dims: Mapping[str, int], parts: Sequence[int]) -> list[Values]:
    """The batched ones of ``values`` for each micro-batch.

    Args:
        values: the inputs of the whole call.
        dims: batch dimension by name, of those that have one.
        parts: samples of each micro-batch.
    """
    cuts = {name: values[name].split(list(parts), dims[name]) for name in dims}
    return [{name: cut[i] for name, cut in cuts.items()} for i in range(len(parts))]


def weights(merge: Merge, counts: Sequence[torch.Tensor] | None, parts: Sequence[int]) -> list[Any]:
    """What each micro-batch weighs in an output that is a mean or a sum; together they are 1 for a mean.

    Args:
        merge: of the output.
        counts: for a mean over what is not ignored, how much of each micro-batch is not.
        parts: samples of each micro-batch.
    """
    if merge.kind == "sum":
        return [1] * len(parts)
    if counts is None:
        return [part / sum(parts) for part in parts]
    total = torch.stack([count.to(counts[0].device) for count in counts]).sum()
    return [count / total.to(count.device) for count in counts]


def merged(merge: Merge, values: Sequence[Any], shares: Sequence[Any]) -> Any:
    """One output of the call from those of the micro-batches.

    Args:
        merge: how.
        values: the output of each micro-batch, on any devices.
        shares: as ``weights`` gives them.
    """
    if merge.kind == "same" or len(values) == 1:
        return values[0]
    if merge.kind == "cat":
        return torch.cat([value.to(values[0].device) for value in values], merge.dim)
    total = None
    for value, share in zip(values, shares, strict=True):
        part = value if merge.kind == "sum" else _share(value, share)
        total = part if total is None else total + part
    if isinstance(shares[0], torch.Tensor) and total is not None:
        total = total + (shares[0] * 0).to(total.device, total.dtype)  # not a number where nothing counts at all
    return total


def _share(value: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
    """The mean of nothing is not a number, and has no share."""
    if isinstance(share, float):
        return value * share
    share = share.to(value.device, value.dtype)
    return torch.where(share > 0, value * share, torch.zeros_like(value))


def count_of(targets: torch.Tensor, ignored: int) -> torch.Tensor:
    """How many of ``targets`` are not ignored."""
    return torch.ne(targets, ignored).sum()
