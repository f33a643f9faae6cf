"""A model from words: "pkg.mod:callable", "hf:DIR" for the folder of a transformers config.json, or "FILE.pt2"."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

_HINT = "MODEL"


@dataclass(frozen=True)
class Loaded:
    """A model, and the example inputs that came with it: both None where none did."""

    model: nn.Module
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None


def load_model(spec: str, *, allow_code: bool = False) -> Loaded:
    """The model that ``spec`` names.

    Args:
        spec: "pkg.mod:callable": a Module class, or a function without arguments that returns a module, or a module
            and its inputs (a tuple, a dict by name, or one tensor); it is called as it is, so a large model is best
            built under ``torch.device("meta")``. "hf:DIR": a model of random form only, on the meta device, of the
            class that the config names. "FILE.pt2": what torch.export.save wrote.
        allow_code: a .pt2 file may be loaded: that runs code which is in it.

    Raises:
        click.BadParameter: there is no such thing, or it cannot be built; names what is there.
        click.UsageError: a .pt2 file without ``allow_code``.
    """
    kind, colon, rest = spec.partition(":")
    if spec.endswith(".pt2"):
        loaded = _from_exported(Path(spec), allow_code)
    elif not colon or not kind or not rest:
        raise _refused(f"{spec!r} is neither pkg.mod:callable nor hf:DIR nor FILE.pt2")
    else:
        loaded = Loaded(_from_config(Path(rest))) if kind == "hf" else _from_callable(kind, rest)
    if next(loaded.model.parameters(), None) is None:
        raise _refused(f"{type(loaded.model).__name__} has no parameters: there is nothing to place")
    return loaded


# ---------------------------------------------------------------- FILE.pt2


def _from_exported(path: Path, allow_code: bool) -> Loaded:
    if not path.is_file():
        raise _refused(f"no file {str(path)!r}")
    if not allow_code:
        raise click.UsageError(
            f"{path}: loading a .pt2 file runs code that is in it (it is unpickled): if you trust where it is from, "
            "add --allow-code"
        )
    program = _guarded(f"loading {path}", lambda: torch.export.load(path))
    args, kwargs = program.example_inputs or (None, None)
    return Loaded(program.module(), args, kwargs)


# ---------------------------------------------------------------- pkg.mod:callable


def _from_callable(module_name: str, name: str) -> Loaded:
    if os.getcwd() not in sys.path:  # a console script does not have it there
        sys.path.insert(0, os.getcwd())
    found = _attribute(_guarded(f"importing {module_name}", lambda: _import(module_name)), name)
    made = found if isinstance(found, nn.Module) else _called(f"{module_name}:{name}", found)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return _with_inputs(f"{module_name}:{name}", *made)
    if not isinstance(made, nn.Module):
        raise _refused(f"{module_name}:{name} gives a {type(made).__name__}: expected a torch.nn.Module")
    return Loaded(made)


def _with_inputs(spec: str, model: nn.Module, inputs: Any) -> Loaded:
    if isinstance(inputs, torch.Tensor):
        return Loaded(model, (inputs,))
    if isinstance(inputs, Mapping):
        return Loaded(model, None, dict(inputs))
    if isinstance(inputs, tuple | list):
        return Loaded(model, tuple(inputs))
    raise _refused(
        f"{spec} gives a module and a {type(inputs).__name__}: expected its inputs, as a tuple, a dict by name, or one "
        "tensor"
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the user's module imports
        raise _refused(f"no module {error.name!r}; looked in {os.getcwd()} and the installed packages") from error


def _attribute(module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [known for known in dir(found) if callable(getattr(found, known, None)) and known[0] != "_"]
            close = difflib.get_close_matches(part, public, n=1)
            raise _refused(f"{module.__name__} has no {part!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        found = getattr(found, part)
    return found


def _called(spec: str, found: Any) -> Any:
    if not callable(found):
        raise _refused(f"{spec} is a {type(found).__name__}: expected a Module class, or a function that makes one")
    needed = [p.name for p in _parameters(found) if p.default is p.empty and p.kind not in _VARIADIC]
    if needed:
        raise _refused(f"{spec} needs {', '.join(needed)}: name a function without arguments that makes the model")
    return _guarded(f"calling {spec}", found)


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have none
        return []


def _guarded(doing: str, run: Callable[[], Any]) -> Any:
    """Run the user's code; what it raises is told with its line, as the user's own error."""
    try:
        return run()
    except click.ClickException:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error}"
        raise _refused(f"{doing} raised {what} ({last.filename}:{last.lineno}); --debug shows all") from error


# ---------------------------------------------------------------- hf:DIR


def _from_config(folder: Path) -> nn.Module:
    raw = _read(folder)
    try:
        import transformers
    except ImportError as error:
        raise _refused("hf:DIR needs transformers: pip install transformers") from error
    _check_known(raw, transformers.CONFIG_MAPPING)
    made: nn.Module = _guarded(f"building the model of {folder / 'config.json'}", lambda: _build(folder, transformers))
    return made


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise _refused(f"no file {str(path)!r}: hf:DIR is a local folder with a config.json; nothing is downloaded")
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _refused(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise _refused(f"{path} holds a {type(raw).__name__}: expected an object with a model_type")
    return raw


def _check_known(raw: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Only classes that transformers has: code beside the config is never run."""
    model_type = raw.get("model_type")
    if model_type not in known:
        code = "; its code (auto_map) is not run" if "auto_map" in raw else ""
        close = difflib.get_close_matches(str(model_type), list(known), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise _refused(f"model_type {model_type!r} is not one that transformers has{code}{hint}")
    if raw.get("quantization_config"):
        raise _refused("quantization_config: quantised weights cannot be planned yet; remove it to plan without")


def _build(folder: Path, transformers: Any) -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    names = config.architectures or []
    found = getattr(transformers, names[0], None) if names and names[0].isidentifier() else None
    if names and not (inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel)):
        raise _refused(f"architecture {names[0]!r} is not one that this transformers has")
    default = torch.get_default_dtype()
    with torch.device("meta"):
        try:
            torch.set_default_dtype(_dtype(config) or default)
            made: nn.Module = found(config) if found is not None else transformers.AutoModel.from_config(config)
            return made
        finally:
            torch.set_default_dtype(default)


def _dtype(config: Any) -> torch.dtype | None:
    dtype = getattr(config, "dtype", None)
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype


def _refused(why: str) -> click.BadParameter:
    return click.BadParameter(why, param_hint=_HINT)
