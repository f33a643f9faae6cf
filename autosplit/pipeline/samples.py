"""Which axis of each value is the batch, and how the outputs of micro-batches become the call's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autosplit.program import Program, Spec


@dataclass(frozen=True)
class Merge:
    """How one output of the micro-batches becomes the call's."""

    kind: Literal["cat", "mean", "sum", "same"]
    dim: int = 0
    counted: tuple[str, int] | None = None


@dataclass(frozen=True)
class Samples:
    """What of inputs and outputs is batched."""

    inputs: Mapping[str, int]
    outputs: tuple[Merge | None, ...]
    mixing: tuple[str, ...]


def follow_samples(small: Program, large: Program) -> Samples:
    """By sizes alone."""
    theirs = {source.name: source.spec for source in large.inputs.values()}
    inputs = {}
    for source in small.inputs.values():
        other = theirs[source.name]
        if source.kind == "input" and source.spec is not None and other is not None and source.spec != other:
            inputs[source.name] = _varying(source.spec, other)
    outputs: list[Merge | None] = []
    for one, another in zip(small.results, large.results, strict=True):
        mine, others = (small.facts[one].form, large.facts[another].form) if one in small.facts else (None, None)
        if not isinstance(mine, Spec) or not isinstance(others, Spec):
            outputs.append(None)
        else:
            outputs.append(Merge("cat", _varying(mine, others)) if mine.shape != others.shape else Merge("mean"))
    return Samples(inputs, tuple(outputs), ())


def _varying(one: Spec, other: Spec) -> int:
    return next(d for d, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b)
