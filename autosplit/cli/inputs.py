"""Example inputs from words: "ids=i64:4x2048" is the keyword argument ids, an int64 tensor of 4 x 2048."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch
    from torch import nn

TYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
    "c64": "complex64",
}
"""Element types by short name; torch's own names are understood too."""

_LARGEST = 2**48  # elements: far above any tensor, far below what overflows a count of bytes
_HINT = "--input"


@dataclass(frozen=True)
class InputSpec:
    """Form of one input: torch's name of its element type, and its sizes (none: one number)."""

    dtype: str
    sizes: tuple[int, ...]


def parse_inputs(words: Sequence[str]) -> dict[str, InputSpec]:
    """The forms of inputs by argument name.

    Raises:
        click.BadParameter: a word is not NAME=TYPE:SIZES, or a name is given twice.

    >>> parse_inputs(["ids=i64:4x2048", "t=f32:"])["ids"]
    InputSpec(dtype='int64', sizes=(4, 2048))
    """
    specs: dict[str, InputSpec] = {}
    for word in words:
        name, equals, spec = (part.strip() for part in word.partition("="))
        if not equals or not name.isidentifier():
            raise _refused(word, "expected NAME=TYPE:SIZES, as in ids=i64:4x2048")
        if name in specs:
            raise _refused(word, f"{name} is given twice; give each argument once")
        specs[name] = _parse(word, spec)
    return specs


def bind(model: nn.Module, specs: Mapping[str, InputSpec]) -> dict[str, torch.Tensor]:
    """Tensors without data for the arguments of ``model.forward``.

    Raises:
        click.UsageError: an argument that forward does not have, or one that it needs is missing.
    """
    import torch

    _check_names(model, specs)
    return {
        name: torch.empty(spec.sizes, dtype=getattr(torch, spec.dtype), device="meta") for name, spec in specs.items()
    }


def _parse(word: str, spec: str) -> InputSpec:
    kind, colon, sizes = (part.strip() for part in spec.partition(":"))
    if not colon:
        raise _refused(word, f"the element type is missing or ends without ':'; write {word.partition('=')[0]}=f32:2x3")
    dtype = TYPES.get(kind, kind)
    if dtype not in TYPES.values():
        raise _refused(word, f"unknown element type {kind!r}{_near(kind, [*TYPES, *TYPES.values()])}")
    if not sizes:
        return InputSpec(dtype, ())
    if not re.fullmatch(r"\d+(x\d+)*", sizes, re.ASCII):
        raise _refused(word, f"sizes {sizes!r}: expected whole numbers joined by 'x', as in 4x2048")
    numbers = tuple(int(size) for size in sizes.split("x"))
    count = 1
    for number in numbers:
        count *= number
    if not 0 < count <= _LARGEST:
        raise _refused(word, f"sizes {sizes!r}: {count} elements; expected 1 to {_LARGEST}")
    return InputSpec(dtype, numbers)


def _check_names(model: nn.Module, specs: Mapping[str, InputSpec]) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in by_name]
    takes = f"{type(model).__name__}.forward takes {', '.join(names) or 'no argument by name'}"
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in specs:
            if name not in names:
                raise click.BadParameter(f"no argument {name!r}{_near(name, names)}; {takes}", param_hint=_HINT)
    missing = [p.name for p in by_name if p.default is p.empty and p.name not in specs]
    if missing or not specs:
        example = missing[0] if missing else names[0] if names else "x"
        raise click.UsageError(f"missing input {', '.join(missing)}: {takes}; add --input {example}=TYPE:SIZES")


def _refused(word: str, why: str) -> click.BadParameter:
    return click.BadParameter(f"{word!r}: {why}", param_hint=_HINT)


def _near(name: str, known: Sequence[str]) -> str:
    """A hint at the name that was probably meant, else at a few known ones."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
