"""Capacities of any kind of number as integers, and flows as numbers of that kind again.

A float is a fraction whose denominator is a power of two, so scaling by the greatest denominator loses nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import networkx as nx

Edge = tuple[Any, Any, Any]


class Scale:
    """What all capacities of a graph are multiplied by to be integers.

    Attributes:
        denominator: that number, the least common one.
        kind: int when all capacities are integers, Fraction when all are rational, else float.
    """

    def __init__(self, edges: Iterable[Edge]) -> None:
        """Edges are (u, v, capacity).

        Raises:
            NetworkXError: a capacity is negative, NaN or no number.
        """
        self.denominator = 1
        self.kind: type[int] | type[float] | type[Fraction] = int
        for u, v, capacity in edges:
            if capacity.__class__ is int and capacity >= 0:
                continue
            numerator, denominator = _ratio(u, v, capacity)
            if numerator is not None and not _is_integer(capacity):
                exact = isinstance(capacity, Fraction) and self.kind is not float
                self.kind = Fraction if exact else float
                self.denominator = math.lcm(self.denominator, denominator)

    def up(self, capacity: Any) -> int | None:
        """The capacity as an integer; None when it is infinite."""
        if capacity.__class__ is int:
            return capacity * self.denominator
        numerator, denominator = _ratio(None, None, capacity)
        return None if numerator is None else numerator * (self.denominator // denominator)

    def down(self, whole: int) -> Any:
        """The number of which ``whole`` is the multiple; a float is rounded to the nearest."""
        if self.kind is int:
            return whole
        return whole / self.denominator if self.kind is float else Fraction(whole, self.denominator)

    def down_within(self, whole: int, capacity: Any) -> Any:
        """The same for a flow, which is equal to the arc's ``capacity`` only when it fills the arc."""
        flow = self.down(whole)
        if flow == capacity and whole != self.up(capacity):
            return math.nextafter(flow, -math.inf)
        return flow


def _is_integer(capacity: Any) -> bool:
    return hasattr(capacity, "__index__")


def _ratio(u: Any, v: Any, capacity: Any) -> tuple[int | None, int]:
    """Numerator and denominator; None over 1 for infinity."""
    try:
        if capacity == math.inf:
            return None, 1
        numerator, denominator = (operator.index(capacity), 1) if _is_integer(capacity) else capacity.as_integer_ratio()
    except (AttributeError, TypeError, ValueError, OverflowError):  # no number, NaN, minus infinity
        raise nx.NetworkXError(f"edge {u!r}, {v!r}: capacity {capacity!r} is no number of 0 or more") from None
    if numerator < 0:
        raise nx.NetworkXError(f"edge {u!r}, {v!r}: capacity {capacity!r} is negative; it must be 0 or more")
    return numerator, denominator
