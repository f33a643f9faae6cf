"""A plan that was made before, held against the model and the inputs at hand: applied exactly, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from autosplit.api.batch import Example
from autosplit.api.describe import describe
from autosplit.api.identity import all_inputs, is_for_inputs, refuse_other_graph, refuse_other_weights
from autosplit.api.problem import Problem, Request
from autosplit.api.search import search
from autosplit.capture import Captured, Frontend, climb
from autosplit.device import Cluster
from autosplit.errors import CapacityError, DeviceError, PlanError
from autosplit.files import quoted
from autosplit.hardware import absent, memory_of
from autosplit.optimizers import OptimizerLike
from autosplit.placement import Plan, check_plan, renamed
from autosplit.ranks.seats import rank_of
from autosplit.runtime import unsplit_class
from autosplit.units import format_bytes

PlanLike = Plan | str | Path

_NOT_COSTED = (
    "memory: not predicted again: the plan's file was edited, and no example inputs were given; only its weights were "
    "checked to fit"
)
_NO_OPTIMIZER = (
    "memory: not predicted again: the plan's file was edited, and its optimizer is an object that no file holds: pass "
    "optimizer="
)
_OTHER_INPUTS = "memory: not predicted again: a pipeline, called with inputs of another size than planned"
_COSTED_AGAIN = (
    "costed again when it was applied: its file was edited, or inputs or optimizer are others than it was planned for"
)


def given_plan(plan: PlanLike) -> Plan:
    """The plan, read from its file where it is a path; checked.

    Raises:
        PlanError: it is no plan, or one that contradicts itself.
        CapacityError: by its own figures it does not fit its devices.
    """
    if isinstance(plan, (str, Path)):
        return Plan.load(plan)
    if not isinstance(plan, Plan):
        raise PlanError(
            f"plan is a {type(plan).__name__}: pass a Plan, as autosplit.plan or Plan.load returns it, or a path"
        )
    check_plan(plan)
    return plan


def hold(
    model: nn.Module, plan: PlanLike, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None
) -> Plan:
    """Hold a plan against a model, without moving it: what ``partition(model, devices, plan=plan)`` would apply.

    Args:
        model: on any device; the meta device will do.
        plan: a plan, or the path of its file.
        args: positional inputs of a call; without any inputs only the weights are looked at.
        kwargs: keyword inputs of it.

    Returns:
        The plan; costed again where its file was edited, or the inputs are of another size.

    Raises:
        PlanError, CaptureError, CapacityError: as in ``with_inputs``.
    """
    known = given_plan(plan)
    if args is None and kwargs is None:
        return without_inputs(known, model)
    frontend = Frontend(model, unsplit_class(model), serves=False)
    return with_inputs(known, model, frontend, (args or (), kwargs or {}), None)[0]


def without_inputs(plan: Plan, model: nn.Module) -> Plan:
    """The plan for ``model``, as far as that is known without a call of it.

    Raises:
        PlanError: it is for another model, or was edited to name what the model has not.
        CapacityError: a device does not hold its weights.
    """
    refuse_other_weights(plan, model)
    if not plan.is_edited:
        return plan
    _refuse_edited_pipeline(plan)
    for node in plan.placement:
        path = node.rpartition("/")[0]
        try:
            model.get_submodule(path)
        except AttributeError as error:
            raise PlanError(
                f"node {quoted(node)} of the edited plan is of a module that {type(model).__name__} has not"
            ) from error
    return _noted(plan, _NOT_COSTED)


def with_inputs(
    plan: Plan,
    model: nn.Module,
    frontend: Frontend,
    inputs: tuple[Sequence[Any], Mapping[str, Any]],
    optimizer: OptimizerLike | None,
) -> tuple[Plan, Captured]:
    """The plan for ``model`` called with ``inputs``: every node is planned, and the memory of the call fits.

    Args:
        plan: for this model.
        model: the model.
        frontend: captures it.
        inputs: positional and keyword; of another size than planned they are costed again.
        optimizer: of training; None takes the plan's.

    Returns:
        The same plan where its figures hold, else one with the same placement and figures of its own.

    Raises:
        PlanError: stale: names the first weight or node that differs; or groups of nodes are torn apart.
        CaptureError: the call cannot be captured.
        CapacityError: it does not fit.
    """
    refuse_other_weights(plan, model)
    example = Example.of(*inputs, plan.cluster)
    if plan.batch is not None and plan.batch != example.samples:
        example = example.at(plan.batch)
    captured = climb(
        frontend, example.args, example.kwargs, plan.mode, "modules" if plan.capture == "modules" else None
    )
    refuse_other_graph(plan, captured)
    if plan.pipeline is not None or plan.replicas > 1:
        _refuse_edited_pipeline(plan)
        is_same = not plan.inputs or is_for_inputs(plan, captured.program)
        return (plan if is_same else _noted(plan, _OTHER_INPUTS)), captured
    if plan.mode == "train" and optimizer is None and plan.optimizer is None:
        return (_noted(plan, _NO_OPTIMIZER) if plan.is_edited else plan), captured
    request = Request(
        plan.cluster,
        plan.mode,
        objective=plan.objective,
        optimizer=None if plan.mode == "infer" else (plan.optimizer if optimizer is None else optimizer),
        placement=plan.placement,
        profile=False,
        accumulate=plan.accumulate,
    )
    problem = Problem(model, request, captured, plan.io_device)
    fresh = describe(problem, search(problem))
    fresh = msgspec.structs.replace(fresh, inputs=all_inputs(fresh, model, example.args, example.kwargs))
    _refuse_moved(plan, fresh)
    return (plan if _holds(plan, fresh) else _costed_again(plan, fresh)), captured


def seated(plan: Plan, cluster: Cluster) -> Plan:
    """The plan on ``cluster``'s devices, one after the other, where it was made for devices that were described.

    A device of "4xA100-80GB" has a name that no machine knows; one of a machine keeps its own.
    """
    planned, given = plan.cluster.devices, cluster.devices
    if len(planned) > len(given) or not all(_is_described(device.name) for device in planned):
        return plan
    names = {device.name: other.name for device, other in zip(planned, given, strict=False)}
    if all(name == other for name, other in names.items()):
        return plan
    pairs = [f"{a.name} ({a.kind}) is {b.name} ({b.kind})" for a, b in zip(planned, given, strict=False)]
    said = f"devices: planned for others than it runs on, in their order: {', '.join(pairs)}"
    made = msgspec.structs.replace(plan, assumptions=(said, *plan.assumptions))
    made.__dict__.update(plan.__dict__)  # whether its file was edited
    return renamed(made, names)


def _is_described(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return rank_of(name) is None
    return False


def refuse_devices(plan: Plan, cluster: Cluster) -> None:
    """Check that the plan's devices are among ``cluster``'s, and no smaller than it needs.

    Raises:
        PlanError: a device is not there.
        CapacityError: one has less memory than the plan needs.
    """
    missing = [name for name in plan.cluster.names if name not in cluster.names]
    if missing:
        raise PlanError(
            f"stale plan: it uses {', '.join(missing)}, but given are {', '.join(cluster.names)}; plan again, or give "
            "as many devices as were described"
        )
    _refuse_small(plan, {d.name: d.memory_bytes for d in cluster.devices if d.kind != "cpu"})


def refuse_absent(plan: Plan) -> None:
    """Check that the devices that ``plan`` uses are present, and large enough at all.

    Raises:
        DeviceError: one is not there.
        CapacityError: one has less memory in all than the plan needs.
    """
    used = [name for name in plan.prediction.devices if name in {*plan.placement.values(), *plan.weights.values()}]
    missing, there = absent(used)
    if missing:
        raise DeviceError(
            f"the plan uses device {quoted(missing[0])}, which is not present: present are {', '.join(there)}; "
            "plan for these"
        )
    _refuse_small(plan, {name: memory_of(name)[1] for name in used if name in there and name != "cpu"})


def _refuse_small(plan: Plan, has: Mapping[str, int]) -> None:
    needs = {name: device.reserved_bytes for name, device in plan.prediction.devices.items() if name in has}
    for name, need in needs.items():
        if need > has[name]:
            raise CapacityError(
                f"the plan needs {format_bytes(need)} on {name}, which has {format_bytes(has[name])}; plan again",
                needs_bytes=needs,
                has_bytes={device: has[device] for device in needs},
            )


def _refuse_moved(plan: Plan, fresh: Plan) -> None:
    """Nodes that share a storage which one of them writes stay on one device, whatever a file says."""
    for name, device in fresh.placement.items():
        if plan.placement[name] != device:
            raise PlanError(
                f"node {quoted(name)} cannot be on {quoted(plan.placement[name])}: what it stays together with (a "
                f"storage that is written in place, or weights outside a graph) is on {quoted(device)}; plan again"
            )


def _refuse_edited_pipeline(plan: Plan) -> None:
    if plan.is_edited and (plan.pipeline is not None or plan.replicas > 1):
        raise PlanError("the file of this plan was edited, and a pipeline cannot be costed again alone: plan again")


def _noted(plan: Plan, words: str) -> Plan:
    return msgspec.structs.replace(plan, assumptions=(words, *plan.assumptions))


def _holds(plan: Plan, fresh: Plan) -> bool:
    """Whether the plan moves and holds what it says."""

    def sizes(of: Plan) -> dict[str, tuple[int, int, int]]:
        return {n: (d.peak_bytes, d.reserved_bytes, d.weight_bytes) for n, d in of.prediction.devices.items()}

    same = (plan.transfers, plan.weights, sizes(plan)) == (fresh.transfers, fresh.weights, sizes(fresh))
    return same and not plan.is_edited


def _costed_again(plan: Plan, fresh: Plan) -> Plan:
    is_whole = len(set(plan.placement.values())) == 1
    keeps = is_whole == (plan.strategy in ("single", "replicate"))
    return msgspec.structs.replace(
        fresh,
        strategy=plan.strategy if keeps else fresh.strategy,
        reason=plan.reason if keeps else fresh.reason,
        batch=plan.batch,
        assumptions=(_COSTED_AGAIN, *fresh.assumptions),
    )
