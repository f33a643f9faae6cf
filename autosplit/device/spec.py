"""Described devices from a spec such as "2x24GiB" or "4xA100-80GB", with the links that the catalogue knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import combinations_with_replacement, permutations, product

from autosplit import catalogue
from autosplit.catalogue import RESERVE_BYTES, Entry
from autosplit.device.cluster import (
    DEFAULT_BANDWIDTH_BYTES_PER_S,
    DEFAULT_LATENCY_NS,
    HOST,
    UNKNOWN_BANDWIDTH_BYTES_PER_S,
    UNKNOWN_RATES,
    Cluster,
    Device,
    Link,
)
from autosplit.errors import AutosplitError, DeviceError
from autosplit.units import format_bytes, format_ns, parse_bytes

_MOST_DEVICES = 4096
_MOST_LINKS = 100_000

_ITEM = re.compile(r"\s*(?:(\d+)\s*x\s*)?(\S.*?)\s*\Z", re.IGNORECASE | re.DOTALL)
_SIZE = re.compile(r"[0-9.]+\s*[A-Za-z]+\Z")
_COUNTED_OR_SIZED = re.compile(r"\s*\d+\s*x|\s*[\d.]+\s*[KMGT]i?B", re.IGNORECASE)
_FORMS = "'2x24GiB', '4xA100-80GB' or 'cuda:0'"


def described(memories: Iterable[tuple[str, int]]) -> Cluster:
    """A cluster of described devices "gpu:0", "gpu:1", ... from (kind, memory_bytes) pairs."""
    return Cluster(
        devices=tuple(Device(name=f"gpu:{i}", kind=kind, memory_bytes=size) for i, (kind, size) in enumerate(memories))
    )


def from_entry(name: str, entry: Entry, memory_bytes: int | None = None) -> Device:
    """The catalogue's figures as a device; its memory is ``memory_bytes``, or the catalogue's less the reserve."""
    return Device(
        name=name,
        kind=entry.name,
        memory_bytes=entry.usable_bytes if memory_bytes is None else memory_bytes,
        flops_per_s=entry.flops_per_s,
        bandwidth_bytes_per_s=entry.bandwidth_bytes_per_s,
    )


def is_described(spec: str) -> bool:
    """Whether a spec is of described devices ("2x24GiB", "4xA100-80GB", "H200"), not of names of present ones."""
    return bool(_COUNTED_OR_SIZED.match(spec)) or catalogue.find(spec.split(",", 1)[0]) is not None


def meant(name: str) -> str:
    """Words that follow a complaint about a name: the names of the catalogue nearest to it, "" when none is near.

    >>> meant("RTX4091")
    '; did you mean RTX4090 or RTX5090 or RTX4080 or RTX3090?'
    """
    close = catalogue.near(name)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def parse_cluster(spec: str) -> Cluster:
    """A cluster of described devices: "2x24GiB", "2x24GiB,1x8GiB", "4xA100-80GB", "2xRTX4090,RTX3060".

    Devices of the catalogue bring its rates and links, and their memory less a reserve; a size is taken as it is.

    Raises:
        DeviceError: the spec is empty, asks for zero devices, names an unknown device, or is not of that form.

    >>> parse_cluster("2x16GiB").names
    ('gpu:0', 'gpu:1')
    >>> parse_cluster("2 x rtx 4090, 8GiB").devices[1].kind
    'RTX4090'
    """
    devices: list[Device] = []
    for item in spec.split(","):
        count, what = _counted(spec, item)
        if len(devices) + count > _MOST_DEVICES:
            raise DeviceError(f"device spec {spec!r}: {len(devices) + count} devices; the limit is {_MOST_DEVICES}")
        entry = catalogue.find(what)
        size_bytes = _size_bytes(spec, item, what) if entry is None else entry.usable_bytes
        for name in (f"gpu:{i}" for i in range(len(devices), len(devices) + count)):
            known = None if entry is None else from_entry(name, entry)
            devices.append(known or Device(name=name, kind=what, memory_bytes=size_bytes))
    return _joined(spec, devices)


def _counted(spec: str, item: str) -> tuple[int, str]:
    match = _ITEM.match(item)
    if match is None:
        raise DeviceError(f"device spec {spec!r}: {item!r} is not of the form {_FORMS}")
    count = int(match[1]) if match[1] else 1
    if count == 0:
        raise DeviceError(f"device spec {spec!r}: {item!r} asks for zero devices; ask for at least one")
    return count, match[2]


def _size_bytes(spec: str, item: str, text: str) -> int:
    if _SIZE.match(text) is None:
        raise DeviceError(
            f"device spec {spec!r}: {item!r} is not of the form {_FORMS}"
            f"{meant(text) or '; `autosplit devices --catalogue` lists the names'}"
        )
    try:
        size_bytes = parse_bytes(text)
    except AutosplitError as error:
        raise DeviceError(f"device spec {spec!r}: {error}") from error
    if size_bytes == 0:
        raise DeviceError(f"device spec {spec!r}: {item!r} asks for devices without memory")
    return size_bytes


# ---------------------------------------------------------------- links that the catalogue knows


def _joined(spec: str, devices: list[Device]) -> Cluster:
    """The cluster with the catalogue's links. All devices are taken to be in one host.

    The default is the slowest link between two devices; only pairs that differ from it get a Link of their own.
    """
    plain = Cluster(devices=tuple(devices), assumptions=tuple(_speeds_in_words(devices)))
    by_kind: dict[str, list[Device]] = {}
    for device in devices:
        by_kind.setdefault(device.kind, []).append(device)
    if not any(catalogue.find(kind) for kind in by_kind):
        return plain
    pairs = [(a, b) for a, b in combinations_with_replacement(by_kind, 2) if a != b or len(by_kind[a]) > 1]
    speeds = {(a, b): _speed(a, b) for a, b in pairs}
    default = min((speed for speed, _ in speeds.values()), default=DEFAULT_BANDWIDTH_BYTES_PER_S)
    ends = [ends for pair, (speed, _) in speeds.items() if speed != default for ends in _ends(by_kind, *pair)]
    if len(ends) > _MOST_LINKS:
        raise DeviceError(
            f"device spec {spec!r}: {len(ends)} links of different speeds; the limit is {_MOST_LINKS}: "
            "describe fewer devices, or one kind"
        )
    links = [_link(a.name, b.name, _speed(a.kind, b.kind)[0]) for a, b in ends]
    for device in devices:
        speed = _speed(device.kind, None)[0]
        if speed != default:
            links += [_link(HOST, device.name, speed), _link(device.name, HOST, speed)]
    words = [*_speeds_in_words(devices), *_links_in_words(by_kind, speeds)]
    return Cluster(
        devices=tuple(devices), links=tuple(links), default_bandwidth_bytes_per_s=default, assumptions=tuple(words)
    )


def _speed(kind: str, other: str | None) -> tuple[int, str]:
    """Bytes per second each way between two kinds, or a kind and the host (None), and what that rests on."""
    a, b = catalogue.find(kind), catalogue.find(other or kind)
    if a is None or b is None:
        return DEFAULT_BANDWIDTH_BYTES_PER_S, "assumed"
    if other is not None and a.fabric is not None and b.fabric is not None and a.fabric.name == b.fabric.name:
        return a.fabric.bandwidth_bytes_per_s, f"{a.fabric.name} ({a.fabric.source})"
    slower = min(a.pcie, b.pcie, key=lambda bus: bus.bandwidth_bytes_per_s)
    return slower.bandwidth_bytes_per_s, f"{slower.name} ({slower.source})"


def _ends(by_kind: dict[str, list[Device]], a: str, b: str) -> Iterator[tuple[Device, Device]]:
    if a == b:
        yield from permutations(by_kind[a], 2)
    else:
        yield from product(by_kind[a], by_kind[b])
        yield from product(by_kind[b], by_kind[a])


def _link(src: str, dst: str, bandwidth_bytes_per_s: int) -> Link:
    return Link(src=src, dst=dst, bandwidth_bytes_per_s=bandwidth_bytes_per_s, latency_ns=DEFAULT_LATENCY_NS)


def _speeds_in_words(devices: Iterable[Device]) -> Iterator[str]:
    flops, bandwidth = UNKNOWN_RATES.float32 / 1e12, UNKNOWN_BANDWIDTH_BYTES_PER_S / 1e9
    for kind in dict.fromkeys(device.kind for device in devices):
        entry = catalogue.find(kind)
        if entry is None:
            yield f"devices: {kind}: nothing is known of its speed: taken as {flops:g} TFLOP/s and {bandwidth:g} GB/s"
        else:
            total, reserve = format_bytes(entry.total_bytes), format_bytes(RESERVE_BYTES)
            yield f"devices: {kind}: peak rates of {entry.source}; memory {total} less {reserve} in reserve"


def _links_in_words(by_kind: dict[str, list[Device]], speeds: dict[tuple[str, str], tuple[int, str]]) -> Iterator[str]:
    """One line for each speed; peaks, except for the latency."""
    between: dict[tuple[int, str], list[str]] = {}
    for (a, b), speed in speeds.items():
        between.setdefault(speed, []).append(f"{a} <-> {b}")
    for kind in by_kind:
        between.setdefault(_speed(kind, None), []).append(f"host <-> {kind}")
    for (bandwidth, source), pairs in between.items():
        yield f"links: {', '.join(pairs)}: {bandwidth / 1e9:g} GB/s each way, {source}"
    yield f"links: latency {format_ns(DEFAULT_LATENCY_NS)}, assumed; every device taken to be in one host"
