"""One node of a program at two batch sizes: what it is given, what it makes, and whether it mixes samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from autosplit.program import Spec, is_checkpoint
from autosplit.samples.kinds import MIXED, Kind, Sizes
from autosplit.samples.trace import Found, follow, record

Run = Callable[[Any], Any]
"""Runs a node on the arguments given."""


@dataclass(frozen=True)
class Tensor:
    """A tensor at both sizes, and the name of the node that made it."""

    small: Spec
    large: Spec
    kind: Kind
    name: str = ""


@dataclass(frozen=True)
class Seen:
    """What became of a node.

    Attributes:
        small, large: its result at both sizes, with a Tensor for each tensor.
        why: the reason for which it mixes samples, or None.
        random: it draws random numbers.
        changed: the places among the node's tensors of those that are written and now are of another kind, with it.
    """

    small: Any
    large: Any
    why: str | None = None
    random: bool = False
    changed: tuple[tuple[int, Kind], ...] = ()


def look(runs: tuple[Run, Run], arguments: tuple[Any, Any], forms: tuple[Any, Any], sizes: Sizes) -> Seen:
    """Run a node on tensors without data at both sizes, and follow the samples through what it runs.

    Args:
        runs: the node at the two sizes.
        arguments: what it is given there, with a Tensor for each tensor.
        forms: its results as they were captured, for when it cannot be run: a Spec for each tensor.
        sizes: the two numbers of samples.
    """
    found = Found({})
    given = (
        mapped(arguments[0], lambda tensor: _fake(tensor, found)),
        mapped(arguments[1], lambda tensor: _empty(tensor.large)),
    )
    try:
        small, ours = record(lambda: runs[0](given[0]))
        large, theirs = record(lambda: runs[1](given[1]))
    except Exception as error:  # whatever an operator says of tensors without data
        why = f"it cannot be looked into: {str(error).strip().splitlines()[0] if str(error) else type(error).__name__}"
        return Seen(*_as_captured(forms, sizes), why)
    if len(_leaves(ours)) != len(_leaves(theirs)):
        return Seen(*_as_captured(forms, sizes), "it returns another number of tensors for another number of samples")
    before = [found.kinds[id(fake)] for fake in found.alive]
    follow(small, large, found, sizes)
    now = [found.kinds[id(fake)] for fake in found.alive[: len(before)]]
    changed = tuple((i, kind) for i, (was, kind) in enumerate(zip(before, now, strict=True)) if was != kind)
    known = _kinds_of(ours, theirs, found, sizes)
    reason = found.why and (f"{found.operator}: {found.why}" if found.operator else found.why)
    return Seen(_with_kinds(ours, known), _with_kinds(theirs, known), reason, found.random, changed)


def _fake(tensor: Tensor, found: Found) -> torch.Tensor:
    """A tensor without data at the small size, known by what it is."""
    fake = _empty(tensor.small)
    found.origins[id(fake)] = len(found.alive)
    found.kinds[id(fake)] = tensor.kind
    found.alive.append(fake)
    return fake


def _empty(spec: Spec) -> torch.Tensor:
    return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype)


def _kinds_of(ours: Any, theirs: Any, found: Found, sizes: Sizes) -> list[Tensor]:
    """What the tensors of a result are, in order."""
    pairs = zip(_leaves(ours), _leaves(theirs), strict=False)
    made = []
    for one, other in pairs:
        small, large = Spec.of(one), Spec.of(other)
        kind = found.kinds.get(
            id(one), None if small.shape == large.shape else sizes.by_shape(small.shape, large.shape)
        )
        made.append(Tensor(small, large, kind))
    return made


def _leaves(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _with_kinds(value: Any, known: list[Tensor]) -> Any:
    left = iter(known)

    def change(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return next(left)
        hint = getattr(getattr(leaf, "node", None), "hint", leaf)
        return 1 if hint is None else hint

    return pytree.tree_map(change, value)


def _as_captured(forms: tuple[Any, Any], sizes: Sizes) -> tuple[Any, Any]:
    """The results that were captured, the samples where the shapes make it likely."""
    ours, theirs = (pytree.tree_leaves(form, is_leaf=lambda leaf: isinstance(leaf, Spec)) for form in forms)
    pairs = [(a, b) for a, b in zip_longest(ours, theirs) if isinstance(a, Spec) or isinstance(b, Spec)]
    known = [
        Tensor(a, b, sizes.by_shape(a.shape, b.shape))
        if isinstance(a, Spec) and isinstance(b, Spec)
        else Tensor(a or b, b or a, MIXED)
        for a, b in pairs
    ]
    results = []
    for form in forms:
        left = iter(known)
        results.append(
            pytree.tree_map(
                lambda leaf, left=left: next(left) if isinstance(leaf, Spec) else leaf,
                form,
                is_leaf=lambda leaf: isinstance(leaf, Spec),
            )
        )
    return results[0], results[1]


def call_node(node: fx.Node, given: tuple[Any, Any], owner: Any) -> Any:
    """Run a node on the arguments given; of a checkpoint what is in it."""
    args, kwargs = given
    if is_checkpoint(node):
        return args[0](*args[1:])
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_module":
        return owner.get_submodule(str(node.target))(*args, **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """``value`` with each Tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    kind = type(value)
    if isinstance(value, (tuple, list)):
        items = [mapped(item, change) for item in value]
        return kind(*items) if hasattr(value, "_fields") else (tuple(items) if isinstance(value, tuple) else items)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if kind is slice:
        return slice(mapped(value.start, change), mapped(value.stop, change), mapped(value.step, change))
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """The Tensors in a value, in order."""
    found: list[Tensor] = []
    mapped(value, found.append)
    return found


def frozen(value: Any) -> Any:
    """A key that is the same for arguments that are alike."""
    kind = type(value)
    if kind is Tensor:
        small, large = value.small, value.large
        return small.shape, small.stride, small.dtype, large.shape, large.stride, value.kind
    if isinstance(value, (tuple, list)):
        return kind, tuple(map(frozen, value))
    if isinstance(value, dict):
        return tuple((key, frozen(item)) for key, item in value.items())
    if kind is slice:
        return "slice", frozen(value.start), frozen(value.stop), frozen(value.step)
    try:
        hash(value)
    except TypeError:
        return "object", id(value)
    return kind, value
