"""Which model, graph and inputs a plan is for; and what of that is other than it was planned, in words."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import nn
from torch.utils import _pytree as pytree

from autosplit.capture import Captured
from autosplit.errors import CapacityError, PlanError
from autosplit.files import quoted
from autosplit.placement import SAME, Plan
from autosplit.program import Program, Spec
from autosplit.runtime import weight_signature
from autosplit.units import format_bytes


def weight_forms(model: nn.Module) -> dict[str, str]:
    """Form of each parameter and buffer by name, tied ones by each of their names: "float32[4, 2048]"."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: _form(tensor.dtype, tuple(tensor.shape)) for name, tensor in named}


def input_forms(program: Program) -> dict[str, str]:
    """Form of each tensor of the caller by its name."""
    return {
        source.name: _form(source.spec.dtype, source.spec.shape)
        for source in program.inputs.values()
        if source.kind == "input" and source.spec is not None
    }


def all_inputs(plan: Plan, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """The plan's inputs, with the arguments that are the very tensor of one before: "= NAME".

    Of ``model(ids, labels=ids)`` the capture knows one input, by the first name; without ``labels`` the call may be
    another graph.
    """
    try:
        named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # the model takes what its signature does not say
        return plan.inputs
    first: dict[int, str] = {}
    tensors = ((name, value) for name, value in named.items() if isinstance(value, torch.Tensor))
    same = {name: one for name, value in tensors if (one := first.setdefault(id(value), name)) != name}
    return plan.inputs | {name: f"{SAME}{one}" for name, one in same.items() if one in plan.inputs}


def _own_forms(plan: Plan) -> dict[str, str]:
    return {name: form for name, form in plan.inputs.items() if not form.startswith(SAME)}


def is_for_inputs(plan: Plan, program: Program) -> bool:
    """Whether the inputs of ``program`` have the planned names and forms."""
    return input_forms(program) == _own_forms(plan)


def graph_fingerprint(program: Program) -> str:
    """sha256 of the nodes to place, in program order, each with the forms of the tensors that it gives."""
    digest = hashlib.sha256()
    for node in program.nodes:
        leaves = pytree.tree_leaves(program.facts[node].form)
        forms = [_form(leaf.dtype, leaf.shape) for leaf in leaves if isinstance(leaf, Spec)]
        digest.update(msgspec.json.encode([program.names[node], forms]))
    return digest.hexdigest()


def refuse_other_weights(plan: Plan, model: nn.Module) -> None:
    """Check that ``model`` has the weights that ``plan`` is for, that each has a home, and that the homes hold them.

    Raises:
        PlanError: it is for other weights: names the first that differs.
        CapacityError: a device does not hold the weights that the plan puts there.
    """
    name = type(model).__name__
    if plan.fingerprint != weight_signature(model):
        difference = next(_differences("weight", plan.weight_forms, weight_forms(model)), "names, shapes or dtypes")
        raise PlanError(f"stale plan: it was made for another model than this {name}: {difference}; plan again")
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for weight in weights:
        if weight not in plan.weights:
            raise PlanError(f"the plan has no device for weight {quoted(weight)} of {name}: plan again")
    needs = dict.fromkeys(plan.cluster.names, 0)
    for weight, home in plan.weights.items():
        if weight not in weights:
            raise PlanError(f"the plan places weight {quoted(weight)}, which {name} has not: plan again")
        needs[home] += weights[weight].nbytes
    has = {device.name: device.memory_bytes for device in plan.cluster.devices}
    over = [home for home, need in needs.items() if need > has[home]]
    if over:
        words = f"{over[0]} has {format_bytes(has[over[0]])}, the weights that the plan puts there take "
        raise CapacityError(f"{words}{format_bytes(needs[over[0]])}; plan again", needs_bytes=needs, has_bytes=has)


def refuse_other_graph(plan: Plan, captured: Captured) -> None:
    """Check that the captured call is the one that ``plan`` was made for, at whatever size of the inputs.

    Raises:
        PlanError: names the first node that differs.
    """
    if captured.rung != plan.capture or tuple(captured.parts) != plan.parts:
        raise PlanError(
            f"stale plan: the model was captured as {plan.capture!r} with {len(plan.parts)} parts, now as "
            f"{captured.rung!r} with {len(captured.parts)}; plan again"
        )
    program = captured.program
    named = [program.names[node] for node in program.nodes]
    planned = list(plan.placement)
    for i, (was, now) in enumerate(zip(planned, named, strict=False)):
        if was != now:
            raise PlanError(f"stale plan: node {i} is {quoted(now)} now, {quoted(was)} was planned; plan again")
    if len(named) != len(planned):
        more = f"{quoted(named[len(planned)])} is not in the plan" if len(named) > len(planned) else ""
        more = more or f"{quoted(planned[len(named)])} of the plan is not in the model"
        raise PlanError(
            f"stale plan: the model has {len(named)} nodes, planned were {len(planned)}: {more}; plan again"
        )
    if plan.graph_fingerprint and is_for_inputs(plan, program) and plan.graph_fingerprint != graph_fingerprint(program):
        raise PlanError(
            "stale plan: of the same inputs and weights, the nodes of the planned names now give tensors of other "
            "shapes or dtypes; plan again"
        )


def _form(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def _differences(what: str, planned: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    for name, form in planned.items():
        if name not in found:
            yield f"{what} {quoted(name)}, {form}, is not in the model"
        elif found[name] != form:
            yield f"{what} {quoted(name)} is {found[name]}, planned was {form}"
    for name, form in found.items():
        if name not in planned and planned:
            yield f"{what} {quoted(name)}, {form}, is not in the plan"
    for was, now in zip(planned, found, strict=False):
        if was != now:
            yield f"{what}s are in another order: {quoted(now)} where {quoted(was)} was"
