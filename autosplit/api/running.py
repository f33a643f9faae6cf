"""How a split module is called: its forward is captured, rewritten by the plan, and run on the real tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        if self._frontend is None:
            self._frontend = Frontend(model, unsplit_class(model))
        if self._frontend.compile_program is None:
            self._frontend.compile_program = lambda program: self._compile(model, program)
        return self._frontend(*args, **kwargs)

    def _compile(self, model: nn.Module, program: Program) -> Callable[..., Any]:
        """What runs one captured program; emitted once for each device that inputs come from."""
        emitted: dict[torch.device, Emitted] = {}
        movable = [i for i, source in enumerate(program.inputs.values()) if source.kind in ("input", "constant")]

        def run(*inputs: Any) -> Any:
            io_device = _device_of(inputs, movable)
            if io_device not in emitted:
                emitted[io_device] = _emit(self._plan, program, io_device)
                note_graph_module(model, emitted[io_device].graph_module)
            arrived = list(inputs)
            for i in movable:
                if inputs[i].device != io_device:
                    arrived[i] = inputs[i].to(io_device)
            return emitted[io_device].graph_module.forward(*arrived)

        return run


def _device_of(inputs: Sequence[Any], movable: Sequence[int]) -> torch.device:
    """Where outputs return: the device of the first tensor the caller gave."""
    device: torch.device = inputs[movable[0]].device if movable else torch.device("cpu")
    return device


def _emit(plan: Plan, program: Program, io_device: torch.device) -> Emitted:
    devices = torch_devices(plan.cluster)
    io_name = str(io_device) if str(io_device) in devices else HOST
    devices[HOST] = io_device if io_name == HOST else devices[HOST]
    emitted = rewrite(program, assign(program, plan.placement, plan.weights, io_name), devices, io_name)
    check_split(emitted)
    return emitted
