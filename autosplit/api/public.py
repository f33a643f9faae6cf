"""partition, plan and apply."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from torch import nn

from autosplit.api.planning import ObjectiveChoice, Request, StrategyChoice, make_plan
from autosplit.api.running import split_state
from autosplit.device import Cluster
from autosplit.errors import CapacityError, PlanError
from autosplit.graph import Mode
from autosplit.hardware import DevicesLike, resolve, torch_devices
from autosplit.optimizers import OptimizerLike
from autosplit.placement import Plan, check_plan
from autosplit.replicate import process_group_is_up, replicate
from autosplit.runtime import SplitState, install, place_weights, weight_signature
from autosplit.verification import verify as run_verify


def plan(
    model: nn.Module,
    devices: DevicesLike = "auto",
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: Mode | None = None,
    strategy: StrategyChoice = "auto",
    objective: ObjectiveChoice = "auto",
    optimizer: OptimizerLike | None = None,
    placement: Mapping[str, str] | None = None,
) -> Plan:
    """Decide what of ``model`` runs where, without moving or running anything.

    Args:
        model: on any device; the meta device will do, no weight is read.
        devices: see autosplit.hardware.resolve; devices may be described only ("2x24GiB").
        args: positional example inputs; only their shapes and dtypes are read, so meta tensors will do.
        kwargs: keyword example inputs.
        mode: "infer" or "train"; None reads ``model.training``.
        strategy: "auto" places on one device when it fits, and splits when it does not.
        objective: what a split minimises: "latency" (one request), "throughput" or "memory" (least peak).
            "auto" is latency.
        optimizer: what training memory is planned for: "sgd", "adam", "adamw", an instance, or a function from
            parameters to an optimizer. None in training assumes AdamW and says so.
        placement: a placement by hand: device name by module path or node name. What it leaves open follows its
            weights and inputs. It is checked and costed like any other.

    Returns:
        The plan; its memory figures in bytes are what the emitted program allocates on fake tensors.

    Raises:
        CaptureError: the model cannot be captured, or args do not match its forward.
        CapacityError: nothing was found that fits; carries bytes needed and had by device.
        DeviceError: a device is unknown or repeated.
        PlanError: the model has no parameters, or what was asked contradicts itself.
    """
    if args is None and kwargs is None:
        raise PlanError("no example inputs: pass args=(...) or kwargs={...} as you would call the model")
    cluster = resolve(devices)
    chosen: Mode = mode or ("train" if model.training else "infer")
    request = Request(cluster, chosen, strategy, objective, optimizer, placement)
    if process_group_is_up() and strategy in ("auto", "replicate") and placement is None:
        try:
            local = msgspec.structs.replace(cluster, devices=(cluster.devices[_local_rank() % len(cluster.devices)],))
            return make_plan(model, args or (), kwargs or {}, Request(local, chosen, "replicate", objective, optimizer))
        except CapacityError:
            if strategy == "replicate":
                raise
    return make_plan(model, args or (), kwargs or {}, request)


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Place the weights of ``model`` as ``plan`` says, in place, and make its forward run split.

    Args:
        model: the model that the plan was made for; its weights keep their identity.
        plan: as ``plan`` returned or ``Plan.load`` read it.

    Returns:
        ``model`` itself, of a subclass of its class; for a "replicate" plan under an initialised process group it is
        in DistributedDataParallel.

    Raises:
        PlanError: the plan is for another model, or a weight has no data.
        DeviceError: a device of the plan is not present.
    """
    check_plan(plan)
    devices = torch_devices(plan.cluster)
    if plan.fingerprint != weight_signature(model):
        raise PlanError(
            f"stale plan: it was made for another model than this {type(model).__name__} "
            "(names, shapes or dtypes of the weights differ); plan again"
        )
    place_weights(model, {name: devices[home] for name, home in plan.weights.items()})
    install(model, split_state(plan))
    if plan.strategy == "replicate" and process_group_is_up():
        wrapped = replicate(model, devices[next(iter(plan.weights.values()))])
        wrapped.plan = plan  # type: ignore[assignment]  # the same attribute as on a split module
        return wrapped
    return model


def partition(
    model: nn.Module,
    devices: DevicesLike = "auto",
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: Mode | None = None,
    strategy: StrategyChoice = "auto",
    objective: ObjectiveChoice = "auto",
    optimizer: OptimizerLike | None = None,
    placement: Mapping[str, str] | None = None,
    plan: Plan | None = None,
    verify: bool = False,
) -> nn.Module:
    """Split ``model`` over ``devices``: the same object computes and trains as before, each part where it was placed.

    Without ``args`` and ``kwargs`` the model is planned and placed at its first call, from the real inputs; an
    optimizer made before stays valid, as parameters keep their identity.

    Args:
        model: any nn.Module whose forward can be captured as one graph.
        devices: devices that are present; see autosplit.hardware.resolve.
        args: as in plan.
        kwargs: as in plan.
        mode: as in plan.
        strategy: as in plan.
        objective: as in plan.
        optimizer: as in plan.
        placement: as in plan.
        plan: a plan made before; it is applied as it is, and only ``devices`` is looked at beside it.
        verify: compare with the unsplit model on the example inputs (it needs a second copy of the model).

    Returns:
        ``model`` itself; see apply.

    Raises:
        AutosplitError: as plan and apply; the model is then as it was.
    """
    cluster = resolve(devices)
    torch_devices(cluster)
    if plan is not None:
        _check_devices(plan, cluster)
        return apply(model, plan)
    options: dict[str, Any] = {
        "mode": mode,
        "strategy": strategy,
        "objective": objective,
        "optimizer": optimizer,
        "placement": placement,
    }
    if args is None and kwargs is None:
        return _partition_at_first_call(model, cluster, options, verify)
    made = _plan(model, cluster, args, kwargs, **options)
    unsplit = copy.deepcopy(model) if verify else None
    split = apply(model, made)
    if unsplit is not None:
        run_verify(unsplit, split, args or (), kwargs)
    return split


_plan = plan  # partition has an argument of that name


def _partition_at_first_call(model: nn.Module, cluster: Cluster, options: dict[str, Any], verify: bool) -> nn.Module:
    if verify:
        raise PlanError("verify=True needs example inputs: pass args, or call autosplit.verify after the first call")
    if next(model.parameters(), None) is None:
        raise PlanError(f"{type(model).__name__} has no parameters: there is nothing to place; call it as it is")
    if process_group_is_up():
        raise PlanError("under a process group replicas or a split must be chosen before the first call: pass args")

    def first_call(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        apply(called, _plan(called, cluster, args, kwargs, **options))
        return called.forward(*args, **kwargs)  # the hooks of this call have run

    install(model, SplitState(first_call))
    return model


def _check_devices(plan: Plan, cluster: Cluster) -> None:
    missing = [name for name in plan.cluster.names if name not in cluster.names]
    if missing:
        raise PlanError(
            f"stale plan: it uses {', '.join(missing)}, but given are {', '.join(cluster.names)}; plan again"
        )


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
