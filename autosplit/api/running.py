"""How a split module is called: its forward is captured, rewritten by the plan, and run on the real tensors."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autosplit.capture import Compile, Frontend, Run
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


def _compiler(plan: Plan, model: nn.Module) -> Compile:
    """Makes what runs one captured program, emitted once for each set of devices that its inputs come from.

    Dynamo keeps it for good, so it knows the model by a weak reference.
    """
    known = weakref.ref(model)
    devices = torch_devices(plan.cluster)
    present = {device: name for name, device in devices.items() if name != HOST}

    def compile_program(program: Program) -> Run:
        emitted: dict[tuple[torch.device, ...], Emitted] = {}
        movable = [i for i, source in enumerate(program.inputs.values()) if source.moves]

        def run(inputs: Sequence[Any], io_device: torch.device) -> Sequence[Any]:
            arrived = list(inputs)
            strangers = [i for i in movable if inputs[i].device != io_device and inputs[i].device not in present]
            for i in strangers:
                arrived[i] = inputs[i].to(io_device)
            key = (io_device, *(arrived[i].device for i in movable))
            if key not in emitted:
                names = {i: present.get(arrived[i].device, HOST) for i in movable}
                emitted[key] = _emit(plan, program, io_device, names)
            current = known()
            if current is not None:
                note_graph_module(current, emitted[key].graph_module)
            outputs: Sequence[Any] = emitted[key].graph_module.forward(*arrived)
            for i in strangers:
                if i in program.written_inputs:
                    inputs[i].copy_(arrived[i])  # the caller's own tensor is what the model wrote to
            return outputs

        return run

    return compile_program


def _emit(plan: Plan, program: Program, io_device: torch.device, arrivals: Mapping[int, str]) -> Emitted:
    devices = torch_devices(plan.cluster)
    io_name = str(io_device) if str(io_device) in devices else HOST
    devices[HOST] = io_device if io_name == HOST else devices[HOST]
    emitted = rewrite(program, assign(program, plan.placement, plan.weights, io_name), devices, io_name, arrivals)
    check_split(emitted)
    return emitted
