"""Tensors in nested values and in the objects that hold them (a KV cache, a dataclass): replaced, and put back."""

from __future__ import annotations

import dataclasses
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

Visit = Callable[[torch.Tensor, bool], torch.Tensor]
"""Replaces a tensor; told whether it came by plain containers only: tuples, lists, dicts and dataclasses."""

_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.layout, torch.Generator,
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, nn.Module,
)  # fmt: skip
_NUMBERS = (int, float, str, type(None))
_INDEXED = (list, dict, deque)
_LONG = 1024  # a list this long that starts with a number or a word is data, not a holder of tensors


@dataclass(frozen=True)
class Slot:
    """A place in an object or container where a tensor is held."""

    holder: Any
    key: Any

    def get(self) -> Any:
        """What is there now; None when the place is gone."""
        if isinstance(self.holder, _INDEXED):
            try:
                return self.holder[self.key]
            except (KeyError, IndexError):
                return None
        return getattr(self.holder, self.key, None)

    def set(self, value: Any) -> None:
        """Put ``value`` there."""
        if isinstance(self.holder, _INDEXED):
            self.holder[self.key] = value
        elif hasattr(self.holder, "__dict__") and self.key in self.holder.__dict__:
            self.holder.__dict__[self.key] = value  # a frozen dataclass, too
        else:
            object.__setattr__(self.holder, self.key, value)


class Exchange:
    """Replaces every tensor in nested values.

    Tuples are rebuilt. Lists and dicts of the caller are copied, so that no other thread sees the replacements, and
    what was done to the copies is done to the originals by ``put_back``. Any other object keeps its identity: the
    tensors it holds are replaced in place.

    Args:
        visit: gives the replacement of a tensor.
        copies: copy plain lists and dicts, rather than change them in place.
        known: what to put in the place of a list or dict, by its id.
    """

    def __init__(self, visit: Visit, *, copies: bool, known: Mapping[int, Any] | None = None) -> None:
        self._known = known or {}
        self._visit = visit
        self._copies = copies
        self._seen: dict[int, Any] = {}
        self._alive: list[Any] = []  # so that ids stay theirs
        self._copied: list[tuple[Any, Any, list[Any]]] = []
        self.slots: list[tuple[Slot, Any, Any]] = []  # with what was there, and what is there instead

    def __call__(self, value: Any, plain: bool = True) -> Any:
        """``value`` with every tensor replaced."""
        if isinstance(value, torch.Tensor):
            return self._visit(value, plain)
        if _is_atom(value):
            return value
        if id(value) in self._seen:
            return self._seen[id(value)]
        value = self._known.get(id(value), value)
        self._alive.append(value)
        if isinstance(value, tuple):
            self._seen[id(value)] = rebuilt = self._tuple(value, plain)
            return rebuilt
        if self._copies and plain and type(value) in (list, dict):
            return self._copy(value)
        self._seen[id(value)] = value
        for slot, held in list(_held(value)):
            self._in_place(slot, held, plain and _is_plain(value))
        return value

    def put_back(self, real: Mapping[int, torch.Tensor]) -> None:
        """Undo the replacements, but for what was put in their place meanwhile.

        Args:
            real: the tensor that each replacement stands for, by the replacement's id.
        """
        for slot, was, instead in self.slots:
            now = slot.get()
            if now is instead:
                slot.set(was)
            elif id(now) in real:
                slot.set(real[id(now)])
        originals = {id(copied): original for original, copied, _ in self._copied}
        for original, copied, before in self._copied:
            after = _items(copied)
            if len(after) != len(before) or any(a is not b for a, b in zip(after, before, strict=True)):
                _refill(original, copied, lambda item: real.get(id(item), originals.get(id(item), item)))

    def originals(self) -> dict[int, Any]:
        """The caller's list or dict by the id of its copy."""
        return {id(copied): original for original, copied, _ in self._copied}

    def copied(self) -> list[Any]:
        """The copies of lists and dicts."""
        return [copied for _, copied, _ in self._copied]

    def _tuple(self, value: tuple[Any, ...], plain: bool) -> Any:
        if isinstance(value, PackedSequence):  # torch wants its batch sizes on the host, wherever the data are
            plain_parts = [self(part, plain) for part in (value.data, value.sorted_indices, value.unsorted_indices)]
            return PackedSequence(plain_parts[0], value.batch_sizes, *plain_parts[1:])
        items = [self(item, plain) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        rebuilt = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        self._alive.append(rebuilt)
        return rebuilt

    def _copy(self, value: Any) -> Any:
        copied: Any = type(value)()
        self._seen[id(value)] = copied
        if isinstance(value, dict):
            copied.update({key: self(item) for key, item in value.items()})
        elif not _is_data(value):
            copied.extend(self(item) for item in value)
        else:
            copied.extend(value)
        self._copied.append((value, copied, _items(copied)))
        return copied

    def _in_place(self, slot: Slot, held: Any, plain: bool) -> None:
        new = self(held, plain)
        if new is not held:
            self.slots.append((slot, held, new))
            slot.set(new)


class Snapshot:
    """What objects hold, to be put back as it was: planning leaves no trace.

    Args:
        values: everything that mutable objects reached from here hold is remembered; tensors' data are not.
        shallow: lists, dicts and sets of which only what they hold themselves is remembered.
        spaces: dicts, such as a module's globals, of which only numbers and words are remembered.
    """

    def __init__(
        self, values: Iterable[Any], shallow: Iterable[Any] = (), spaces: Iterable[dict[str, Any]] = ()
    ) -> None:
        self._numbers = [(space, {k: v for k, v in space.items() if isinstance(v, _NUMBERS)}) for space in spaces]
        self._before: list[tuple[Any, Any]] = [(value, value.copy()) for value in shallow]
        self._slots: list[tuple[Slot, Any]] = []  # of objects, which may keep them out of __dict__
        seen: set[int] = set()
        pending = list(values)
        while pending:
            value = pending.pop()
            if isinstance(value, torch.Tensor) or _is_atom(value) or id(value) in seen:
                continue
            seen.add(id(value))
            state = value if isinstance(value, (*_INDEXED, set)) else getattr(value, "__dict__", None)
            if isinstance(state, (*_INDEXED, set)):
                self._before.append((state, state.copy()))
            slots = _held(value)
            self._slots += [(slot, held) for slot, held in slots if not isinstance(slot.holder, (*_INDEXED, tuple))]
            pending += [held for _, held in slots]

    def restore(self) -> None:
        """Put everything back."""
        for space, numbers in self._numbers:
            if any(space.get(key) is not value for key, value in numbers.items()):
                space.update(numbers)
        for state, before in self._before:
            if isinstance(state, (list, deque)):
                if len(state) != len(before) or any(a is not b for a, b in zip(state, before, strict=True)):
                    state.clear()
                    state.extend(before)
            elif _differs(state, before):
                state.clear()
                state.update(before)
        for slot, held in self._slots:
            if slot.get() is not held:
                slot.set(held)


def to_device(result: Any, device: torch.device, stay: Collection[int] = ()) -> Any:
    """The nested result with its tensors on ``device``.

    What an object such as a KV cache holds stays in its place; so do parameters, and tensors whose id is in ``stay``.
    """

    def visit(tensor: torch.Tensor, plain: bool) -> torch.Tensor:
        stays = not plain or isinstance(tensor, nn.Parameter) or id(tensor) in stay
        return tensor if stays or tensor.device == device else tensor.to(device)

    return visit(result, True) if isinstance(result, torch.Tensor) else Exchange(visit, copies=False)(result)


def first_device(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device | None:
    """Where the first tensor is that came by plain containers, else the first that an object holds; else None."""
    plain: list[torch.device] = []
    held: list[torch.device] = []

    def visit(tensor: torch.Tensor, is_plain: bool) -> torch.Tensor:
        (plain if is_plain else held).append(tensor.device)
        return tensor

    Exchange(visit, copies=False)((*args, *kwargs.values()))
    return next(iter(plain + held), None)


def _differs(state: Any, before: Any) -> bool:
    if isinstance(state, set):
        return bool(state != before)
    return list(state) != list(before) or any(state[key] is not before[key] for key in before)


def _held(value: Any) -> Iterable[tuple[Slot, Any]]:
    """The places of a container or an object, with what they hold."""
    if isinstance(value, tuple):
        return [(Slot(value, i), item) for i, item in enumerate(value)]
    if isinstance(value, (list, deque)):
        return [] if _is_data(value) else [(Slot(value, i), item) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return [(Slot(value, key), item) for key, item in value.items()]
    if hasattr(value, "__dict__"):
        return [(Slot(value, key), item) for key, item in vars(value).items()]
    slots = [name for cls in type(value).__mro__ for name in _slot_names(cls)]
    return [(Slot(value, key), getattr(value, key)) for key in slots if hasattr(value, key)]


def _slot_names(cls: type) -> list[str]:
    names = cls.__dict__.get("__slots__", ())
    listed = [names] if isinstance(names, str) else list(names)
    private = [n for n in listed if n.startswith("__") and not n.endswith("__")]
    return [f"_{cls.__name__.lstrip('_')}{n}" if n in private else n for n in listed]


def _is_atom(value: Any) -> bool:
    return isinstance(value, _ATOMS) or type(value).__module__.startswith("autosplit.")  # our own state is not theirs


def _is_plain(value: Any) -> bool:
    return isinstance(value, (list, dict)) or dataclasses.is_dataclass(value)


def _is_data(value: list[Any] | deque[Any]) -> bool:
    return len(value) > _LONG and isinstance(value[0], _ATOMS)


def _items(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [part for pair in container.items() for part in pair]
    return list(container)


def _refill(original: Any, copied: Any, undo: Callable[[Any], Any]) -> None:
    if isinstance(original, dict):
        fresh = {key: undo(item) for key, item in copied.items()}
        original.clear()
        original.update(fresh)
    else:
        original[:] = [undo(item) for item in copied]
