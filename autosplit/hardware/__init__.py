"""Devices that a user names, as a Cluster; a cluster's names as torch devices; and how fast its links are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch

from autosplit import catalogue
from autosplit.device import HOST, Cluster, Device, from_data, is_described, parse_cluster, read_cluster
from autosplit.errors import DeviceError
from autosplit.hardware.links import measure_links
from autosplit.hardware.present import DeviceLike, is_present, memory_of, names_of_type, present_device, present_names
from autosplit.units import format_ns, parse_bytes

__all__ = [
    "DeviceLike",
    "DevicesLike",
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
    if isinstance(devices, Cluster):
        return devices
    if _is_mesh(devices):
        return _present(_names_of_mesh(devices))
    devices = getattr(devices, "devices", devices)  # an open cluster of virtual devices
    if isinstance(devices, str):
        return _from_text(devices)
    if isinstance(devices, Mapping):
        if "devices" in devices:
            return from_data({str(key): value for key, value in devices.items()})
        return _joined(_device(name, parse_bytes(size)) for name, size in devices.items())
    if isinstance(devices, Sequence):
        return _joined(_device(device) for device in devices)
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
                f"device {name!r} is described, not present: a plan can be made for it, but nothing can run on it; "
                f"plan for devices by the names that they have where the plan is applied, as a cluster.toml can "
                f"(here: {', '.join(present_names()) or 'only cpu'})"
            ) from error
    return found | {HOST: torch.device("cpu")}


def _from_text(text: str) -> Cluster:
    if text == "auto":
        present = present_names()
        if not present:
            raise DeviceError(
                "devices='auto': no accelerator is present; pass devices=['cpu'] or a spec like '2x24GiB'"
            )
        return _present(present)
    if text.endswith(".toml"):
        return read_cluster(text)
    if is_described(text):
        return parse_cluster(text)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) == 1 and ":" not in names[0] and names[0] != "cpu":
        return _present(names_of_type(names[0]))
    return _present(names)


def _present(names: Iterable[str]) -> Cluster:
    return _joined(present_device(name) for name in names)


def _device(device: DeviceLike, memory_bytes: int | None = None) -> Device:
    if not isinstance(device, Device):
        return present_device(device, memory_bytes)
    return device if memory_bytes is None else msgspec.structs.replace(device, memory_bytes=memory_bytes)


def _joined(devices: Iterable[Device]) -> Cluster:
    """Devices with links of which nothing is known yet."""
    cluster = Cluster(devices=tuple(devices))
    return msgspec.structs.replace(cluster, assumptions=tuple(_in_words(cluster)))


def _in_words(cluster: Cluster) -> Iterator[str]:
    first = {device.kind: device for device in reversed(cluster.devices)}
    plain = Device(name="", kind="", memory_bytes=0)
    for kind in dict.fromkeys(device.kind for device in cluster.devices):
        entry = catalogue.CPU if kind == catalogue.CPU.name else catalogue.find(kind)
        if entry is not None:
            yield f"devices: {kind}: peak rates, {entry.source}"
        elif first[kind].flops_per_s == plain.flops_per_s:
            yield (
                f"devices: {kind}: not in the catalogue: taken as {plain.flops_per_s.float32 / 1e12:g} TFLOP/s "
                f"and {plain.bandwidth_bytes_per_s / 1e9:g} GB/s"
            )
    if len(cluster.devices) > 1:
        yield (
            f"links: not measured: taken as {cluster.default_bandwidth_bytes_per_s / 1e9:g} GB/s and "
            f"{format_ns(cluster.default_latency_ns)} (`autosplit devices --measure` measures them)"
        )


def _is_mesh(devices: object) -> bool:
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
