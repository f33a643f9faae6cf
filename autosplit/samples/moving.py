"""Rules of the operators that only move elements: views, copies, indexing, joining, and new tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from autosplit.samples.kinds import MIXED, Call, Kind, MixingError, Part, Rows, joined, reshaped

Rule = Callable[[Call], Any]
"""Gives the kind of every tensor returned, or the list of their kinds."""

_TAKES_SOME = "takes some of the samples"


def _mapped(call: Call, to: Callable[[Rows], Rows]) -> Kind:
    """The kind of self with its samples' dimension renumbered; a sum or a mean stays one."""
    kind: Kind = call.kinds.get("self")
    return to(kind) if isinstance(kind, Rows) else kind


def reshape(call: Call) -> Kind:
    """view, reshape: the order of elements stays."""
    before = (tuple(call.small["self"].shape), tuple(call.large["self"].shape))
    return _mapped(call, lambda rows: reshaped(rows, before, call.made[0], call.sizes))


def permute(call: Call) -> Kind:
    """permute, transpose, t."""
    ndim = len(call.shape("self"))
    if "dims" in call.small:
        order = [d % ndim for d in call.small["dims"]]
    else:
        order = list(range(ndim))
        a, b = (call.small.get(name, d) % max(1, ndim) for name, d in (("dim0", 0), ("dim1", ndim - 1)))
        if ndim > 1:
            order[a], order[b] = order[b], order[a]
    return _mapped(call, lambda rows: replace(rows, dim=order.index(rows.dim)))


def unsqueeze(call: Call) -> Kind:
    """A new dimension of one."""
    new = call.small["dim"] % call.ndim()
    return _mapped(call, lambda rows: replace(rows, dim=rows.dim + (rows.dim >= new)))


def expand(call: Call) -> Kind:
    """New dimensions come from the left; one that grows with the batch has the same all along it."""
    added = call.ndim() - len(call.shape("self"))
    kind: Kind = call.kinds.get("self")
    if isinstance(kind, Rows):
        return replace(kind, dim=kind.dim + added)
    varying = call.sizes.varying(*call.made[0])
    if kind is None and len(varying) == 1:
        return Rows(varying[0], None)
    return kind


def repeat(call: Call) -> Kind:
    """repeat: each copy of the batch is a block of its own."""
    shape, repeats, more = call.shape("self"), call.small["repeats"], call.large["repeats"]
    added = len(repeats) - len(shape)
    kind: Kind = call.kinds.get("self")
    if isinstance(kind, Rows):
        dim = kind.dim + added
        if repeats[dim] != more[dim] or kind.by is not None:
            raise MixingError("repeats the batch as often as it has samples")
        return replace(kind, dim=dim, outer=kind.outer and kind.outer * repeats[dim])
    varying = call.sizes.varying(*call.made[0])
    if kind is None and len(varying) == 1:
        dim = varying[0]
        return Rows(dim, None if dim < added or shape[dim - added] == 1 else 1)
    return kind


def piece(call: Call, rows: Rows, starts: tuple[int, int], lengths: tuple[int, int]) -> Kind:
    """What a stretch along the samples' dimension is: whole batches, or the same whatever the batch."""
    whole = call.small["self"].shape[rows.dim], call.large["self"].shape[rows.dim]
    if lengths == whole:
        return rows
    if rows.outer is None:
        return rows if lengths[0] != lengths[1] else None
    block = whole[0] // rows.outer, whole[1] // rows.outer
    first = {start / size for start, size in zip(starts, block, strict=True)}
    count = {length / size for length, size in zip(lengths, block, strict=True)}
    if len(first) == len(count) == 1 and first.pop().is_integer() and (number := count.pop()).is_integer():
        return replace(rows, outer=int(number))
    raise MixingError(_TAKES_SOME)


def slicing(call: Call) -> Kind:
    """Slice."""
    kind: Kind = call.kinds.get("self")
    dim = call.small["dim"] % call.ndim()
    if not isinstance(kind, Rows):
        return kind
    if kind.dim != dim:
        if any(name in call.differing() for name in ("start", "step")):
            raise MixingError("starts at another place for another number of samples")
        return kind
    if call.small["step"] != 1:
        raise MixingError(_TAKES_SOME)
    made = call.made[0][0][dim], call.made[0][1][dim]
    return piece(call, kind, (_start(call.small, dim), _start(call.large, dim)), made)


def _start(arguments: dict[str, Any], dim: int) -> int:
    start, size = arguments["start"] or 0, arguments["self"].shape[dim]
    return int(min(max(start + size if start < 0 else start, 0), size))


def split(call: Call) -> list[Kind]:
    """split, split_with_sizes, unsafe_split."""
    kind: Kind = call.kinds["self"]
    dim = call.small["dim"] % len(call.shape("self"))
    if not isinstance(kind, Rows) or kind.dim != dim:
        return [kind] * len(call.made)
    found: list[Kind] = []
    starts = [0, 0]
    for small, large in call.made:
        found.append(piece(call, kind, (starts[0], starts[1]), (small[dim], large[dim])))
        starts = [starts[0] + small[dim], starts[1] + large[dim]]
    return found


def select(call: Call) -> Kind:
    """select, unbind: one dimension less."""
    dim = call.small["dim"] % len(call.shape("self"))
    kind: Kind = call.kinds["self"]
    if isinstance(kind, Rows) and kind.dim == dim:
        if kind.outer is None and not kind.numbers:
            return None
        raise MixingError("takes one sample of the batch")
    return _mapped(call, lambda rows: replace(rows, dim=rows.dim - (rows.dim > dim)))


def squeeze(call: Call) -> Kind:
    """squeeze: dimensions of one go."""
    shape = call.shape("self")
    gone = [d for d in call.dims("dim", len(shape)) if shape[d] == 1 and call.large["self"].shape[d] == 1]
    return _mapped(call, lambda rows: replace(rows, dim=rows.dim - sum(d < rows.dim for d in gone)))


def diagonal(call: Call) -> Kind:
    """diagonal: two dimensions go, one comes last."""
    ndim = len(call.shape("self"))
    gone = [call.small["dim1"] % ndim, call.small["dim2"] % ndim]
    kind = call.rows("self")
    if kind and kind.dim in gone:
        raise MixingError(_TAKES_SOME)
    return _mapped(call, lambda rows: replace(rows, dim=rows.dim - sum(d < rows.dim for d in gone)))


def unfold(call: Call) -> Kind:
    """Tensor.unfold: windows along another dimension."""
    rows = call.rows("self")
    if rows and rows.dim == call.small["dimension"] % len(call.shape("self")):
        raise MixingError("slides over the batch")
    return rows


def pad(call: Call) -> Kind:
    """constant_pad_nd: pairs of widths, from the last dimension on."""
    kind: Kind = call.kinds["self"]
    if not isinstance(kind, Rows):
        raise MixingError("pads a mean or a sum over the batch")
    place = 2 * (len(call.shape("self")) - 1 - kind.dim)
    if any(call.small["pad"][place : place + 2]):
        raise MixingError("pads the batch")
    return joined([kind])


def cat(call: Call) -> Kind:
    """cat: along another dimension, or whole batches one after another."""
    tensors, kinds = call.small["tensors"], call.kinds["tensors"]
    pairs = [(kind, t) for kind, t in zip(kinds, tensors, strict=True) if tuple(t.shape) != (0,)]
    if any(isinstance(kind, Part) for kind, _ in pairs):
        return alike([kind for kind, _ in pairs])
    dim = call.small["dim"] % call.ndim()
    if all(kind.dim != dim for kind, _ in pairs if isinstance(kind, Rows)):
        if any(kind is None for kind, _ in pairs):
            raise MixingError("joins the batch to what has no batch")
        return joined([kind for kind, _ in pairs if isinstance(kind, Rows)])
    outers = []
    inner = {_inner(call, kind, t) for kind, t in pairs if isinstance(kind, Rows) and kind.outer}
    if len(inner) > 1 or any(not isinstance(kind, Rows) or kind.numbers or kind.by is not None for kind, _ in pairs):
        raise MixingError("joins the batch to something else along the samples")
    if not inner:
        return Rows(dim, len(pairs))
    step = inner.pop() * call.sizes.small
    for kind, tensor in pairs:
        outers.append(kind.outer or tensor.shape[dim] // step)
    return Rows(dim, sum(outers))


def _inner(call: Call, rows: Rows, tensor: torch.Tensor) -> int:
    return int(tensor.shape[rows.dim]) // ((rows.outer or 1) * call.sizes.small)


def stack(call: Call) -> Kind:
    """stack: a new dimension."""
    kinds = call.kinds["tensors"]
    if any(isinstance(kind, Part) for kind in kinds):
        return alike(kinds)
    if any(kind is None for kind in kinds):
        raise MixingError("joins the batch to what has no batch")
    rows, new = joined(kinds), call.small["dim"] % call.ndim()
    return rows and replace(rows, dim=rows.dim + (rows.dim >= new))


def alike(kinds: list[Kind]) -> Kind:
    """Sums with sums, means with means or with what does not depend on the batch.

    Raises:
        MixingError: they are merged in different ways.
    """
    parts = {kind for kind in kinds if isinstance(kind, Part)}
    others = [kind for kind in kinds if not isinstance(kind, Part)]
    (first, *more) = parts
    if more or any(kind is not None for kind in others) or (others and first.kind == "sum"):
        raise MixingError("joins a sum or a mean over the batch to what is merged in another way")
    return first


def index(call: Call) -> Kind:
    """x[i, j, ...] with tensors: by positions that are the same for all samples, or by each sample's own."""
    return indexed(call, list(call.small["indices"]), list(call.kinds["indices"]))


def indexed(call: Call, indices: list[Any], kinds: list[Kind]) -> Kind:
    """The kind of self[indices].

    Raises:
        MixingError: a sample may reach another one.
    """
    places = [i for i, one in enumerate(indices) if one is not None]
    if any(indices[i].dtype in (torch.bool, torch.uint8) for i in places):
        raise MixingError("takes as many elements as a mask says")
    wide = max(indices[i].dim() for i in places)
    together = places == list(range(places[0], places[-1] + 1))  # else what is chosen comes first
    first = places[0] if together else 0
    found: dict[int, Rows] = {}
    for i in places:
        kind = kinds[i]
        if isinstance(kind, Rows):
            found[i] = replace(kind, dim=kind.dim + wide - indices[i].dim())
        elif kind is not None:
            raise MixingError("is indexed by what all samples made together")
    own = call.rows("self")
    if own and own.dim not in places:
        if found:
            raise MixingError("takes of each sample what another one says")
        before = sum(i < own.dim for i in places)
        left = wide if not together or own.dim > first else 0
        return replace(own, dim=own.dim - before + left)
    if own:
        number = found.get(own.dim)
        each = number is not None and own.outer == 1 and number.numbers == _inner(call, own, call.small["self"])
        if own.numbers or (own.outer is not None and not each):
            raise MixingError("picks samples of the batch by an index")
        if number:
            found[own.dim] = replace(number, numbers=0)
    rows = joined(list(found.values()))
    return rows and replace(rows, dim=rows.dim + first)


def index_put(call: Call) -> Kind:
    """x[i, j] = v: each sample writes into its own."""
    own = call.rows("self")
    target = indexed(call, list(call.small["indices"]), list(call.kinds["indices"]))
    values = call.rows("values")
    if values is None:
        if isinstance(target, Rows) and own is None:
            raise MixingError("writes at places that samples choose into what has no batch")
        return own
    wide = _indexed_ndim(call)
    moved = replace(values, dim=values.dim + wide - len(call.shape("values")))
    if own is None or not isinstance(target, Rows):
        raise MixingError("writes the batch into what has no batch")
    joined([target, moved])
    return own if own.outer or target.outer is None else replace(own, outer=1)


def _indexed_ndim(call: Call) -> int:
    indices = [one for one in call.small["indices"] if one is not None]
    return len(call.shape("self")) - len(indices) + max(int(one.dim()) for one in indices)


def index_select(call: Call) -> Kind:
    """index_select."""
    rows, chosen, dim = call.rows("self"), call.rows("index"), call.small["dim"] % len(call.shape("self"))
    if rows and (chosen or rows.dim == dim):
        raise MixingError("picks samples of the batch by an index")
    if chosen and chosen.numbers:
        raise MixingError("picks by the samples' numbers in the batch")
    return (chosen and replace(chosen, dim=dim)) or rows


def gather(call: Call) -> Kind:
    """gather: each sample from itself, along another dimension."""
    rows, chosen, dim = call.rows("self"), call.rows("index"), call.small["dim"] % max(1, len(call.shape("self")))
    if rows is None and chosen and chosen.dim == dim and not chosen.numbers:
        return chosen
    if rows is None or chosen is None or rows.dim == dim:
        raise MixingError("picks samples of the batch by an index")
    return joined([rows, chosen])


def scatter(call: Call) -> Kind:
    """scatter, scatter_add, scatter_reduce: each sample into itself, along another dimension."""
    rows = [call.rows(name) for name in ("self", "index", "src") if isinstance(call.small.get(name), torch.Tensor)]
    found = [one for one in rows if one]
    dim = call.small["dim"] % max(1, len(call.shape("self")))
    if len(found) < len(rows) or any(one.dim == dim for one in found):
        raise MixingError("writes samples of the batch by an index")
    return joined(found)


def index_write(call: Call) -> Kind:
    """index_add, index_copy, index_fill: at the same places of every sample."""
    rows, source = call.rows("self"), call.rows("source")
    if rows is None or call.rows("index") or rows.dim == call.small["dim"] % len(call.shape("self")):
        raise MixingError("writes samples of the batch by an index")
    return joined([one for one in (rows, source) if one])


def scattered_slice(call: Call) -> Kind:
    """select_scatter, slice_scatter: along another dimension."""
    rows, source, dim = call.rows("self"), call.rows("src"), call.small["dim"] % call.ndim()
    whole = rows and source and rows.dim == dim and call.shape("src") == call.shape("self")
    if rows is None or (rows.dim == dim and not whole):
        raise MixingError("writes some of the samples")
    if source and call.func is torch.ops.aten.select_scatter.default:
        source = replace(source, dim=source.dim + (source.dim >= dim))
    return joined([one for one in (rows, source) if one])


def new(call: Call) -> Kind:
    """A tensor made from its size: the same all along the batch, or noise."""
    if set(call.differing()) - {"size", "stride"}:
        raise MixingError(f"{call.differing()[-1]} depends on the number of samples")
    varying = call.sizes.varying(*call.made[0])
    if not varying:
        return None
    return Rows(varying[0], None) if len(varying) == 1 else MIXED


def like(call: Call) -> Kind:
    """A tensor of the size of another one."""
    kind: Kind = call.kinds["self"]
    return replace(kind, numbers=0, by=None, outer=None) if isinstance(kind, Rows) else None


def arange(call: Call) -> Kind:
    """The numbers of the samples, or positions that do not depend on the batch."""
    if not call.sizes.varying(*call.made[0]):
        raise MixingError("counts in another way for another number of samples")
    each = call.sizes.factor(call.made[0][0][0], call.made[0][1][0])
    if each and call.small.get("start", 0) == call.large.get("start", 0) == 0 and call.small.get("step", 1) == 1:
        return Rows(0, 1, numbers=each)
    raise MixingError("counts along the batch")
