"""How a tensor depends on the batch, and one operator's call at two batch sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Each sample has its own part along ``dim``.

    Attributes:
        dim: the dimension, counted from the left.
        outer: the dimension's size is ``outer`` x samples x whatever is left; None: all along it is the same, so any
            reading is right.
        numbers: the elements are places along the batch, 0 1 2 ..., so many of each sample; 0: they are not.
        by: the sort that put the rows into another order; None: they are in their own.
    """

    dim: int
    outer: int | None = 1
    numbers: int = 0
    by: int | str | None = None


@dataclass(frozen=True)
class Part:
    """The sum or the mean over the samples of something that each has.

    Attributes:
        kind: which of the two.
        counted: of a mean over what is not ignored, its targets (a place among the node's tensors, or their name) and
            the index that is ignored.
    """

    kind: Literal["sum", "mean"]
    counted: tuple[int | str, int] | None = None


@dataclass(frozen=True)
class Mixed:
    """It depends on the batch in a way that is not known.

    Attributes:
        said: what made it so was said; what reads it does not say it again.
    """

    said: bool = True


MIXED = Mixed()
UNKNOWN = Mixed(said=False)

Kind = Any  # Rows, Part, Mixed, one of the kinds of an order, or None
"""None: it does not depend on the batch."""


class MixingError(Exception):
    """Samples see each other here, or are not known not to; says why."""


@dataclass(frozen=True)
class Sizes:
    """The number of samples at the two captures."""

    small: int
    large: int

    def varying(self, small: Shape, large: Shape) -> list[int]:
        """The dimensions whose size is not the same at both; of another number of dimensions, all."""
        if len(small) != len(large):
            return list(range(max(len(small), len(large))))
        return [i for i, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]

    def factor(self, small: int, large: int) -> int | None:
        """How many times the number of samples a size is at both captures; None when it is no such product."""
        fits = small % self.small == 0 and large % self.large == 0 and small // self.small == large // self.large
        return small // self.small if fits else None

    def fits(self, rows: Rows, small: Shape, large: Shape) -> bool:
        """Whether a tensor of these shapes can have its samples as ``rows`` says."""
        if self.varying(small, large) != [rows.dim]:
            return False
        factor = self.factor(small[rows.dim], large[rows.dim])
        return factor is not None and factor % (rows.outer or 1) == 0

    def by_shape(self, small: Shape, large: Shape) -> Kind:
        """What the shape alone makes likely, to go on with where more is not known."""
        varying = self.varying(small, large)
        rows = Rows(varying[0]) if len(varying) == 1 else None
        return rows if rows and self.fits(rows, small, large) else MIXED


@dataclass
class Call:
    """One operator's call: its arguments by their names in the schema, at both sizes.

    Attributes:
        func: the operator.
        small, large: the arguments at the two sizes.
        kinds: of each argument that is a tensor its kind, of a list of tensors the list of theirs.
        made: shapes of the tensors that it returned, at both sizes.
        origins: for each tensor argument the place of the node's tensor that has the same elements, if one has.
        sizes: the two numbers of samples.
    """

    func: Any
    small: dict[str, Any]
    large: dict[str, Any]
    kinds: dict[str, Any]
    made: list[tuple[Shape, Shape]]
    origins: dict[str, int | None]
    sizes: Sizes

    @property
    def name(self) -> str:
        """The operator's name without its overload; of one in place, that of its other form."""
        return base_name(self.func)

    def shape(self, argument: str) -> Shape:
        """The shape of a tensor argument at the small size."""
        return tuple(self.small[argument].shape)

    def tensors(self) -> Iterator[tuple[Kind, int]]:
        """Kind and number of dimensions of every tensor argument."""
        for name, kind in self.kinds.items():
            if isinstance(kind, list):
                for one, tensor in zip(kind, self.small[name], strict=True):
                    if isinstance(tensor, torch.Tensor):
                        yield one, tensor.dim()
            else:
                yield kind, self.small[name].dim()

    def all_kinds(self) -> list[Kind]:
        """The kind of every tensor argument."""
        return [kind for kind, _ in self.tensors()]

    def rows(self, argument: str) -> Rows | None:
        """The samples of a tensor argument; None when it does not depend on the batch or was not given.

        Raises:
            MixingError: it depends on the batch in another way.
        """
        kind = self.kinds.get(argument)
        if kind is None or isinstance(kind, Rows):
            return kind
        raise MixingError("reads a mean or a sum over the batch in a way that is not linear")

    def differing(self) -> list[str]:
        """The arguments, no tensors, that are not the same at both sizes."""
        return [name for name in self.small if name not in self.kinds and self.small[name] != self.large[name]]

    def ndim(self) -> int:
        """Dimensions of the first tensor that is returned."""
        return len(self.made[0][0])

    def dims(self, argument: str, ndim: int) -> set[int]:
        """Dimensions named by an argument, from the left; all when none is named."""
        given = self.small.get(argument)
        if given is None or given == []:
            return set(range(ndim))
        return {d % max(1, ndim) for d in ([given] if isinstance(given, int) else given)}


def base_name(func: Any) -> str:
    """The name of an aten operator without overload and without the mark of a write in place."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return str(getattr(func, "__name__", func))
    namespace, _, name = schema.name.partition("::")
    name = name.removesuffix("_") if not name.startswith("__") else name
    return name if namespace == "aten" else f"{namespace}::{name}"


def joined(rows: Sequence[Rows]) -> Rows | None:
    """The one way in which all of them hold the samples.

    Raises:
        MixingError: they are not alike.
    """
    if not rows:
        return None
    if any(one.numbers for one in rows):
        raise MixingError("computes with the samples' numbers in the batch")
    if len({one.by for one in rows}) > 1:
        raise MixingError("pairs samples in one order with samples in another")
    dims, outers = {one.dim for one in rows}, {one.outer for one in rows} - {None}
    if len(dims) > 1:
        raise MixingError("pairs samples of one tensor with samples of another")
    if len(outers) > 1:
        raise MixingError("pairs tensors that hold the samples in another order")
    return Rows(rows[0].dim, outers.pop() if outers else None, by=rows[0].by)


def reshaped(rows: Rows, before: tuple[Shape, Shape], after: tuple[Shape, Shape], sizes: Sizes) -> Rows:
    """Where the samples are after a change of shape that keeps the order of elements.

    Raises:
        MixingError: the number of samples is no factor of one dimension any more.
    """
    varying = sizes.varying(*after)
    if len(varying) != 1:
        raise MixingError("spreads the samples over several dimensions")
    (dim,) = varying
    if rows.by is not None and before[0][rows.dim] != after[0][dim]:
        raise MixingError("takes for a sample's what a sort put next to each other")
    factor = sizes.factor(before[0][rows.dim], before[1][rows.dim])
    outers = [rows.outer] if rows.outer else [n for n in range(1, (factor or 0) + 1) if (factor or 0) % n == 0]
    left = math.prod(after[0][:dim])
    for outer in outers:
        blocks = math.prod(before[0][: rows.dim]) * outer
        if blocks % max(1, left) == 0:
            found = replace(rows, dim=dim, outer=max(1, blocks // max(1, left)))
            if sizes.fits(found, *after):
                same = rows.outer is None and before[0][rows.dim] == after[0][dim] and left * outer == blocks
                return replace(found, outer=None) if same and _alone(before[0], rows.dim, after[0], dim) else found
    raise MixingError("puts something between the samples, or cuts across them")


def _alone(before: Shape, dim: int, after: Shape, now: int) -> bool:
    return math.prod(before[:dim]) == math.prod(after[:now])
