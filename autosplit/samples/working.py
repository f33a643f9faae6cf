"""Rules of the operators that compute: element by element, along some dimensions, products, norms, attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from autosplit.samples.kinds import UNKNOWN, Call, Kind, MixingError, Part, Rows, joined
from autosplit.samples.moving import Rule, alike

_KEEPS_SUMS = ("neg", "clone", "positive", "alias", "_to_copy", "detach", "real", "view_as_real", "view_as_complex")


def pointwise(call: Call) -> Kind:
    """Element by element, aligned from the right; of a sum or a mean over the batch only what is linear in it."""
    if any(isinstance(kind, Part) for kind in call.all_kinds()):
        return linear(call)
    if call.differing():
        raise MixingError(_depends(call))
    return aligned(call)


def aligned(call: Call) -> Rows | None:
    """The samples of all tensors, aligned from the right."""
    ndim = call.ndim()
    rows = [replace(kind, dim=kind.dim - n + ndim) for kind, n in call.tensors() if isinstance(kind, Rows)]
    if len(rows) == 1 and call.name in ("clone", "_to_copy", "alias", "lift_fresh", "detach"):
        return rows[0]
    return joined(rows)


def _depends(call: Call) -> str:
    name = call.differing()[0]
    return f"{name} depends on the number of samples ({call.small[name]} and {call.large[name]})"


def linear(call: Call) -> Kind:
    """An operator on sums or means over the batch.

    Raises:
        MixingError: it is not linear in them.
    """
    kinds = call.all_kinds()
    parts = [kind for kind in kinds if isinstance(kind, Part)]
    if any(isinstance(kind, Rows) for kind in kinds):
        raise MixingError("gives every sample something of the whole batch")
    name = call.name
    if name == "_to_copy" and not (call.small.get("dtype") or torch.float32).is_floating_point:
        name = "rounding"
    if name in _KEEPS_SUMS:
        return parts[0]
    if name in ("add", "sub", "rsub") and not call.differing():
        scalar = not isinstance(call.small["other"], torch.Tensor)
        return alike([*kinds, None] if scalar else kinds)
    scales = name == "mul" or (name == "div" and isinstance(call.kinds.get("self"), Part))
    if scales and len(parts) == 1 and not call.small.get("rounding_mode"):
        return _scaled(call, parts[0])
    raise MixingError(f"is not linear in a {parts[0].kind} over the batch")


def _scaled(call: Call, part: Part) -> Part:
    """A sum divided by the number of samples is a mean."""
    if not call.differing():
        return part
    small, large = call.small["other"], call.large["other"]
    if call.name == "div":
        small, large = (1 / small if small else 0.0), (1 / large if large else 0.0)
    sizes = call.sizes
    if part.kind == "sum" and _close(small * sizes.small, large * sizes.large):
        return Part("mean")
    if part.kind == "mean" and part.counted is None and _close(small / sizes.small, large / sizes.large):
        return Part("sum")
    raise MixingError(_depends(call))


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9 * max(abs(a), abs(b))


def along(*names: str, default: Any = None) -> Rule:
    """A rule of an operator that acts along the dimensions named by one of its arguments, and keeps the shape."""

    def rule(call: Call) -> Kind:
        name = next((one for one in names if one in call.small), "")
        dims = call.dims(name, call.ndim()) if name else {d % max(1, call.ndim()) for d in default or ()}
        return apart(call, dims)

    return rule


def last(count: int) -> Rule:
    """A rule of an operator that acts on the last ``count`` dimensions and keeps how many there are."""

    def rule(call: Call) -> Kind:
        return apart(call, set(range(call.ndim() - count, call.ndim())))

    return rule


def first_dim(call: Call) -> Kind:
    """Dimension 0 alone is not worked on: the samples of every tensor that has them must be there."""
    return apart(call, set(range(1, max(2, call.ndim()))))


def apart(call: Call, dims: set[int]) -> Kind:
    """The samples, aligned from the right, where an operator works along ``dims``.

    Raises:
        MixingError: they are along one of those.
    """
    if any(isinstance(kind, Part) for kind in call.all_kinds()):
        return linear(call)
    rows = aligned(call)
    if rows and rows.dim in dims:
        raise MixingError(f"works along dimension {rows.dim}, which is the batch")
    return rows


def through(argument: str, *batched: str, dim: int = 0) -> Rule:
    """A rule of an operator whose samples are in dimension ``dim`` of an argument and of everything it returns.

    Args:
        argument: the tensor that must have them.
        batched: others that may have them, in the same place.
        dim: the place.
    """

    def rule(call: Call) -> Kind:
        found = []
        for name, kind in call.kinds.items():
            some = [one for one in (kind if isinstance(kind, list) else [kind]) if one is not None]
            if some and name not in (argument, *batched):
                raise MixingError(f"{name} depends on the batch")
            if any(not isinstance(one, Rows) or one.dim != dim for one in some):
                raise MixingError("works along the batch")
            found += some
        if not isinstance(call.kinds[argument], Rows):
            raise MixingError(f"{argument} has no batch, but others have")
        return joined(found)

    return rule


def product(left: str, right: str, bias: str | None = None) -> Rule:
    """A rule of a product of matrices, or of two batches of them; a product over the samples is a sum over them."""

    def rule(call: Call) -> Kind:
        kinds = [call.kinds[left], call.kinds[right]]
        parts = [kind for kind in kinds if isinstance(kind, Part)]
        if parts:
            if len(parts) == 2 or any(isinstance(kind, Rows) for kind in kinds) or bias in call.kinds:
                raise MixingError("multiplies what all samples made together")
            return parts[0]
        found = _product(call, len(call.shape(left)), *kinds)
        other = call.rows(bias) if bias else None
        if isinstance(found, Part):
            if bias:
                raise MixingError("adds to a sum over the batch")
            return found
        if other and bias:
            other = replace(other, dim=other.dim + call.ndim() - len(call.shape(bias)))
        if other and not found:
            raise MixingError("adds the batch to what has no batch")
        return joined([one for one in (found, other) if one])

    return rule


def _product(call: Call, ndim: int, left: Rows | None, right: Rows | None) -> Rows | Part | None:
    a, b = (left.dim - ndim if left else None), (right.dim - ndim if right else None)
    if a == -1 and b == -2 and left and right:
        joined([left, replace(right, dim=left.dim)])
        return Part("sum")
    if a == -1 or b == -2:
        raise MixingError("sums over the batch what is not the same samples of both")
    return joined([one for one in (left, right) if one])


def vectors(left: str, right: str) -> Rule:
    """A rule of matrix times vector, and of vector times vector."""

    def rule(call: Call) -> Kind:
        a, b = call.rows(left), call.rows(right)
        if a and b and a.dim == len(call.shape(left)) - 1:
            joined([a, replace(b, dim=a.dim)])
            return Part("sum")
        if b or (a and a.dim == len(call.shape(left)) - 1):
            raise MixingError("sums over the batch")
        return a

    return rule


def embedding(call: Call) -> Kind:
    """embedding: one row for each index."""
    if call.kinds.get("weight") is not None:
        raise MixingError("looks up in what depends on the batch")
    rows = call.rows("indices")
    return joined([rows]) if rows else None


def batch_norm(call: Call) -> Kind:
    """Batch norm: in training over all dimensions but 1, with running statistics element by element."""
    rows = call.rows("input")
    training = call.small.get("training", call.small.get("train", call.name.endswith("_with_update")))
    others = [kind for name, kind in call.kinds.items() if name != "input" and kind is not None]
    if rows and rows.dim == 1:
        if call.kinds.get("running_mean") is None and not training:
            raise MixingError("its statistics are not the samples'")
        return joined([rows, *(replace(kind, dim=1) for kind in others if isinstance(kind, Rows))])
    if others:
        raise MixingError("its weights depend on the batch")
    if rows and training:
        raise MixingError("batch statistics are those of the micro-batch")
    return rows


def layer_norm(call: Call) -> Kind:
    """native_layer_norm, _fused_rms_norm: along the last dimensions."""
    count = len(call.small["normalized_shape"])
    ndim = len(call.shape("input"))
    rows = call.rows("input")
    if rows and rows.dim >= ndim - count:
        raise MixingError(f"works along dimension {rows.dim}, which is the batch")
    if any(kind is not None for name, kind in call.kinds.items() if name != "input"):
        raise MixingError("its weights depend on the batch")
    return rows and joined([rows])


def attention(call: Call) -> Kind:
    """Scaled dot product attention: over the last two dimensions of query, key and value."""
    ndim = len(call.shape("query"))
    rows = []
    for name, kind in call.kinds.items():
        if isinstance(kind, Part):
            raise MixingError("reads what all samples made together")
        if isinstance(kind, Rows):
            rows.append(replace(kind, dim=kind.dim + ndim - call.small[name].dim()))
    found = joined(rows)
    if found and found.dim >= ndim - 2:
        raise MixingError("attends from one sample to another")
    if found and not call.kinds.get("query"):
        raise MixingError("query has no batch, but others have")
    return found


def grouped_rows(inputs: str, *others: str) -> Rule:
    """A rule of an operator on one dimension, for which the other tensors are the same for all samples."""

    def rule(call: Call) -> Kind:
        if any(call.kinds.get(name) is not None for name in others):
            raise MixingError("looks up in what depends on the batch")
        rows = call.rows(inputs)
        return rows and joined([rows])

    return rule


def cdist(call: Call) -> Kind:
    """Distances of rows: every pair of a row of the one and a row of the other."""
    left, right = call.rows("x1"), call.rows("x2")
    ndim = len(call.shape("x1"))
    if (left and left.dim == ndim - 1) or (right and right.dim == ndim - 1):
        raise MixingError("measures along the batch")
    if right and right.dim == ndim - 2:
        right = replace(right, dim=ndim - 1)
    return joined([one for one in (left, right) if one])


def guarded(rule: Callable[[Call], Kind]) -> Rule:
    """A rule whose operator must not be told the number of samples."""

    def checked(call: Call) -> Kind:
        if call.differing():
            raise MixingError(_depends(call))
        return rule(call)

    return checked


def rnn_layer(call: Call) -> list[Kind]:
    """mkldnn_rnn_layer: whatever the module's order of dimensions, one step of all samples after another."""
    rows = call.rows("input")
    if rows is None or rows.dim != 1 or rows.numbers:
        raise MixingError("runs along the batch")
    for name, kind in call.kinds.items():
        state = name in ("hx_", "cx_") and isinstance(kind, Rows) and kind.dim == call.small[name].dim() - 2
        if kind is not None and name != "input" and not state:
            raise MixingError(f"{name} depends on the batch")
    return [call.sizes.by_shape(*made) if call.sizes.varying(*made) else UNKNOWN for made in call.made]
