"""What a caller gives as ``devices``, as a Cluster: as far as that is known without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from autosplit import catalogue
from autosplit.device.cluster import Cluster, Device
from autosplit.device.file import from_data, read_cluster
from autosplit.device.spec import is_described, parse_cluster
from autosplit.errors import DeviceError
from autosplit.units import format_ns, parse_bytes

DescribedLike = str | Cluster | Sequence[Device] | Mapping[Device, str | int] | Mapping[str, Any]


def cluster_of(devices: DescribedLike) -> Cluster:
    """The cluster that ``devices`` means.

    Args:
        devices: a Cluster, a spec of described devices such as "2x24GiB" or "4xA100-80GB", the path of a cluster.toml
            or its content as a mapping, a list of Device records, or a mapping from them to memory ("22GiB").

    Raises:
        DeviceError: it is none of these, or what it says is wrong.

    >>> cluster_of([Device(name="a", kind="k", memory_bytes=1)]).names
    ('a',)
    """
    found = find_cluster(devices)
    if found is None:
        raise DeviceError(
            f"devices={devices!r}: expected described devices: a spec such as '2x24GiB', a path to a cluster.toml, "
            "a list of autosplit.Device, or a Cluster; `autosplit devices --out cluster.toml` writes one of the "
            "devices that are present"
        )
    return found


def find_cluster(devices: object) -> Cluster | None:
    """The same, and None for what can only be known with torch, or not at all."""
    if isinstance(devices, Cluster):
        return devices
    if isinstance(devices, str):
        if devices.endswith(".toml"):
            return read_cluster(devices)
        return parse_cluster(devices) if is_described(devices) else None
    if isinstance(devices, Mapping):
        if "devices" in devices:
            return from_data({str(key): value for key, value in devices.items()})
        return unlinked(map(with_memory, devices, devices.values())) if _are_records(devices) else None
    return unlinked(devices) if isinstance(devices, Sequence) and _are_records(devices) else None


def with_memory(device: Device, size: str | int) -> Device:
    """The same device with another memory, in bytes or as in "22GiB"."""
    return msgspec.structs.replace(device, memory_bytes=parse_bytes(size))


def unlinked(devices: Iterable[Device]) -> Cluster:
    """Devices with links of which nothing is known yet."""
    cluster = Cluster(devices=tuple(devices))
    return msgspec.structs.replace(cluster, assumptions=tuple(_in_words(cluster)))


def _are_records(devices: Iterable[object]) -> bool:
    return all(isinstance(device, Device) for device in devices)


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
