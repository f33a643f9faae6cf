"""Devices, links and clusters: what a plan places nodes on. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from autosplit.errors import AutosplitError, DeviceError
from autosplit.units import parse_bytes

HOST = "host"
"""The name of the place where inputs arrive from and outputs go to when that is none of the devices."""

_ITEM = re.compile(r"\s*(?:(\d+)\s*x\s*)?([0-9.]+\s*[A-Za-z]+)\s*\Z")


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place to run.

    Attributes:
        name: "cuda:0", "sim:1", or "gpu:0" for a described device.
        kind: devices of one kind share their measured costs.
        memory_bytes: what a plan may use there; context and reserve are already taken off.
        flops_per_s: dense matrix rate used by the roofline estimate.
        bandwidth_bytes_per_s: memory bandwidth used by the roofline estimate.
        launch_ns: time to start one operator.
    """

    name: str
    kind: str
    memory_bytes: int
    flops_per_s: int = 50_000_000_000_000
    bandwidth_bytes_per_s: int = 1_000_000_000_000
    launch_ns: int = 5_000


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bandwidth and latency from one device to another (names as in Device.name)."""

    src: str
    dst: str
    bandwidth_bytes_per_s: int
    latency_ns: int


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices and the links between them. A pair without a Link uses the defaults.

    The order of ``devices`` is the order in which stages are laid out.
    """

    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    default_bandwidth_bytes_per_s: int = 25_000_000_000
    default_latency_ns: int = 10_000

    def __post_init__(self) -> None:
        if not self.devices:
            raise DeviceError("no devices: pass at least one, for example devices=['cuda:0', 'cuda:1']")
        seen: set[str] = set()
        for device in self.devices:
            if device.name in seen:
                raise DeviceError(f"device {device.name!r} appears more than once: name each device once")
            seen.add(device.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Device names in order."""
        return tuple(device.name for device in self.devices)

    def device(self, name: str) -> Device:
        """The device called ``name``.

        Raises:
            DeviceError: there is none.
        """
        for device in self.devices:
            if device.name == name:
                return device
        raise DeviceError(f"unknown device {name!r}: this cluster has {', '.join(self.names)}")

    def transfer_ns(self, src: str, dst: str, size_bytes: int) -> int:
        """Nanoseconds to copy ``size_bytes`` from ``src`` to ``dst``; 0 when they are one device."""
        if src == dst:
            return 0
        for link in self.links:
            if (link.src, link.dst) == (src, dst):
                return link.latency_ns + size_bytes * 10**9 // link.bandwidth_bytes_per_s
        return self.default_latency_ns + size_bytes * 10**9 // self.default_bandwidth_bytes_per_s


def described(memories: Iterable[tuple[str, int]]) -> Cluster:
    """A cluster of described devices "gpu:0", "gpu:1", ... from (kind, memory_bytes) pairs."""
    return Cluster(
        devices=tuple(Device(name=f"gpu:{i}", kind=kind, memory_bytes=size) for i, (kind, size) in enumerate(memories))
    )


def parse_cluster(spec: str) -> Cluster:
    """A cluster of described devices from a spec such as "2x24GiB" or "2x24GiB,1x8GiB".

    Raises:
        DeviceError: the spec is empty, asks for zero devices, or is not of that form.

    >>> parse_cluster("2x16GiB").names
    ('gpu:0', 'gpu:1')
    """
    memories: list[tuple[str, int]] = []
    for item in spec.split(","):
        match = _ITEM.match(item)
        if match is None:
            raise DeviceError(f"device spec {spec!r}: {item!r} is not of the form '2x24GiB' or 'cuda:0'")
        count, size = match.groups()
        if count is not None and int(count) == 0:
            raise DeviceError(f"device spec {spec!r}: {item!r} asks for zero devices; ask for at least one")
        if int(count or 1) > 4096:
            raise DeviceError(f"device spec {spec!r}: {count} devices; the limit is 4096")
        try:
            size_bytes = parse_bytes(size)
        except AutosplitError as error:
            raise DeviceError(f"device spec {spec!r}: {error}") from error
        if size_bytes == 0:
            raise DeviceError(f"device spec {spec!r}: {item!r} asks for devices without memory")
        memories += [(size.strip(), size_bytes)] * int(count or 1)
    return described(memories)
