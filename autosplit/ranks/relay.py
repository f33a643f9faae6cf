"""What crosses from each stage to the next: a value that jumps stages is handed on by those between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Part:
    """One stage's graph, told by the names of values.

    Attributes:
        call: takes the values of ``takes`` in order and returns those of ``gives`` in order.
        takes: weights and inputs of the model by their names, and values that earlier stages give.
        gives: what later stages or the results take.
        devices: where it takes or gives each value.
    """

    call: Callable[..., Sequence[Any]]
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    devices: Mapping[str, torch.device]


@dataclass(frozen=True)
class Crossing:
    """The values that one stage receives from the stage before and sends to the one after, in order."""

    receives: tuple[str, ...]
    sends: tuple[str, ...]


def crossings(parts: Sequence[Part], results: Sequence[str]) -> list[Crossing]:
    """What crosses each border, so that every stage has what it takes and the last one all results.

    Args:
        parts: the stages in order.
        results: names of the values that the model returns; those that no stage gives are not looked at.

    Complexity: O(stages x values).

    >>> def part(takes, gives):
    ...     return Part(lambda *values: values, takes, gives, {})
    >>> chain = [part(("input/x",), ("a", "b")), part(("a",), ("c",)), part(("b", "c"), ("d",))]
    >>> [crossing.sends for crossing in crossings(chain, ["d", "a"])]
    [('a', 'b'), ('a', 'b', 'c'), ()]
    """
    last = len(parts) - 1
    born = {name: s for s, part in enumerate(parts) for name in part.gives}
    wanted = {name: s for s, part in enumerate(parts) for name in part.takes if name in born}
    wanted |= {name: last for name in results if name in born}
    border = [tuple(name for name in born if born[name] <= s < wanted.get(name, -1)) for s in range(last)]
    return [Crossing(border[s - 1] if s > 0 else (), border[s] if s < last else ()) for s in range(len(parts))]
