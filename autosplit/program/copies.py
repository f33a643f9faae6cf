"""Nodes that are copies of others: what was found out about the one holds for the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from autosplit.program.facts import Facts, Spec, tensor_leaves

COPIED = "autosplit_copied"
"""In a node's meta: the node that it is a copy of, and the name of the call that it was copied for."""

Values = dict[fx.Node, Any]


class DifferentError(Exception):
    """The copies' arguments are not those of the originals: they have to be run."""


def copies_of(graph: fx.Graph) -> dict[fx.Node, list[tuple[fx.Node, fx.Node]]]:
    """The nodes copied for one call, each with its original, by the first of them."""
    found: dict[str, list[tuple[fx.Node, fx.Node]]] = {}
    for node in graph.nodes:
        if COPIED in node.meta:
            original, call = node.meta[COPIED]
            found.setdefault(call, []).append((node, original))
    return {pairs[0][0]: pairs for pairs in found.values()}


@dataclass
class Copy:
    """The nodes copied for one call, with the storages and nodes in the place of the originals'.

    Args:
        pairs: each node with its original, in program order.
        values: results of the nodes that ran.
        storage_of: a number for the storage of a tensor; the same that the facts have.
        fresh: a number that no storage has.

    Raises:
        DifferentError: arguments are of another form, or share memory in another way.
    """

    pairs: list[tuple[fx.Node, fx.Node]]
    values: Values
    storage_of: Callable[[torch.Tensor], int]
    fresh: Callable[[], int]
    nodes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    storages: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = {original: node for node, original in self.pairs}
        inside = set(self.nodes.values())
        for node, original in self.pairs:
            mine, theirs = node.all_input_nodes, original.all_input_nodes
            _check(len(mine) == len(theirs))
            for argument, other in zip(mine, theirs, strict=True):
                if argument in inside:
                    _check(self.nodes.get(other) is argument)
                else:
                    _check(self.nodes.setdefault(other, argument) is argument)
                    self._match(self.values[argument], self.values[other])
        _check(len({*self.storages.values()}) == len(self.storages))
        self._arguments = frozenset(self.storages)

    def _match(self, value: Any, other: Any) -> None:
        """Check that an argument is like the original's, and note which storage is in the place of which."""
        tensors, others = tensor_leaves(value), tensor_leaves(other)
        _check(len(tensors) == len(others))
        if not tensors:
            _check(bool(value == other))
        for tensor, twin in zip(tensors, others, strict=True):
            _check(_form(tensor) == _form(twin))
            mine, theirs = self.storage_of(tensor), self.storage_of(twin)
            _check(self.storages.setdefault(theirs, mine) == mine)

    def facts(self, original: Facts) -> Facts:
        """The facts about a copy.

        Raises:
            DifferentError: it writes to an argument.
        """
        _check(not original.writes & self._arguments)
        return replace(
            original,
            leaves=tuple(replace(leaf, storage=self._there(leaf.storage)) for leaf in original.leaves),
            differentiable=frozenset(self.nodes[node] for node in original.differentiable),
            writes=self._all(original.writes),
            saved=self._all(original.saved),
            hidden={self._there(storage): size for storage, size in original.hidden.items()},
        )

    def result(self, original: fx.Node, note: Callable[[torch.Tensor, int], None]) -> Any:
        """A result for those who read it outside; ``note`` is told the number of its storage.

        Raises:
            DifferentError: it shares memory with an argument, or is nothing that can be made anew.
        """

        def made(tensor: torch.Tensor) -> torch.Tensor:
            storage = self.storage_of(tensor)
            _check(storage not in self._arguments)
            spec = Spec.of(tensor)
            with torch.enable_grad():
                new = spec.empty().mul(1) if spec.requires_grad else spec.empty()  # the product is no leaf
            _check(_form(new) == _form(tensor))
            note(new, self._there(storage))
            return new

        value = self.values[original]
        held = [self.storage_of(tensor) for tensor in tensor_leaves(value)]
        _check(bool(held) and len({*held}) == len(held))
        return made(value) if isinstance(value, torch.Tensor) else pytree.tree_map_only(torch.Tensor, made, value)

    def _there(self, storage: int) -> int:
        if storage not in self.storages:
            self.storages[storage] = self.fresh()
        return self.storages[storage]

    def _all(self, storages: Iterable[int]) -> frozenset[int]:
        return frozenset(map(self._there, storages))


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return Spec.of(tensor), tensor.storage_offset(), tensor.untyped_storage().nbytes()


def _check(holds: bool) -> None:
    if not holds:
        raise DifferentError
