"""Example inputs from words: "ids=i64:4x2048" is the keyword argument ids, an int64 tensor of 4 x 2048."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autosplit.cli.models import Loaded

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

_MEANT = {
    "int": ("i64", "i32"),
    "integer": ("i64", "i32"),
    "long": ("i64",),
    "float": ("f32",),
    "double": ("f64",),
    "half": ("f16",),
    "fp16": ("f16",),
    "bfloat": ("bf16",),
    "short": ("i16",),
    "byte": ("u8",),
    "complex": ("c64",),
}
"""What is meant by other names of types, where the nearest of ours is another one."""

_LARGEST = 2**48  # elements: far above any tensor, far below what overflows a count of bytes
_HINT = "--input"
_DEFAULT_LENGTH = 128  # tokens of the sequence that is planned for when none is given
_FORM = re.compile(r"(\w+)\[(\d{1,18}(?:, \d{1,18})*)?\]", re.ASCII)
_SIZES = re.compile(r"\d{1,18}(\.\.\d{1,18})?(x\d{1,18}(\.\.\d{1,18})?)*", re.ASCII)


@dataclass(frozen=True)
class InputSpec:
    """Form of one input: torch's name of its element type, and its sizes (none: one number).

    ``ranges`` is what was written where a size is a range, as in "1..8x2048"; ``sizes`` then has the largest.
    """

    dtype: str
    sizes: tuple[int, ...]
    ranges: str = ""


@dataclass(frozen=True)
class Inputs:
    """The inputs of the call to plan, and what is assumed about them, in words."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    said: tuple[str, ...] = ()


def parse_inputs(words: Sequence[str]) -> dict[str, InputSpec]:
    """The forms of inputs by argument name.

    Raises:
        click.BadParameter: a word is not NAME=TYPE:SIZES, or a name is given twice.

    >>> parse_inputs(["ids=i64:4x2048", "t=f32:"])["ids"]
    InputSpec(dtype='int64', sizes=(4, 2048), ranges='')
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


def form_of(text: str) -> InputSpec | None:
    """The form of an input as a plan file has it; None where it is none: a file may say anything.

    >>> form_of("int64[4, 2048]"), form_of("hub[1]")
    (InputSpec(dtype='int64', sizes=(4, 2048), ranges=''), None)
    """
    found = _FORM.fullmatch(text)
    if found is None or found[1] not in TYPES.values():
        return None
    sizes = tuple(int(size) for size in (found[2] or "").split(", ") if size)
    return InputSpec(found[1], sizes) if math.prod(sizes) <= _LARGEST else None


def example_inputs(loaded: Loaded, specs: Mapping[str, InputSpec]) -> Inputs:
    """The inputs to plan with: as written, else as they came with the model, else a default for its kind.

    Raises:
        click.UsageError: an argument that forward does not have, or one that it needs is missing.
    """
    if specs:
        ranges = {name: spec for name, spec in specs.items() if spec.ranges}
        said = (f"inputs: {name} {s.ranges}: planned at its largest, {_sizes(s)}" for name, s in ranges.items())
        return Inputs((), bind(loaded.model, specs), tuple(said))
    if loaded.args is not None or loaded.kwargs is not None:
        return Inputs(loaded.args or (), loaded.kwargs or {}, ("inputs: as they came with the model",))
    defaults = _defaults(loaded.model)
    if not defaults:
        return Inputs((), bind(loaded.model, specs))
    short = {dtype: kind for kind, dtype in TYPES.items()}
    words = " ".join(f"--input {name}={short[spec.dtype]}:{_sizes(spec)}" for name, spec in defaults.items())
    return Inputs((), bind(loaded.model, defaults), (f"inputs: none were given; taken as {words}",))


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


def _sizes(spec: InputSpec) -> str:
    return "x".join(map(str, spec.sizes))


def _defaults(model: Any) -> dict[str, InputSpec]:
    """For a model of transformers, one short sequence or one image; nothing for what is not known."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return {}
    config, main = model.config, model.main_input_name
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(isinstance(number, int) for number in (*sides, channels)):
            return {}
        dtype = str(model.dtype).removeprefix("torch.")
        return {main: InputSpec(dtype if dtype in TYPES.values() else "float32", (1, channels, *sides))}
    if main != "input_ids":
        return {}
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    ids = InputSpec("int64", (1, min(_DEFAULT_LENGTH, longest) if isinstance(longest, int) else _DEFAULT_LENGTH))
    return {main: ids, "decoder_input_ids": ids} if config.is_encoder_decoder else {main: ids}


def _parse(word: str, spec: str) -> InputSpec:
    kind, colon, sizes = (part.strip() for part in spec.partition(":"))
    if not colon:
        raise _refused(word, f"the element type is missing or ends without ':'; write {word.partition('=')[0]}=f32:2x3")
    dtype = TYPES.get(kind, kind)
    if dtype not in TYPES.values():
        meant = f" (did you mean {' or '.join(map(repr, _MEANT[kind]))}?)" if kind in _MEANT else ""
        raise _refused(word, f"unknown element type {kind!r}{meant or _near(kind, [*TYPES, *TYPES.values()])}")
    if not sizes:
        return InputSpec(dtype, ())
    if not _SIZES.fullmatch(sizes):
        raise _refused(word, f"sizes {sizes!r}: expected whole numbers joined by 'x', as in 4x2048 or 1..8x2048")
    ranges = [[int(end) for end in size.split("..")] for size in sizes.split("x")]
    for ends in ranges:
        if ends[0] > ends[-1]:
            raise _refused(word, f"sizes {sizes!r}: {ends[0]}..{ends[1]} is from the larger to the smaller")
    numbers = tuple(ends[-1] for ends in ranges)
    count = 1
    for number in numbers:
        count *= number
    if not 0 < count <= _LARGEST:
        raise _refused(word, f"sizes {sizes!r}: {count} elements; expected 1 to {_LARGEST}")
    return InputSpec(dtype, numbers, sizes if ".." in sizes else "")


def _check_names(model: nn.Module, specs: Mapping[str, InputSpec]) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in by_name]
    takes = f"{type(model).__name__}.forward takes {', '.join(names) or 'no argument by name'}"
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)  # as transformers' do, for what they pass on
    for name in specs:
        meant = _near(name, [known for known in names if known not in specs] if takes_any else names)
        if name not in names and (meant or not takes_any):
            raise click.BadParameter(f"no argument {name!r}{meant}; {takes}", param_hint=_HINT)
    missing = [p.name for p in by_name if p.default is p.empty and p.name not in specs]
    if missing or not specs:
        example = missing[0] if missing else names[0] if names else "x"
        what = f"missing input {', '.join(missing)}" if missing else "no input"
        raise click.UsageError(f"{what}: {takes}; add --input {example}=TYPE:SIZES")


def _refused(word: str, why: str) -> click.BadParameter:
    return click.BadParameter(f"{word!r}: {why}", param_hint=_HINT)


def _near(name: str, known: Sequence[str]) -> str:
    """A hint at the name that was probably meant, else at a few known ones."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
