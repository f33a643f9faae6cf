"""Fake tensors whose operators are looked up by the forms of their arguments, once they were computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from autosplit.program.facts import tensor_leaves

_MOST = 20_000
"""Calls that are remembered; then all are forgotten."""

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.layout, torch.memory_format, torch.device)
_TENSORS = ("Tensor", "Optional[Tensor]", "List[Tensor]")
_known: dict[Any, Any] = {}


def fake_mode() -> FakeTensorMode:
    """A FakeTensorMode that remembers what operators return: torch's own cache takes three times as long to ask.

    Only what every kernel keeps to is remembered: new tensors, from an operator that says that it writes to none; one
    view of the first argument; and an operator in place, which changes nothing that a fake has.

    It is no class of its own: higher-order operators look up what to do by the class of the mode.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.dispatch = _Remembering(mode).dispatch  # type: ignore[method-assign]  # no subclass: see above
    return mode


class _Remembering:
    """What runs operators in place of a mode's own ``dispatch``."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._dispatch = mode.dispatch

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on fakes; torch's modes call it."""
        kind, devices = _returns(func), _Devices()
        key = self._key(func, args, kwargs or {}, devices) if kind else None
        if key is None:
            return self._dispatch(func, types, args, kwargs or {})
        known = _known.get(key)
        if known is not None:
            return known.result(self._mode, args, devices)
        run = self._distinct(args) if kind == "nothing" and not kwargs and _is_by_element(func) else args
        result = self._dispatch(func, types, run, kwargs or {})
        made = kind in ("new", "view")
        recipe = _made_of(result, args, kwargs or {}, devices) if made else _Written(kind == "first")
        if recipe is not None:
            if len(_known) >= _MOST:
                _known.clear()
            _known[key] = recipe
        return result

    def _distinct(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of lists as long as each other, the elements of which no earlier ones have the forms."""
        lists = [arg for arg in args if type(arg) in (list, tuple)]
        if len({*map(len, lists)}) != 1:
            return args
        first: dict[Any, int] = {}
        for i, elements in enumerate(zip(*lists, strict=True)):
            found: list[Any] = []
            self._add(elements, found, _Devices())  # each element by itself
            first.setdefault(tuple(found), i)
        return tuple([arg[i] for i in first.values()] if type(arg) in (list, tuple) else arg for arg in args)

    def _key(self, func: Any, args: Any, kwargs: dict[str, Any], devices: _Devices) -> Any:
        """Equal for two calls that return the same forms; None for one that is not to be remembered.

        ``devices`` gets those of the call in the order in which they come.
        """
        found: list[Any] = [func, torch.get_default_dtype(), torch.is_inference_mode_enabled()]
        if not self._add(args, found, devices) or (kwargs and not self._add(kwargs, found, devices)):
            return None
        found += [device.type for device in devices]
        return tuple(found)

    def _add(self, value: Any, found: list[Any], devices: _Devices) -> bool:
        kind = type(value)
        if kind is FakeTensor:
            if value.fake_mode is not self._mode or value.constant is not None or not _is_plain(value):
                return False
            place = devices.place(value.fake_device)
            found.extend((value.shape, value.stride(), value.storage_offset(), value.dtype, place))
            return True
        if kind in (tuple, list, torch.Size) or kind is dict:
            found.append(len(value))
            if kind is dict:
                found.extend(value)
                value = value.values()
            return all(self._add(item, found, devices) for item in value)
        found.append(kind)
        found.append(devices.place(value) if kind is torch.device else value)
        return kind in _PLAIN


class _Devices(list[torch.device]):
    """Those of a call, in the order in which they come: one like it elsewhere returns the same forms there."""

    def place(self, device: torch.device) -> int:
        """The device's number."""
        if device not in self:
            self.append(device)
        return self.index(device)


@dataclass(frozen=True)
class _Written:
    """What an operator in place returns: its first argument, or nothing."""

    returned: bool

    def result(self, mode: FakeTensorMode, args: Any, devices: _Devices) -> Any:
        return args[0] if self.returned else None


@dataclass(frozen=True)
class _View:
    """A view of the first argument."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def result(self, mode: FakeTensorMode, args: Any, devices: _Devices) -> Any:
        viewed = args[0]
        with in_kernel_invocation_manager(mode):
            made = torch.empty(0, dtype=self.dtype, device="meta")
            made.set_(viewed.untyped_storage(), self.offset, self.shape, self.stride)
        return FakeTensor(mode, made, viewed.fake_device)


@dataclass(frozen=True)
class _New:
    """New tensors by shape, stride, dtype and the number of the device; None where an operator returned none.

    ``kind`` is tuple or list, and None where the operator returns one tensor as it is.
    """

    recipes: Sequence[tuple[tuple[int, ...], tuple[int, ...], torch.dtype, int] | None]
    kind: type[Any] | None

    def result(self, mode: FakeTensorMode, args: Any, devices: _Devices) -> Any:
        made: list[Any] = []
        with in_kernel_invocation_manager(mode):
            for recipe in self.recipes:
                made.append(recipe and torch.empty_strided(recipe[0], recipe[1], dtype=recipe[2], device="meta"))
        for i, recipe in enumerate(self.recipes):
            made[i] = None if recipe is None else FakeTensor(mode, made[i], devices[recipe[3]])
        return self.kind(made) if self.kind else made[0]


def _is_plain(tensor: FakeTensor) -> bool:
    """Whether size, stride, dtype and device are all that an operator's result depends on."""
    symbolic = tensor._has_symbolic_sizes_strides
    return not (symbolic or tensor.dtype.is_complex or tensor.is_neg()) and tensor.layout is torch.strided


@cache
def _returns(func: Any) -> Literal["new", "view", "first", "nothing"] | None:
    """What an operator returns: new tensors, a view, its first argument, or nothing; None: it is not remembered."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
        return None  # also prims, whose schemas say of views that they write
    if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view} & {*func.tags}:
        return None
    given, returned = func._schema.arguments, func._schema.returns
    if not given or str(given[0].type) not in _TENSORS or any(str(value.type) not in _TENSORS for value in returned):
        return None  # what makes tensors of nothing looks at more than its arguments
    aliases = {i: value.alias_info for i, value in enumerate((*given, *returned)) if value.alias_info is not None}
    writes = tuple((place, alias.is_write) for place, alias in aliases.items())
    back = len(given)  # the place of what is returned
    kinds: dict[Any, Literal["new", "view", "first", "nothing"]] = {
        ((0, False), (back, False)): "view",
        ((0, True), (back, True)): "first",
        ((0, True),): "nothing",
    }
    if not writes:
        return "new" if returned else None
    return kinds.get(writes) if len(returned) == (0 if kinds.get(writes) == "nothing" else 1) else None


@cache
def _is_by_element(func: Any) -> bool:
    """Whether an operator does the same to each place of its lists: on fakes torch takes them one after the other."""
    return bool(func._schema.name.startswith("aten::_foreach_"))


def _made_of(result: Any, args: Any, kwargs: dict[str, Any], devices: _Devices) -> _New | _View | None:
    """How to make the result again: a view, or new tensors that own what they need and no more; else None."""
    if _is_view(result, args[0]):
        return _View(tuple(result.shape), result.stride(), result.storage_offset(), result.dtype)
    kind = type(result) if type(result) in (tuple, list) else None
    values = result if kind else [result]
    tensors = [tensor for tensor in values if tensor is not None]
    if not tensors or not all(type(t) is FakeTensor and t.constant is None and _is_plain(t) for t in tensors):
        return None
    held = [tensor.untyped_storage()._cdata for tensor in tensors]
    given = {value.untyped_storage()._cdata for value in tensor_leaves((args, kwargs))}  # all plain: there is a key
    if len({*held}) < len(held) or given & {*held} or not all(_owns(tensor) for tensor in tensors):
        return None
    if any(tensor.fake_device not in devices for tensor in tensors):
        return None
    place = devices.index
    recipes = [v if v is None else (tuple(v.shape), v.stride(), v.dtype, place(v.fake_device)) for v in values]
    return _New(recipes, kind)


def _is_view(result: Any, viewed: Any) -> bool:
    """Whether the result is another tensor in the memory of the first argument (also of ``_unsafe_view``)."""
    if type(result) is not FakeTensor or type(viewed) is not FakeTensor or result is viewed or not _is_plain(result):
        return False
    same = result.untyped_storage()._cdata == viewed.untyped_storage()._cdata
    return same and result.constant is None and result.fake_device == viewed.fake_device


def _owns(tensor: FakeTensor) -> bool:
    extent = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    needs = extent * tensor.element_size() if tensor.numel() else 0
    return not tensor.storage_offset() and tensor.untyped_storage().nbytes() == needs
