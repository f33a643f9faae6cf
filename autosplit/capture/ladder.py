"""The ladder: one graph; several where forward breaks; what no graph can hold, as it is; at last module by module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from autosplit.capture.around import check_arguments, in_mode, without_parts
from autosplit.capture.dynamo import quiet
from autosplit.capture.frontend import CAPTURE_LOCK, Frontend, part_names
from autosplit.capture.record import ForwardError, Record, record
from autosplit.capture.recorder import Call
from autosplit.errors import CaptureError
from autosplit.graph import Mode
from autosplit.placement import Rung
from autosplit.program import Program, module_path

_ONE_OPERATOR = 2  # nodes: a module as small as nn.Linear is one operator, which needs no capture


@dataclass(frozen=True)
class Captured:
    """A model, captured as far up the ladder as it goes.

    Attributes:
        program: the whole call as one program, to plan from.
        rung: how far.
        parts: what serves each submodule that is a graph of its own, by path; none on the first rung.
        notes: each fall: what could not be captured, where, and why.
        on_data: forward looks at data, so it was run to be recorded.
    """

    program: Program
    rung: Rung
    parts: dict[str, Frontend] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    on_data: bool = False

    def is_planned(self, module: str) -> bool:
        """Whether the operators of ``module`` run where the plan puts each; else they follow their weights."""
        return self.rung == "graph" or any(module == path or module.startswith(f"{path}.") for path in self.parts)


def climb(
    frontend: Frontend, args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode, pinned: Rung | None = None
) -> Captured:
    """Capture one call of a model, on the highest rung that holds.

    Args:
        frontend: of the whole model.
        args: positional inputs.
        kwargs: keyword inputs.
        mode: "train" or "infer".
        pinned: the lowest rung that will do, or "modules" for no capture at all; None takes any.

    Raises:
        CaptureError: no rung that will do holds; names the line and the reason.
    """
    check_arguments(frontend.model, frontend.written.forward, args, kwargs)
    if pinned == "modules":
        return _piecewise(frontend, args, kwargs, mode, notes=(), capture=False)
    try:
        return Captured(frontend.capture(args, kwargs, mode), "graph")
    except CaptureError as error:
        if pinned == "graph":
            raise CaptureError(f"{error}; rewrite that line, or let capture='auto' take the model in pieces") from error
        refused = error
    try:
        captured = _piecewise(frontend, args, kwargs, mode, notes=(str(refused),), capture=True)
    except ForwardError:
        raise  # the model's own words say more than what tracing made of them
    except CaptureError as error:
        raise CaptureError(f"{refused}; nor can it be taken in pieces: {error}") from refused
    if pinned == "graphs" and captured.rung != "graphs":
        raise CaptureError(f"capture='graphs' does not hold: {'; '.join(captured.notes)}")
    return captured


def _piecewise(
    frontend: Frontend,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    mode: Mode,
    *,
    notes: tuple[str, ...],
    capture: bool,
) -> Captured:
    model = frontend.model
    with CAPTURE_LOCK, in_mode(model, mode), without_parts(model), quiet():
        seen = record(model, frontend.written, args, kwargs, mode)
        finder = _Finder(model, seen, mode)
        if capture:
            finder.search(model, "")
    program = seen.program
    left = _uncaptured(program, finder)
    rung: Rung = "modules" if not finder.parts else ("opaque" if left else "graphs")
    if left and finder.parts:
        notes += (f"as they are, each on the device of its weights: {', '.join(sorted(left))}",)
    return Captured(program, rung, finder.parts, (*notes, *finder.notes), seen.on_data)


class _Finder:
    """Finds the largest submodules whose first call can be captured as one graph."""

    def __init__(self, model: nn.Module, seen: Record, mode: Mode) -> None:
        self.parts: dict[str, Frontend] = {}
        self.notes: list[str] = []
        self._model = model
        self._seen = seen
        self._mode = mode
        self._tried: set[int] = set()
        self._sizes: dict[str, int] = {}
        for node in seen.program.nodes:
            path = module_path(node)
            while path:
                self._sizes[path] = self._sizes.get(path, 0) + 1
                path = path.rpartition(".")[0]

    def search(self, module: nn.Module, path: str) -> None:
        """Try the submodules of ``module``, and what is in those that cannot be captured."""
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if id(child) in self._tried or isinstance(child, torch.jit.ScriptModule):
                continue
            self._tried.add(id(child))
            call = self._seen.calls.get(inner)
            if call is None or not self._is_captured(child, inner, call):
                self.search(child, inner)

    def is_one_operator(self, path: str) -> bool:
        """Whether the submodule is too small to be a graph of its own."""
        return self._sizes.get(path, 0) <= _ONE_OPERATOR

    def _is_captured(self, module: nn.Module, path: str, call: Call) -> bool:
        if self.is_one_operator(path) or next(module.parameters(), None) is None:
            return False
        part = Frontend(module, type(module), prefix=path, names=part_names(self._model, module))
        try:
            with torch.set_grad_enabled(call.grad):
                part.capture(call.args, call.kwargs, self._mode)
        except CaptureError as error:
            self.notes.append(f"{path}: {error}")
            return False
        self.parts[path] = part
        return True


def _uncaptured(program: Program, finder: _Finder) -> set[str]:
    """Paths of the modules that read weights of their own outside every part, and are more than one operator."""
    left = set()
    for node in program.nodes:
        path = module_path(node)
        if finder.is_one_operator(path) and path:
            continue
        if any(path == part or path.startswith(f"{part}.") for part in finder.parts):
            continue
        sources = [program.inputs.get(argument) for argument in node.all_input_nodes]
        if any(source is not None and source.is_weight for source in sources):
            left.add(path or "the model's own forward")
    return left
