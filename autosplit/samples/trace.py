"""What a node runs below autograd, at two batch sizes, and how each tensor there depends on the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from autosplit.program import call_on_fakes, tensor_leaves, written_tensors
from autosplit.samples.kinds import MIXED, UNKNOWN, Call, Kind, MixingError, Rows, Shape, Sizes, base_name
from autosplit.samples.ordering import Inverse, Keys, Order
from autosplit.samples.table import apply_rule

_ONLY_CHECKS = ("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range",
                "sym_constrain_range_for_size", "_functional_assert_async")  # fmt: skip


@dataclass
class Step:
    """One operator that ran."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


class Recorder(TorchDispatchMode):
    """Writes down every operator, below autograd and below what torch makes of others."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.steps: list[Step] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and func.namespace == "aten":
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = call_on_fakes(func, args, kwargs, self)
        if getattr(func, "namespace", "") == "prim":  # asks for a device or a layout
            return result
        self.steps.append(Step(func, args, kwargs, result))
        return result


@dataclass
class Found:
    """What following a node's operators gave.

    Attributes:
        kinds: of each tensor, by its identity at the small size.
        why: the first reason for which samples see each other, if there is one.
        random: it draws random numbers.
    """

    kinds: dict[int, Kind]
    why: str | None = None
    operator: str = ""
    random: bool = False
    origins: dict[int, int] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)


def follow(small: Sequence[Step], large: Sequence[Step], found: Found, sizes: Sizes) -> Found:
    """Give every tensor that the operators make its kind, from the kinds of those they start from.

    Args:
        small: what ran at the small size.
        large: what ran at the large one.
        found: the kinds of the node's own tensors, to be completed.
        sizes: the two numbers of samples.
    """
    if [step.func for step in small] != [step.func for step in large]:
        found.why = found.why or "runs other operators for another number of samples"
        return found
    if not _undone(small) or not _undone(large):
        found.why = found.why or "changes the shape of a tensor in place"
        return found
    for one, other in zip(small, large, strict=True):
        _redo(one, other)
        if base_name(one.func) in _ONLY_CHECKS:
            continue
        found.random |= _is_random(one)
        _follow_step(one, other, found, sizes)
    return found


def _undone(steps: Sequence[Step]) -> bool:
    """Tensors have the shapes again that they had before dimensions were swapped in place; False where they cannot."""
    for step in reversed(steps):
        if torch.Tag.inplace_view in getattr(step.func, "tags", ()):
            if step.func is not torch.ops.aten.transpose_.default:
                return False
            step.func(*step.args)
    return True


def _redo(*steps: Step) -> None:
    for step in steps:
        if step.func is torch.ops.aten.transpose_.default:
            step.func(*step.args)


def _follow_step(one: Step, other: Step, found: Found, sizes: Sizes) -> None:
    made, shapes = tensor_leaves(one.result), _shapes(one.result, other.result)
    found.alive += made
    try:
        call = _call(one, other, shapes, found, sizes)
        if UNKNOWN in call.all_kinds():
            raise MixingError("reads something of which nothing is known")
        if MIXED in call.all_kinds():
            kinds = [sizes.by_shape(*pair) for pair in shapes]
        else:
            kinds = [_checked(kind, *pair, sizes) for kind, pair in zip(apply_rule(call), shapes, strict=True)]
            if not made and any(kind is not None for kind in call.all_kinds()):
                raise MixingError("makes a number of what depends on the batch")
        _check_writes(one, kinds, found)
    except MixingError as error:
        found.why, found.operator = found.why or str(error), found.operator or base_name(one.func)
        kinds = [sizes.by_shape(*pair) for pair in shapes]
    for tensor, kind in zip(made, kinds, strict=True):
        found.kinds[id(tensor)] = kind
    _follow_origin(one, made, found)


def _is_random(step: Step) -> bool:
    """Whether it draws random numbers: dropout with a probability of 0 does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(step.func, "tags", ()):
        return False
    return _named(step).get("dropout_p") != 0


def _shapes(one: Any, other: Any) -> list[tuple[Shape, Shape]]:
    pairs = zip(tensor_leaves(one), tensor_leaves(other), strict=False)
    return [(_sizes(a), _sizes(b)) for a, b in pairs]


def _sizes(tensor: torch.Tensor) -> Shape:
    sizes = (getattr(getattr(size, "node", None), "hint", size) for size in tensor.shape)
    return tuple(1 if size is None else int(size) for size in sizes)


def _checked(kind: Kind, small: Shape, large: Shape, sizes: Sizes) -> Kind:
    """The kind, if the shapes agree with it.

    Raises:
        MixingError: they do not.
    """
    if isinstance(kind, Rows):
        if small == large:
            return UNKNOWN  # a by-product without samples, such as the state of a generator
        if not sizes.fits(kind, small, large):
            raise MixingError(f"shapes {small} and {large} do not hold the samples along dimension {kind.dim}")
    elif small != large and not (isinstance(kind, (Inverse, Keys, Order)) and sizes.varying(small, large) == [0]):
        raise MixingError(f"shapes {small} and {large}: where the samples are is not known")
    return kind


def _call(one: Step, other: Step, shapes: list[tuple[Shape, Shape]], found: Found, sizes: Sizes) -> Call:
    small, large = _named(one), _named(other)
    kinds: dict[str, Any] = {}
    for name, value in small.items():
        if isinstance(value, torch.Tensor):
            kinds[name] = _kind(value, large[name], found)
        elif isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in value):
            if len(value) != len(large[name]):
                raise MixingError("takes as many tensors as there are samples")
            pairs = zip(value, large[name], strict=True)
            kinds[name] = [_kind(a, b, found) if isinstance(a, torch.Tensor) else None for a, b in pairs]
    origins = {name: found.origins.get(id(small[name])) for name in kinds}
    return Call(one.func, small, large, kinds, shapes, origins, sizes)


def _named(step: Step) -> dict[str, Any]:
    """Arguments by their names in the schema, what is left out at its default."""
    schema = getattr(step.func, "_schema", None)
    if schema is None:
        return {f"argument {i}": value for i, value in enumerate((*step.args, *step.kwargs.values()))}
    named = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    named |= {argument.name: value for argument, value in zip(schema.arguments, step.args, strict=False)}
    return named | step.kwargs


def _kind(one: torch.Tensor, other: Any, found: Found) -> Kind:
    """The kind of a tensor; one that no operator made is a constant, if it is the same at both sizes."""
    if id(one) in found.kinds:
        return found.kinds[id(one)]
    if one.shape != other.shape:
        return UNKNOWN
    plain = type(one) is torch.Tensor and type(other) is torch.Tensor and one.device.type != "meta"
    with unset_fake_temporarily():
        return UNKNOWN if plain and not torch.equal(one, other) else None


def _check_writes(step: Step, kinds: list[Kind], found: Found) -> None:
    """What is written must stay what it was to all who read it.

    Raises:
        MixingError: it does not.
    """
    if not hasattr(step.func, "_schema") or torch.Tag.inplace_view in step.func.tags:
        return  # the second writes no element
    for target in written_tensors(step.func, step.args, step.kwargs):
        before = found.kinds.get(id(target))
        after = next((k for k, t in zip(kinds, tensor_leaves(step.result), strict=True) if t is target), before)
        if after is None and before is not None:
            kinds[:] = [before if kind is None else kind for kind in kinds]
        elif before != after and not _may_become(before, after):
            raise MixingError("writes what depends on the batch into what does not, or in another way")
        elif before != after:
            _change_views(target, after, found)


def _may_become(before: Kind, after: Kind) -> bool:
    """What was the same all along the batch may get samples; an inverse order is written as a whole."""
    return isinstance(before, Rows) and (
        isinstance(after, Inverse) or (before.outer is None and isinstance(after, Rows))
    )


def _change_views(target: torch.Tensor, kind: Kind, found: Found) -> None:
    """Other tensors of the same storage are no longer what they were."""
    storage = target.untyped_storage()._cdata
    for tensor in found.alive:
        if tensor is not target and tensor.untyped_storage()._cdata == storage and found.kinds[id(tensor)] != kind:
            found.kinds[id(tensor)] = _beside(tensor, found.kinds[id(tensor)], target, kind)


def _beside(tensor: torch.Tensor, was: Kind, target: torch.Tensor, kind: Kind) -> Kind:
    """What a view is after a write to another one: its samples are in the same stretches of memory, or unknown."""
    if not isinstance(was, Rows) or not isinstance(kind, Rows) or was.outer not in (None, kind.outer):
        return UNKNOWN
    step = target.stride(kind.dim)
    near = abs(int(tensor.storage_offset()) - int(target.storage_offset())) < step
    same = tensor.shape[was.dim] == target.shape[kind.dim] and tensor.stride(was.dim) == step
    return replace(was, outer=kind.outer) if near and same else UNKNOWN


def _follow_origin(step: Step, made: list[torch.Tensor], found: Found) -> None:
    """A view or a copy of all elements of a tensor has the same elements."""
    given = [value for value in step.args if isinstance(value, torch.Tensor)]
    same = base_name(step.func) in ("view", "clone", "_to_copy", "alias", "_unsafe_view", "squeeze", "unsqueeze",
                                    "permute", "transpose", "t", "detach")  # fmt: skip
    if same and len(made) == 1 and given and id(given[0]) in found.origins:
        found.origins.setdefault(id(made[0]), found.origins[id(given[0])])


def record(run: Callable[[], Any]) -> tuple[list[Step], Any]:
    """The operators that ``run`` runs, and its result."""
    recorder = Recorder()
    with recorder:
        result = run()
    return recorder.steps, result
