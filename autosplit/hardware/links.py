"""How fast the links between present devices are, and whether what passes them arrives unchanged."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

import msgspec
import torch

from autosplit.device import HOST, Cluster, Link
from autosplit.errors import DeviceError, DeviceFaultError
from autosplit.units import format_bytes

MAX_PROBE_BYTES = 64 * 2**20
"""Most bytes that a measurement takes of each of the two devices of a pair; the host holds up to five times that."""

REPEATS = 7
_STEP, _LEAST_BYTES = 4, 4096
_SHARE_OF_MEMORY = 32  # a copy takes a 32nd of a device at most: allocators take segments of up to 20 MiB for it
_LEAST_MEMORY_BYTES = 4 * 2**20


def measure_links(cluster: Cluster, say: Callable[[str], None] = lambda pair: None) -> Cluster:
    """``cluster`` with a measured link for each ordered pair of its devices, and of each with the host.

    A pair is first checked: random bytes go from the host to the one, to the other, and back, the host's own links
    first; what returns must be what was sent. Then copies of 4 KiB, 16 KiB, ... up to MAX_PROBE_BYTES are timed as
    torch makes them, from the call until both devices are idle, the median of REPEATS each. The pair's latency and
    bandwidth are the line through these times that is nearest in relative error. Where there is no peer access, a
    copy goes through host memory, and so is measured.

    Args:
        cluster: devices that are present; its links are replaced.
        say: called with "src -> dst" before each pair.

    Raises:
        DeviceError: a device is not present, has too little memory for the smallest copy, or has no data to move.
        DeviceFaultError: a link changed the data, with the pair's names.
        torch.OutOfMemoryError: another process took the memory meanwhile.
    """
    ends = {HOST: torch.device("cpu"), **{name: _torch_device(name) for name in cluster.names}}
    pairs = [(a, b) for a, b in permutations(ends, 2) if ends[a] != ends[b]]
    if not pairs:
        return cluster
    pairs.sort(key=lambda pair: HOST not in pair)  # the way to and from each device first: the checks use it
    generator = torch.Generator().manual_seed(0)
    sent = torch.randint(-(2**63), 2**63 - 1, (MAX_PROBE_BYTES // 8,), generator=generator).view(torch.uint8)
    links = []
    for src, dst in pairs:
        say(f"{src} -> {dst}")
        sizes = _sizes(cluster, src, dst)
        bandwidth, latency_ns = _measure(_pair(src, dst), sent[: sizes[-1]], ends[src], ends[dst], sizes)
        links.append(Link(src=src, dst=dst, bandwidth_bytes_per_s=bandwidth, latency_ns=latency_ns))
    kept = tuple(line for line in cluster.assumptions if not line.startswith("links:"))
    return msgspec.structs.replace(cluster, links=tuple(links), assumptions=(*kept, *_in_words(pairs)))


def fit(times: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Bandwidth in bytes per second and latency in ns from (bytes, ns) pairs, each at least 1.

    Least squares of the relative error of ns = latency + bytes / bandwidth. Where that gives a negative latency, or
    times that do not grow with the size, the latency is 0.

    >>> fit([(1000, 1100), (10_000, 2000), (100_000, 11_000)])
    (10000000000, 1000)
    """
    weight = sum(1 / ns**2 for _, ns in times)
    weighted_size = sum(size / ns**2 for size, ns in times)
    weighted_square = sum((size / ns) ** 2 for size, ns in times)
    inverse = sum(1 / ns for _, ns in times)
    inverse_size = sum(size / ns for size, ns in times)
    determinant = weight * weighted_square - weighted_size**2
    slope = latency = -1.0
    if determinant > 1e-9 * weight * weighted_square:
        slope = (weight * inverse_size - weighted_size * inverse) / determinant
        latency = (weighted_square * inverse - weighted_size * inverse_size) / determinant
    if slope <= 0 or latency < 0:
        slope, latency = inverse_size / weighted_square, 0.0
    return max(1, round(1e9 / slope)), round(latency)


def _measure(
    pair: str, sent: torch.Tensor, src: torch.device, dst: torch.device, sizes: Sequence[int]
) -> tuple[int, int]:
    """Bandwidth and latency of one pair, after ``sent`` went over it unchanged; nothing is held after it."""
    source, target, arrived = (torch.zeros_like(sent, device=device) for device in (src, dst, "cpu"))
    _copy(source, sent)
    _copy(target, source)
    _copy(arrived, target)
    if not torch.equal(arrived, sent):
        raise DeviceFaultError(
            f"link {pair} changes data: {int((arrived != sent).sum())} of {sent.numel()} bytes arrived as others. "
            "What is computed over it would be wrong: leave one of the two devices out, or see to its driver, BIOS "
            "and cabling (on a PC, IOMMU and ACS settings are known to break copies between devices)"
        )
    del arrived
    return fit([(size, _median_ns(target[:size], source[:size])) for size in sizes])


def _pair(src: str, dst: str) -> str:
    """The pair in words. What comes back from a device has gone both ways between it and the host."""
    if HOST not in (src, dst):
        return f"{src} -> {dst}"
    return f"{HOST} <-> {dst if src == HOST else src}"


def _median_ns(dst: torch.Tensor, src: torch.Tensor) -> int:
    times = [_time_ns(dst, src) for _ in range(REPEATS + 1)]
    return max(1, round(statistics.median(times[1:])))  # the first warms up


def _time_ns(dst: torch.Tensor, src: torch.Tensor) -> int:
    start = time.perf_counter_ns()
    _copy(dst, src)
    return time.perf_counter_ns() - start


def _copy(dst: torch.Tensor, src: torch.Tensor) -> None:
    """Copy, and wait until both devices are idle."""
    dst.copy_(src)
    for device in (src.device, dst.device):
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)


def _sizes(cluster: Cluster, src: str, dst: str) -> list[int]:
    """Bytes of the copies to time, at most a 32nd of what a plan may use of either device."""
    memories = {name: cluster.device(name).memory_bytes for name in (src, dst) if name != HOST}
    most = min(MAX_PROBE_BYTES, *(size // _SHARE_OF_MEMORY for size in memories.values()))
    name = min(memories, key=lambda name: memories[name])
    if memories[name] < _LEAST_MEMORY_BYTES:
        raise DeviceError(
            f"device {name!r} has {format_bytes(memories[name])} to use: measuring its links takes at least "
            f"{format_bytes(_LEAST_MEMORY_BYTES)}; free memory there, or leave it out"
        )
    sizes = [_LEAST_BYTES]
    while sizes[-1] * _STEP <= most:
        sizes.append(sizes[-1] * _STEP)
    return sizes


def _torch_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is described, not present: its links cannot be measured") from error
    if device.type != "cpu" and not getattr(torch.get_device_module(device), "holds_data", True):
        raise DeviceError(f"device {name!r} is virtual and without data: nothing moves, so nothing can be measured")
    return device


def _in_words(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    most = format_bytes(MAX_PROBE_BYTES)
    yield f"links: measured: {len(pairs)} pairs, copies of 4 KiB to at most {most}, median of {REPEATS}"
    without = [f"{a} -> {b}" for a, b in pairs if not _is_peer(a, b)]
    if without:
        yield f"links: no peer access, so through host memory: {', '.join(without)}"


def _is_peer(src: str, dst: str) -> bool:
    """False for two CUDA devices of which one cannot reach the other's memory."""
    if not (src.startswith("cuda") and dst.startswith("cuda")):
        return True
    return torch.cuda.can_device_access_peer(torch.device(src), torch.device(dst))
