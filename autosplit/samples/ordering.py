"""Rows put in another order and put back: how a mixture of experts gathers the tokens of each expert.

Sorting the rows of a batch by a key lets each row find its expert by its place alone. What is computed there row by
row, with the weights that the row's own key chooses, and put back by the inverse order, treats each sample by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from autosplit.samples.kinds import Call, Kind, MixingError, Rows


@dataclass(frozen=True)
class Order:
    """The places that the rows were taken from by a sort, divided by ``share``: each row of x is taken so often."""

    by: int | str
    share: int = 1


@dataclass(frozen=True)
class Inverse:
    """The places that the rows have after a sort."""

    by: int | str


@dataclass(frozen=True)
class Keys:
    """The sorted keys themselves."""

    by: int | str


@dataclass(frozen=True)
class Counts:
    """How many rows have each key, 0, 1, 2, ...; with ``summed`` where the rows of each key end."""

    by: int | str
    summed: bool = False


_SPECIAL = (Order, Inverse, Keys, Counts)
_COPIES = ("_to_copy", "clone", "detach", "alias", "lift_fresh")
_GROUPED = ("_grouped_mm", "transformers::grouped_mm_fallback")


def reordered(call: Call) -> list[Kind] | None:
    """The kinds of what a call makes where rows are sorted, computed in that order, or put back; None where not.

    Raises:
        MixingError: it reads the order of the rows in another way.
    """
    kinds = call.all_kinds()
    name = call.name
    if name == "sort" and isinstance(kinds[0], Rows):
        return _sorted(call, kinds[0])
    if not any(isinstance(kind, _SPECIAL) for kind in kinds):
        return None
    first = kinds[0]
    if name in _COPIES:
        return [first]
    if name == "floor_divide" or (name == "div" and call.small.get("rounding_mode") == "floor"):
        return _shared(call, first)
    rule = {
        "histc": _counted,
        "cumsum": _ends,
        "empty_like": _empty,
        "index": _taken,
        "index_put": _inverse,
        "index_add": _put_back,
    }.get(name)
    rule = _grouped if name in _GROUPED else rule
    if rule is not None and (found := rule(call)) is not None:
        return [found]
    _as_rows(call)
    return None


def _as_rows(call: Call) -> None:
    """Keys are rows as others are; orders and counts are of all samples."""
    for name, kind in call.kinds.items():
        if isinstance(kind, Keys):
            call.kinds[name] = Rows(0, 1, by=kind.by)
        elif isinstance(kind, list):
            call.kinds[name] = [Rows(0, 1, by=one.by) if isinstance(one, Keys) else one for one in kind]
    if any(isinstance(kind, _SPECIAL) for kind in call.all_kinds()):
        raise MixingError("reads the order of all samples")


def _sorted(call: Call, rows: Rows) -> list[Kind] | None:
    """Sorting a vector of one key for each row; the order's name comes later, when the node's is known."""
    if len(call.shape("self")) != 1 or rows.by is not None or rows.numbers or rows.outer != 1:
        return None
    return [Keys(0), Order(0)]


def _shared(call: Call, order: Kind) -> list[Kind]:
    share = call.small.get("other")
    if not isinstance(order, Order) or not isinstance(share, int) or call.differing() or share < 1:
        raise MixingError("reads the order of all samples")
    return [replace(order, share=order.share * share)]


def _counted(call: Call) -> Kind:
    keys, bins = call.kinds["self"], call.small["bins"]
    whole = call.small["min"] == 0 and call.small["max"] == bins - 1 and not call.differing()
    return Counts(keys.by) if isinstance(keys, Keys) and whole else None


def _ends(call: Call) -> Kind:
    counts = call.kinds["self"]
    return replace(counts, summed=True) if isinstance(counts, Counts) and not counts.summed else None


def _empty(call: Call) -> Kind:
    return Rows(0, None) if isinstance(call.kinds["self"], (Order, Inverse)) else None


def _taken(call: Call) -> Kind:
    """Rows in the order of the sort, or back in their own."""
    (kind, *more), own = call.kinds["indices"], call.kinds["self"]
    if more or not isinstance(own, Rows) or own.dim != 0 or own.outer != 1 or own.numbers:
        return None
    size, places = call.shape("self")[0], int(call.small["indices"][0].shape[0])
    if isinstance(kind, Order) and own.by is None and size * kind.share == places:
        return replace(own, by=kind.by)
    if isinstance(kind, Inverse) and own.by == kind.by and size == places:
        return replace(own, by=None)
    return None


def _inverse(call: Call) -> Kind:
    """inverse[order] = 0, 1, 2, ..."""
    (kind, *more), values = call.kinds["indices"], call.kinds["values"]
    if more or not isinstance(kind, Order) or kind.share != 1 or call.small.get("accumulate"):
        return None
    counts = isinstance(values, Rows) and values.numbers and values.dim == 0
    sizes = {call.shape("self"), call.shape("values"), tuple(call.small["indices"][0].shape)}
    return Inverse(kind.by) if counts and len(sizes) == 1 else None


def _put_back(call: Call) -> Kind:
    """out.index_add_(0, order, rows)."""
    own, kind, rows = call.kinds["self"], call.kinds["index"], call.kinds["source"]
    if not (isinstance(own, Rows) and isinstance(kind, Order) and isinstance(rows, Rows)):
        return None
    fits = call.shape("self")[0] * kind.share == call.shape("source")[0] and call.small["dim"] == 0
    alike = own.dim == rows.dim == 0 and own.by is None and own.outer in (1, None) and rows.by == kind.by
    return Rows(0, 1) if fits and alike else None


def _grouped(call: Call) -> Kind:
    """Each row times the matrix that its key chooses."""
    rows, weight, ends = call.all_kinds()[:3]
    others = call.all_kinds()[3:]
    alike = isinstance(rows, Rows) and isinstance(ends, Counts) and ends.summed and rows.by == ends.by
    if alike and weight is None and not any(others) and isinstance(rows, Rows) and rows.dim == 0:
        return rows
    return None


def name_of_order(kind: Any, name: str) -> Any:
    """A kind of a sort that just ran, with the name of its node."""
    return replace(kind, by=name) if getattr(kind, "by", None) == 0 and type(kind.by) is int else kind
