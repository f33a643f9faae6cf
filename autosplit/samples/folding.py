"""Rules of reductions and losses: along other dimensions row by row, over the batch a sum or a mean of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from autosplit.samples.kinds import UNKNOWN, Call, Kind, MixingError, Part, Rows, joined
from autosplit.samples.moving import Rule

_SAME_FOR_ANY = ("mean", "amax", "amin", "max", "min", "any", "all", "median", "logical_and")


def fold(kind: Literal["sum", "mean"] | None = None) -> Rule:
    """A rule of a reduction; ``kind`` says what one over the samples is, None that it is neither a sum nor a mean."""

    def rule(call: Call) -> Kind:
        own: Kind = call.kinds["self"]
        if isinstance(own, Part):
            if kind:
                return own
            raise MixingError(f"is not linear in a {own.kind} over the batch")
        ndim = len(call.shape("self"))
        dims = call.dims("dim", ndim)
        rows = call.rows("self")
        if rows is None:
            return None
        if rows.dim not in dims:
            joined([rows])
            if call.small.get("keepdim"):
                return rows
            return replace(rows, dim=rows.dim - sum(d < rows.dim for d in dims))
        if rows.outer is None and not rows.numbers and call.name in _SAME_FOR_ANY:
            return None
        if kind is None or rows.numbers or not _is_real(call.small["self"], kind):
            raise MixingError("reduces over the batch to neither a sum nor a mean")
        return Part(kind)

    return rule


def _is_real(tensor: torch.Tensor, kind: str) -> bool:
    """A mean of micro-batches is taken in the tensor's own numbers: whole ones have none."""
    return kind == "sum" or tensor.dtype.is_floating_point or tensor.dtype.is_complex


def loss(call: Call) -> Kind:
    """A loss element by element with a reduction: 0 none, 1 the mean, 2 the sum."""
    found = _same_rows(call, ("self", "target", "weight"))
    if found is None or call.small["reduction"] == 0:
        return found
    return Part("mean" if call.small["reduction"] == 1 else "sum")


def row_loss(call: Call) -> Kind:
    """A loss of each row of self against the same row of target."""
    if call.kinds.get("weight") is not None:
        raise MixingError("its weights depend on the batch")
    if len(call.shape("self")) != 2 or call.rows("target") is None:
        raise MixingError("its classes are along the batch, or its targets have none")
    own, target = call.rows("self"), call.rows("target")
    found = joined([one for one in (own, target) if one])
    if found and (found.dim or own is None):
        raise MixingError("its classes are along the batch")
    if found is None or call.small["reduction"] == 0:
        return found
    return Part("mean" if call.small["reduction"] == 1 else "sum")


def nll_loss(call: Call) -> list[Kind]:
    """nll_loss_forward, nll_loss2d_forward: the mean is over the targets that are not ignored."""
    own, target = call.rows("self"), call.rows("target")
    if own is None or target is None or own.dim or target.dim:
        raise MixingError("its scores and its targets are not both the batch's, in dimension 0")
    rows = joined([own, target])
    if call.small["reduction"] == 0:
        return [rows, None]
    if call.small["reduction"] == 2:
        return [Part("sum"), Part("sum")]
    if isinstance(call.small.get("weight"), torch.Tensor):
        raise MixingError("a mean weighted by the targets' classes cannot be merged from those of micro-batches")
    origin = call.origins.get("target")
    if origin is None:
        raise MixingError("the mean is over targets that no node of the graph has")
    return [Part("mean", (origin, int(call.small["ignore_index"]))), Part("sum")]


def _same_rows(call: Call, names: tuple[str, ...]) -> Rows | None:
    ndim = max(call.small[name].dim() for name in names if isinstance(call.small.get(name), torch.Tensor))
    rows = []
    for name in names:
        kind = call.rows(name)
        if kind:
            rows.append(replace(kind, dim=kind.dim + ndim - call.small[name].dim()))
    return joined(rows)


def with_rest(rule: Rule) -> Rule:
    """A rule whose first result is the only one that matters; the others are not known."""

    def first(call: Call) -> list[Kind]:
        found = rule(call)
        kinds: list[Kind] = list(found) if isinstance(found, list) else [found]
        return kinds + [UNKNOWN] * (len(call.made) - len(kinds))

    return first
