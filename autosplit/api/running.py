"""How a split module is called: its forward is captured, rewritten by the plan, and run on the real tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from autosplit.capture import Frontend
from autosplit.device import HOST
from autosplit.emit import Emitted, assign, check_split, rewrite
from autosplit.hardware import torch_devices
from autosplit.placement import Plan
from autosplit.program import Program
from autosplit.runtime import note_graph_module, unsplit_class


class Caller:
    """Calls one module by one plan; every later shape or mode is captured anew and placed by the same plan."""

    def __init__(self, plan: Plan, frontend: Frontend | None = None) -> None:
        self._plan = plan
        self._frontend = frontend

    def __deepcopy__(self, memo: dict[int, Any]) -> Caller:
        return Caller(self._plan)  # the copied module captures for itself

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``model``."""
        if self._frontend is None or self._frontend.model is not model:
            self._frontend = Frontend(model, unsplit_class(model))
        if self._frontend.compile_program is None:
            self._frontend.compile_program = _compiler(self._plan, model)
        return self._frontend(*args, **kwargs)


def _compiler(plan: Plan, model: nn.Module) -> Callable[[Program], Callable[..., Any]]:
    """Makes what runs one captured program, emitted once for each device that inputs come from.

    Dynamo keeps it for good, so it knows the model by a weak reference.
    """
    known = weakref.ref(model)

    def compile_program(program: Program) -> Callable[..., Any]:
        emitted: dict[torch.device, Emitted] = {}
        sources = list(program.inputs.values())
        movable = [i for i, source in enumerate(sources) if source.kind in ("input", "constant")]
        given = [i for i in movable if sources[i].kind == "input"] or movable
        written = _written(program)

        def run(*inputs: Any) -> Any:
            io_device = inputs[given[0]].device if given else torch.device("cpu")
            if io_device not in emitted:
                emitted[io_device] = _emit(plan, program, io_device)
            current = known()
            if current is not None:
                note_graph_module(current, emitted[io_device].graph_module)
            arrived = list(inputs)
            moved = [i for i in movable if inputs[i].device != io_device]
            for i in moved:
                arrived[i] = inputs[i].to(io_device)
            outputs = emitted[io_device].graph_module.forward(*arrived)
            for i in moved:
                if i in written:
                    inputs[i].copy_(arrived[i])  # the caller's own tensor is what the model wrote to
            return outputs

        return run

    return compile_program


def _written(program: Program) -> set[int]:
    """Places of the inputs that the program writes in place."""
    storages = frozenset().union(*(facts.writes for facts in program.facts.values()))
    leaves = [program.facts[node].leaves for node in program.inputs]
    return {i for i, tensors in enumerate(leaves) if any(leaf.storage in storages for leaf in tensors)}


def _emit(plan: Plan, program: Program, io_device: torch.device) -> Emitted:
    devices = torch_devices(plan.cluster)
    io_name = str(io_device) if str(io_device) in devices else HOST
    devices[HOST] = io_device if io_name == HOST else devices[HOST]
    emitted = rewrite(program, assign(program, plan.placement, plan.weights, io_name), devices, io_name)
    check_split(emitted)
    return emitted
