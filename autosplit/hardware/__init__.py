"""Devices that a user names, as a Cluster; a cluster's names as torch devices; and how fast its links are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from autosplit.device import HOST, Cluster, Device, find_cluster, unlinked, with_memory
from autosplit.errors import DeviceError
from autosplit.files import quoted
from autosplit.hardware.links import measure_links
from autosplit.hardware.present import (
    DeviceLike,
    absent,
    is_present,
    memory_of,
    names_of_type,
    present_device,
    present_names,
)
from autosplit.units import parse_bytes

__all__ = [
    "DeviceLike",
    "DevicesLike",
    "absent",
    "is_mesh",
    "is_present",
    "measure_links",
    "memory_of",
    "present_device",
    "present_names",
    "resolve",
    "torch_devices",
]

DevicesLike = str | Cluster | Sequence[DeviceLike] | Mapping[DeviceLike, str | int] | Mapping[str, Any]


def resolve(devices: DevicesLike) -> Cluster:
    """The cluster that ``devices`` means.

    Args:
        devices: "auto" (every accelerator), "cuda" (every device of the type), "cuda:0,cuda:1", a spec of described
            devices such as "2x24GiB" or "4xA100-80GB", a path of a cluster.toml or its content as a mapping, a list
            of names, torch devices or Device records, a mapping from device to memory ("22GiB"), a DeviceMesh (the
            devices of its ranks, which must be of this host), or a Cluster.

    Raises:
        DeviceError: none, unknown, repeated; says what is there.
    """
    known = find_cluster(devices)
    if known is not None:
        return known
    if is_mesh(devices):
        return _present(_names_of_mesh(devices))
    devices = getattr(devices, "devices", devices)  # an open cluster of virtual devices
    if isinstance(devices, str):
        return _from_text(devices)
    if isinstance(devices, Mapping):
        return unlinked(_device(name, parse_bytes(size)) for name, size in devices.items())
    if isinstance(devices, Sequence):
        return unlinked(_device(device) for device in devices)
    raise DeviceError(f"devices={devices!r}: expected 'auto', a list of devices, a mapping to memory, or a spec")


def torch_devices(cluster: Cluster) -> dict[str, torch.device]:
    """The torch device of each device of the cluster, and of the host.

    Raises:
        DeviceError: a device is only described: it can be planned for, but nothing can run on it.
    """
    found: dict[str, torch.device] = {}
    for name in cluster.names:
        try:
            found[name] = torch.device(name)
        except RuntimeError as error:
            raise DeviceError(
                f"device {quoted(name)} is described, not present: a plan can be made for it, but nothing runs on it; "
                f"plan for devices by the names that they have where the plan is applied, as a cluster.toml can "
                f"(here: {', '.join(present_names()) or 'only cpu'})"
            ) from error
    return found | {HOST: torch.device("cpu")}


def _from_text(text: str) -> Cluster:
    if text == "auto":
        present = present_names()
        if not present:
            raise DeviceError(
                "devices 'auto': no accelerator is present; give 'cpu', or describe devices, as in '2x24GiB'"
            )
        return _present(present)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) == 1 and ":" not in names[0] and names[0] != "cpu":
        return _present(names_of_type(names[0]))
    return _present(names)


def _present(names: Iterable[str]) -> Cluster:
    return unlinked(present_device(name) for name in names)


def _device(device: DeviceLike, memory_bytes: int | None = None) -> Device:
    if not isinstance(device, Device):
        return present_device(device, memory_bytes)
    return device if memory_bytes is None else with_memory(device, memory_bytes)


def is_mesh(devices: object) -> bool:
    """Whether this is torch's DeviceMesh, without importing torch.distributed for it."""
    return hasattr(devices, "device_type") and isinstance(getattr(devices, "mesh", None), torch.Tensor)


def _names_of_mesh(mesh: Any) -> list[str]:
    """The device of each rank of the mesh, rank r being device r of this host."""
    ranks = [int(rank) for rank in mesh.mesh.flatten().tolist()]
    count = len(names_of_type(mesh.device_type)) if mesh.device_type != "cpu" else 1
    beyond = [rank for rank in ranks if rank >= count]
    if beyond:
        raise DeviceError(
            f"DeviceMesh of {mesh.device_type} with rank {beyond[0]}: this host has {count} such device(s); "
            "a plan is for the devices of one host: pass those by name"
        )
    return [f"{mesh.device_type}:{rank}" for rank in ranks]
