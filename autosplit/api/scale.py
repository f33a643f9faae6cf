"""Costs as a function of the batch: two captures of one model, and every size on the line through both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from autosplit.errors import PlanError
from autosplit.program import Facts, Leaf, Program

Interpolate = Callable[[int, int], int]


class Scaled:
    """A program at any batch, from the programs at two.

    Exact for what grows linearly with the batch, as nearly every tensor does; estimated for the rest.

    Args:
        first: a batch and the program captured at it.
        second: another batch, and its program.

    Raises:
        PlanError: the two programs are not the same operators in the same order.
    """

    def __init__(self, first: tuple[int, Program], second: tuple[int, Program]) -> None:
        (self._batch, self._program), (self._other, other) = first, second
        twins = self._program.twins(other)
        if twins is None:
            raise PlanError(
                f"the model runs other operators with {self._other} samples than with {self._batch}: what it costs "
                "cannot be told for a batch in between; plan for each batch"
            )
        pairs = ((node, self._program.facts[node], other.facts[twin]) for node, twin in twins.items())
        self._varying = [(node, mine, others) for node, mine, others in pairs if _sizes(mine) != _sizes(others)]

    def program(self, batch: int) -> Program:
        """The program at ``batch`` samples, for its costs only: the sizes in its code are the first capture's."""
        if batch == self._batch:
            return self._program
        run, span = batch - self._batch, self._other - self._batch

        def at(mine: int, others: int) -> int:
            return mine if mine == others else max(0, mine + (others - mine) * run // span)

        program = copy.copy(self._program)
        varied = {node: _facts(mine, others, at) for node, mine, others in self._varying}
        program.facts = self._program.facts | varied
        return program


def _sizes(facts: Facts) -> tuple[Any, ...]:
    leaves = [(leaf.size_bytes, leaf.storage_bytes) for leaf in facts.leaves]
    return leaves, [*facts.hidden.values()], facts.flops, facts.moved_bytes, facts.workspace_bytes


def _facts(mine: Facts, others: Facts, at: Interpolate) -> Facts:
    return replace(
        mine,
        leaves=tuple(_leaf(*pair, at) for pair in zip(mine.leaves, others.leaves, strict=False)),
        hidden={
            key: at(size, other)
            for (key, size), other in zip(mine.hidden.items(), others.hidden.values(), strict=False)
        },
        flops=at(mine.flops, others.flops),
        moved_bytes=at(mine.moved_bytes, others.moved_bytes),
        workspace_bytes=at(mine.workspace_bytes, others.workspace_bytes),
    )


def _leaf(mine: Leaf, others: Leaf, at: Interpolate) -> Leaf:
    if mine.size_bytes == others.size_bytes and mine.storage_bytes == others.storage_bytes:
        return mine
    return replace(
        mine,
        size_bytes=at(mine.size_bytes, others.size_bytes),
        storage_bytes=at(mine.storage_bytes, others.storage_bytes),
    )
