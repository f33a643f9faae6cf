"""partition, plan and apply."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import nn
from torch.export import ExportedProgram

from autosplit.api.across import is_across, partition_across
from autosplit.api.asked import Asked, CaptureChoice
from autosplit.api.given import PlanLike, given_plan, refuse_absent, refuse_devices, seated, with_inputs, without_inputs
from autosplit.api.pipelining import PipelineCaller
from autosplit.api.planning import make_plan
from autosplit.api.problem import (
    BatchChoice,
    MicrobatchesChoice,
    ObjectiveChoice,
    ScheduleChoice,
    StrategyChoice,
)
from autosplit.api.ranks import share_of
from autosplit.api.running import Caller, exported, install_parts
from autosplit.api.timing import ProfileChoice
from autosplit.capture import Captured, Frontend, initialise, is_uninitialised
from autosplit.device import Cluster
from autosplit.errors import CapacityError, PlanError
from autosplit.graph import Mode
from autosplit.hardware import DevicesLike, resolve, torch_devices
from autosplit.optimizers import OptimizerLike
from autosplit.placement import Plan
from autosplit.ranks.seats import gather
from autosplit.replicate import process_group_is_up, replicate
from autosplit.runtime import SplitState, between_calls, install, is_called_by, place_weights, unsplit, unsplit_class
from autosplit.verification import verify as compare

Model = nn.Module | ExportedProgram


def plan(
    model: Model,
    devices: DevicesLike = "auto",
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: Mode | None = None,
    strategy: StrategyChoice = "auto",
    objective: ObjectiveChoice = "auto",
    optimizer: OptimizerLike | None = None,
    placement: Mapping[str, str] | None = None,
    capture: CaptureChoice = "auto",
    profile: ProfileChoice = "auto",
    batch: BatchChoice = None,
    microbatches: MicrobatchesChoice = "auto",
    schedule: ScheduleChoice = "auto",
    accumulate: int = 1,
) -> Plan:
    """Decide what of ``model`` runs where, without moving it or running it.

    Args:
        model: on any device; the meta device will do, no weight is read. An ExportedProgram stands for its module and
            brings its example inputs.
        devices: see autosplit.hardware.resolve; devices may be described only ("2x24GiB").
        args: positional example inputs; only their shapes and dtypes are read, so meta tensors will do.
        kwargs: keyword example inputs.
        mode: "infer" or "train"; None reads ``model.training``.
        strategy: "auto" weighs all by predicted time and memory (``Plan.why``): a copy on each device when one holds
            the model, unless a pipeline is faster; else a split, in micro-batches when that is faster, and in replicas
            when devices remain. "single", "replicate", "split", "pipeline" and "hybrid" take just that.
        objective: what a split minimises: "latency" (one request; "auto"), "throughput" or "memory" (least peak).
        optimizer: what training memory is planned for: "sgd", "momentum", "adam", "adamw", "adafactor", "adagrad",
            "rmsprop", an instance, or a function from parameters to one. None in training assumes AdamW and says so.
        placement: by hand: device name by module path or node name; what it leaves open follows weights and inputs.
        capture: "auto" takes the model as one graph, and what that cannot be as several, at last module by module;
            ``plan.capture`` and ``plan.assumptions`` say which and why. "graph", "graphs" and "opaque" refuse to
            fall lower; "modules" captures nothing.
        profile: True measures operations on every device that is present (a CPU with one thread), on tensors of its
            own, and keeps the times (README); "auto" measures on accelerators and recalls others; False estimates.
        batch: samples in one call, along dimension 0 of the first tensor and of all of that size. "max" finds the
            largest that fits: it and one more are planned exactly, in some ten to twenty captures.
        microbatches: a pipeline cuts the batch of a call into so many; "auto" takes the number with the least
            predicted time. A number is of "auto", "pipeline" and "hybrid" only.
        schedule: in which order a pipeline runs its passes: "gpipe" or "1f1b". "auto" takes GPipe where its memory
            fits, else 1F1B.
        accumulate: calls, each with its backward, before the optimizer steps: from the second on gradients are there
            from the start, which takes memory. Times are of one call.

    Returns:
        The plan; its memory figures in bytes are what the emitted program allocates on fake tensors.

    Raises:
        CaptureError: the model cannot be captured, or args do not match its forward.
        CapacityError: nothing was found that fits; carries bytes needed, had and short by device, and ``ways_out()``
            plans what would fit.
        DeviceError: a device is unknown or repeated.
        PlanError: the model has no parameters, its batch cannot be varied, the optimizer cannot be stepped without
            data, or what was asked contradicts itself.
    """
    model, args, kwargs = _as_module(model, args, kwargs)
    if args is None and kwargs is None:
        raise PlanError("no example inputs: pass args=(...) or kwargs={...} as you would call the model")
    with between_calls(model):
        _check_model(model)
    asked = Asked(
        resolve(devices),
        mode,
        strategy,
        objective,
        optimizer,
        placement,
        capture,
        profile,
        batch,
        microbatches,
        schedule,
        accumulate,
    )
    _check_inputs(args, kwargs)
    if is_uninitialised(model):
        raise PlanError(
            f"{type(model).__name__} has lazy weights without a shape: call it once on example inputs first "
            "(partition does so by itself)"
        )
    with between_calls(model):
        frontend = Frontend(model, unsplit_class(model), serves=False)
        return _decide(model, frontend, args or (), kwargs or {}, asked)[0]


def apply(model: Model, plan: PlanLike) -> nn.Module:
    """Place the weights of ``model`` as ``plan`` says, in place, and make its forward run split.

    Args:
        model: the model that the plan was made for; its weights keep their identity.
        plan: as ``plan`` returned or ``Plan.load`` read it, or the path of its file.

    Returns:
        ``model`` itself, of a subclass of its class; for a "replicate" plan under an initialised process group it is
        in DistributedDataParallel.

    Raises:
        PlanError: the plan is stale: names the first weight that differs; or a weight has no data.
        CapacityError: a device is too small for what the plan puts there.
        DeviceError: a device of the plan is not present.
    """
    return apply_captured(_as_module(model, None, None)[0], given_plan(plan))


def partition(
    model: Model,
    devices: DevicesLike = "auto",
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: Mode | None = None,
    strategy: StrategyChoice = "auto",
    objective: ObjectiveChoice = "auto",
    optimizer: OptimizerLike | None = None,
    placement: Mapping[str, str] | None = None,
    capture: CaptureChoice = "auto",
    profile: ProfileChoice = "auto",
    batch: BatchChoice = None,
    microbatches: MicrobatchesChoice = "auto",
    schedule: ScheduleChoice = "auto",
    accumulate: int = 1,
    plan: PlanLike | None = None,
    verify: bool = False,
) -> nn.Module:
    """Split ``model`` over ``devices``: the same object computes and trains as before, each part where it was placed.

    Without ``args`` and ``kwargs`` the model is planned and placed at its first call, from the real inputs; an
    optimizer made before stays valid, as parameters keep their identity.

    Args:
        model: any nn.Module, a torch.fx GraphModule, or an ExportedProgram, whose module is made and split.
        devices: devices that are present; see autosplit.hardware.resolve.
        args: as in plan.
        kwargs: as in plan.
        mode: as in plan.
        strategy: as in plan.
        objective: as in plan.
        optimizer: as in plan.
        placement: as in plan.
        profile: as in plan.
        capture: as in plan; "graph" also makes a later call that cannot be captured an error.
        batch: as in plan; other batches run too, by the same plan.
        microbatches: as in plan.
        schedule: as in plan.
        accumulate: as in plan.
        plan: a plan made before, or the path of its file; its placement is applied exactly, or refused as stale. With
            ``args`` or ``kwargs`` it is costed again for them (memory exactly; ``optimizer`` as given, else as
            planned); what else was asked beside it is not looked at.
        verify: compare with the unsplit model on the example inputs (it needs a second copy of the model).

    Returns:
        ``model`` itself; see apply.

    Raises:
        AutosplitError: as plan and apply; the model is then as it was.
    """
    model, args, kwargs = _as_module(model, args, kwargs)
    with between_calls(model):
        _check_model(model)
    known = None if plan is None else given_plan(plan)

    def ask(own: Cluster) -> Asked:
        asked = mode, strategy, objective, optimizer, placement, capture, profile, batch, microbatches, schedule
        return Asked(own, *asked, accumulate)

    if is_across(strategy, known):
        if args is None and kwargs is None:
            raise PlanError("under a process group a pipeline is planned before the first call: pass args or kwargs")
        return partition_across(model, devices, args or (), kwargs or {}, lambda own: ask(own).request(model), known)
    cluster = resolve(devices)
    torch_devices(cluster)
    if known is not None:
        known = seated(known, cluster)
        refuse_devices(known, cluster)
    asked = ask(cluster)
    if args is None and kwargs is None:
        return _partition_at_first_call(model, asked, verify) if known is None else apply_captured(model, known)
    with between_calls(model):
        return _partition_now(model, args, kwargs, asked, devices, verify=verify, known=known)


def _partition_now(
    model: nn.Module,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    asked: Asked,
    devices: DevicesLike,
    *,
    verify: bool,
    known: Plan | None,
) -> nn.Module:
    _check_inputs(args, kwargs)
    if is_uninitialised(model):
        initialise(model, args or (), kwargs or {})
    frontend = Frontend(model, unsplit_class(model))
    if known is None:
        try:
            made, captured = _decide(model, frontend, args or (), kwargs or {}, asked, together=True)
        except _TooLargeError:
            return partition_across(model, devices, args or (), kwargs or {}, lambda own: asked.on(own).request(model))
    else:
        made, captured = with_inputs(known, model, frontend, (args or (), kwargs or {}), asked.optimizer)
    unsplit = copy.deepcopy(model) if verify else None
    split = apply_captured(model, made, frontend, captured, is_pinned=asked.capture == "graph")
    if unsplit is not None:
        compare(unsplit, split, args or (), kwargs)
    return split


class _TooLargeError(Exception):
    """The model does not fit the device of every rank."""


def _decide(
    model: nn.Module,
    frontend: Frontend,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    asked: Asked,
    *,
    together: bool = False,
) -> tuple[Plan, Captured]:
    """Under a process group a replica on this rank's device when it fits there; else whatever the devices allow.

    With ``together`` every rank decides now, and one that does not hold the model decides for all.

    Raises:
        _TooLargeError: the ranks, together, have to share the model.
    """
    request = asked.request(model)
    if not process_group_is_up() or asked.strategy not in ("auto", "replicate") or asked.placement is not None:
        return make_plan(model, frontend, args, kwargs, request)
    devices = asked.cluster.devices
    mine = share_of(asked.cluster).devices[0] if together else devices[_local_rank() % len(devices)]
    local = msgspec.structs.replace(asked.cluster, devices=(mine,))
    found: tuple[Plan, Captured] | None = None
    try:
        found = make_plan(model, frontend, args, kwargs, replace(request, cluster=local, strategy="replicate"))
    except CapacityError:
        if asked.strategy == "replicate":
            raise
    if together and asked.strategy == "auto" and dist.get_world_size() > 1 and not all(gather(found is not None)):
        raise _TooLargeError
    return make_plan(model, frontend, args, kwargs, request) if found is None else found


def apply_captured(
    model: nn.Module,
    plan: Plan,
    frontend: Frontend | None = None,
    captured: Captured | None = None,
    *,
    is_pinned: bool = False,
) -> nn.Module:
    """As apply; what ``frontend`` captured for the plan is not captured again."""
    devices = torch_devices(plan.cluster)
    refuse_absent(plan)
    plan = without_inputs(plan, model) if captured is None else plan
    place_weights(model, {name: devices[home] for name, home in plan.weights.items()})
    lock = threading.RLock()
    install_parts(model, plan, captured, lock)
    make = Caller if plan.pipeline is None else PipelineCaller
    caller = make(plan, frontend, is_graph=plan.capture == "graph", is_pinned=is_pinned, lock=lock)
    install(model, SplitState(caller, plan, lock=lock))
    if plan.strategy == "replicate" and process_group_is_up():
        wrapped = replicate(model, devices[next(iter(plan.weights.values()))])
        wrapped.plan = plan  # type: ignore[assignment]  # the same attribute as on a split module
        return wrapped
    return model


def _partition_at_first_call(model: nn.Module, asked: Asked, verify: bool) -> nn.Module:
    if verify:
        raise PlanError("verify=True needs example inputs: pass args, or call autosplit.verify after the first call")
    if process_group_is_up():
        raise PlanError("under a process group replicas or a split must be chosen before the first call: pass args")
    frontend = Frontend(model, unsplit_class(model))

    def first_call(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_exporting():
            return exported(called, args, kwargs)  # no data flow: it stays as it is
        with between_calls(called):
            if is_called_by(called, first_call):  # else another thread's call came before
                decide(called, args, kwargs)
        return called.forward(*args, **kwargs)  # the hooks of this call have run

    def decide(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_uninitialised(called):
            with unsplit(called):
                initialise(called, args, kwargs)
        own = frontend if called is model else Frontend(called, unsplit_class(called))
        made, captured = _decide(called, own, args, kwargs, asked)
        apply_captured(called, made, own, captured, is_pinned=asked.capture == "graph")

    install(model, SplitState(first_call))
    return model


def _as_module(
    model: Model, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> tuple[nn.Module, Sequence[Any] | None, Mapping[str, Any] | None]:
    """An exported program's module, with the program's example inputs where none are given."""
    if not isinstance(model, ExportedProgram):
        return model, args, kwargs
    if args is None and kwargs is None and model.example_inputs is not None:
        args, kwargs = model.example_inputs
    return model.module(), args, kwargs


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise PlanError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise PlanError("model is a TorchScript module, whose forward runs in C++: pass the module it was made from")
    if "_orig_mod" in model._modules:
        raise PlanError("model comes from torch.compile: pass the module that you compiled (model._orig_mod)")
    if "forward" in model.__dict__:
        raise PlanError(
            f"this {type(model).__name__} has a forward of its own, set on the object: it would be called instead of "
            "the split one; delete it (model.__dict__.pop('forward')) or put it on a subclass"
        )
    if next(model.parameters(), None) is None:
        raise PlanError(f"{type(model).__name__} has no parameters: there is nothing to place; call it as it is")


def _check_inputs(args: object, kwargs: object) -> None:
    if args is not None and not isinstance(args, (tuple, list)):
        raise PlanError(f"args is a {type(args).__name__}: pass a tuple of positional inputs, as in args=(x,)")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise PlanError(f"kwargs is a {type(kwargs).__name__}: pass a dict of keyword inputs, as in kwargs={{'x': x}}")


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
