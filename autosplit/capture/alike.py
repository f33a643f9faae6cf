"""Which modules are alike in all that Dynamo's guards do not tell apart.

Guards compare what a layer reads by value where that is a number or a word. They do not always see that two objects in
a layer are one, nor that a class, an enumeration's member or a method of its own differs. Here a layer is written down
as the graph of objects that it is, with equal words for what guards compare.
"""

from __future__ import annotations

import enum
import functools
import types
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

_GUARDED = (type(None), bool, int, float, complex, str, bytes)
_VALUES = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_SEQUENCES = (list, tuple, deque)
_Form = tuple[Any, ...]


def groups(modules: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """The modules, those that are alike together, in order. O(objects that they hold)."""
    shared = _shared(modules)
    found: dict[_Form, list[nn.Module]] = {}
    for module in modules:
        found.setdefault(_form(module, shared), []).append(module)
    return list(found.values())


def _shared(modules: Sequence[nn.Module]) -> set[int]:
    """Ids of objects that more than one of the modules comes to; what only those come to is left out."""
    owner: dict[int, int] = {}
    shared: set[int] = set()
    for number, module in enumerate(modules):
        waiting: list[Any] = [module]
        while waiting:
            value = waiting.pop()
            _, inside = _parts(value, value is module)
            if inside is None or owner.get(id(value)) == number:
                continue
            if owner.setdefault(id(value), number) != number:
                shared.add(id(value))
            else:
                waiting.extend(inside)
    return shared


def _form(module: nn.Module, shared: set[int]) -> _Form:
    """Equal for modules that are alike: what each object is, by number where it came before, in order."""
    numbers: dict[int, int] = {}
    found: list[Any] = []
    waiting: list[Any] = [module]
    while waiting:
        value = waiting.pop()
        kind, inside = _parts(value, value is module)
        if inside is None:
            found.append(kind)
        elif id(value) in shared and value is not module:
            found.append(("shared", id(value)))
        elif id(value) in numbers:
            found.append(numbers[id(value)])
        else:
            numbers[id(value)] = len(numbers)
            found.append((kind, len(inside)))
            waiting.extend(reversed(inside))
    return tuple(found)


def _parts(value: Any, is_layer: bool) -> tuple[Any, list[Any] | None]:
    """What a value is, apart from the values in it, and those; None where the first alone tells what it is."""
    kind = type(value)
    if kind in _GUARDED:  # of floats, 0 and -0 are equal, but not alike
        return (kind, repr(value) if kind in (float, complex) and not value else ""), None
    if kind in _VALUES:
        return (kind, repr(value)), None
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, enum.Enum, *_GUARDED[1:])):
        return id(value), None
    if isinstance(value, torch.Tensor):
        return _of_tensor(value)
    return _of_function(value) or _of_object(value, is_layer)


def _of_function(value: Any) -> tuple[Any, list[Any]] | None:
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return (id(value.__code__), id(value.__globals__)), [value.__defaults__, value.__kwdefaults__, *cells]
    if isinstance(value, types.MethodType):
        return types.MethodType, [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return type(value), [value.func, value.args, value.keywords, *vars(value).values()]
    return None


def _of_tensor(tensor: torch.Tensor) -> tuple[Any, list[Any] | None]:
    if tensor.layout is not torch.strided:
        return id(tensor), None
    form = tensor.shape, tensor.stride(), str(tensor.dtype), str(tensor.device), tensor.requires_grad
    return (type(tensor), *form), []


def _of_object(value: Any, is_layer: bool) -> tuple[Any, list[Any] | None]:
    """A container, an object with attributes, or both; what is in any other is not seen, and it is told by its id."""
    kind, inside, words = type(value), list[Any](), list[Any]()
    attributes = dict(_attributes(value))
    known = isinstance(value, (*_SEQUENCES, dict, set, frozenset))
    if not known and not attributes and not hasattr(value, "__dict__"):
        return id(value), None
    if isinstance(value, _SEQUENCES):
        inside += value
    elif isinstance(value, dict):
        words += map(_word, value)
        inside += (key for key in value if _word(key) is None)
        inside += value.values()
    elif known:
        words += sorted(repr(_word(item) or id(item)) for item in value)
    if isinstance(value, nn.Module):  # hooks of the layer itself are called around what is traced once
        unseen = "_hook" if is_layer else "state_dict"
        attributes = {name: held for name, held in attributes.items() if unseen not in name}
    return (kind, *words, None, *attributes), [*inside, *attributes.values()]


def _word(key: Any) -> Any:
    """A key that is told by its value; None for another."""
    return (type(key), repr(key)) if type(key) in _GUARDED else None


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds in its ``__dict__`` and its slots."""
    yield from (getattr(value, "__dict__", None) or {}).items()
    for cls in type(value).__mro__:
        yield from _slots(value, vars(cls).items())


def _slots(value: Any, members: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, member in members:
        if isinstance(member, types.MemberDescriptorType):
            try:
                yield name, member.__get__(value)
            except AttributeError:  # never set
                yield f"{name} unset", None


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:
        return False
