"""The line from a model to a plan: capture, cost, solve, emit, predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from autosplit.api.describe import describe
from autosplit.api.problem import Problem, Request
from autosplit.api.search import search
from autosplit.capture import Captured, Frontend, climb
from autosplit.device import HOST, Cluster
from autosplit.errors import PlanError
from autosplit.placement import Plan
from autosplit.program import tensor_leaves


def make_plan(
    model: nn.Module, frontend: Frontend, args: Sequence[Any], kwargs: Mapping[str, Any], request: Request
) -> tuple[Plan, Captured]:
    """Plan ``model``, captured through ``frontend``, for one form of inputs; nothing is moved."""
    if request.strategy == "split" and len(request.cluster.devices) == 1:
        raise PlanError("strategy='split' was asked for one device: pass two or more, or strategy='auto'")
    captured = climb(frontend, args, kwargs, request.mode, request.capture)
    problem = Problem(model, request, captured, _io_device(args, kwargs, request.cluster))
    _refuse_shared_memory(problem)
    return describe(problem, search(problem)), captured


def _refuse_shared_memory(problem: Problem) -> None:
    """Weights in one memory, one of them written, were captured as two, and are placed as two."""
    inputs = list(problem.program.inputs.values())
    written = {inputs[i].name for i in problem.program.written_inputs if inputs[i].is_weight}
    owner: dict[int, str] = {}
    for name, weight in problem.weights.items():
        first = owner.setdefault(weight.untyped_storage()._cdata, name)
        if first != name and written & {first, name}:
            raise PlanError(
                f"{first!r} and {name!r} of {type(problem.model).__name__} share memory, and forward writes to it: "
                "give one a memory of its own (clone it), or register one and make the other from it in forward"
            )


def _io_device(args: Sequence[Any], kwargs: Mapping[str, Any], cluster: Cluster) -> str:
    """Where inputs arrive: the device of the first tensor if it is one of the cluster's, else the host."""
    leaves = tensor_leaves((list(args), dict(kwargs)))
    return next((str(leaf.device) for leaf in leaves if str(leaf.device) in cluster.names), HOST)
