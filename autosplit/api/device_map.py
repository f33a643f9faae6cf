"""A plan from the map that Accelerate and transformers place a model by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autosplit.api.problem import ObjectiveChoice
from autosplit.api.public import plan
from autosplit.choices import Mode
from autosplit.device import Cluster
from autosplit.errors import PlanError
from autosplit.files import quoted
from autosplit.hardware import DevicesLike, resolve
from autosplit.optimizers import OptimizerLike
from autosplit.placement import Plan


def from_device_map(
    model: nn.Module,
    device_map: Mapping[str, int | str | torch.device],
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    devices: DevicesLike | None = None,
    mode: Mode | None = None,
    objective: ObjectiveChoice = "auto",
    optimizer: OptimizerLike | None = None,
) -> Plan:
    """The plan that places ``model`` as a device map of Accelerate or transformers does; what it leaves open follows.

    Args:
        model: as in ``plan``.
        device_map: device by module path, "" being the model; a number is the place in ``devices``, or that
            accelerator. The longest path counts.
        args: as in ``plan``.
        kwargs: as in ``plan``.
        devices: as in ``plan``; None takes those that the map names.
        mode: as in ``plan``.
        objective: as in ``plan``: what its value and bound are of.
        optimizer: as in ``plan``.

    Returns:
        The plan, costed and checked as any other; its ``to_device_map`` is this map, told as shortly as can be.

    Raises:
        PlanError: an entry is "disk", or "cpu" beside accelerators (that is offloading, which autosplit does not do:
            it computes where weights are), or of a weight that is read elsewhere; or as in ``plan``.
        DeviceError, CaptureError, CapacityError: as in ``plan``.
    """
    if not device_map:
        raise PlanError("the device map is empty: give device by module path, as in {'': 'cuda:0'}")
    cluster = resolve(_named_devices(device_map) if devices is None else devices)
    named = {path: _name(path, device, cluster) for path, device in device_map.items()}
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    placement = {path: name for path, name in named.items() if path not in weights}
    made = plan(
        model, cluster, args, kwargs, mode=mode, objective=objective, optimizer=optimizer, placement=placement or None
    )
    for path, name in named.items():
        if path in weights and made.weights[path] != name:
            raise PlanError(
                f"the device map puts weight {quoted(path)} on {name}, but it is read on {made.weights[path]}: a plan "
                "keeps each weight where it is read; name its module instead"
            )
    return made


def _named_devices(device_map: Mapping[str, int | str | torch.device]) -> list[str]:
    """The map's devices, each once."""
    names = dict.fromkeys(_spelled(path, device) for path, device in device_map.items())
    if "cpu" in names and len(names) > 1:
        path = next(path for path, device in device_map.items() if str(device) == "cpu")
        raise PlanError(
            f"the device map has 'cpu' for {quoted(path)} beside other devices: there it means offloading, which is "
            "never done; give it a device, or pass devices=[..., 'cpu'] to have it computed on the CPU"
        )
    return list(names)


def _spelled(path: str, device: int | str | torch.device) -> str:
    if str(device) == "disk":
        raise PlanError(
            f"the device map has 'disk' for {quoted(path)}: autosplit never offloads to disk; give it a device, or "
            "plan(model, devices) without a map"
        )
    if isinstance(device, int):
        accelerator = torch.accelerator.current_accelerator()
        return f"{'cuda' if accelerator is None else accelerator.type}:{device}"
    return str(device)


def _name(path: str, device: int | str | torch.device, cluster: Cluster) -> str:
    """The cluster's name of an entry's device."""
    if isinstance(device, int) and not 0 <= device < len(cluster.names):
        raise PlanError(f"the device map puts {quoted(path)} on device {device}; there are {len(cluster.names)}")
    if isinstance(device, int):
        found = _spelled(path, device)
        return found if found in cluster.names else cluster.names[device]
    name = _spelled(path, device)
    name = f"{name}:0" if name not in cluster.names and f"{name}:0" in cluster.names else name
    return cluster.device(name).name
