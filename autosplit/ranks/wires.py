"""How fast what one rank sends another is, measured by sending it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.distributed as dist

from autosplit.hardware.links import fit
from autosplit.ranks.seats import gather
from autosplit.units import format_ns

_SIZES_BYTES = (2**12, 2**16, 2**20, 2**22)
_REPEATS = 9


@dataclass(frozen=True)
class Wire:
    """One way from a rank to another.

    Attributes:
        ranks: the two that it was measured between.
        bandwidth_bytes_per_s: of a large tensor.
        latency_ns: of a small one.
    """

    ranks: tuple[int, int]
    bandwidth_bytes_per_s: int
    latency_ns: int

    def __str__(self) -> str:
        rate = f"{self.bandwidth_bytes_per_s / 1e9:.1f} GB/s, {format_ns(self.latency_ns)}"
        return f"{rate} between ranks {self.ranks[0]} and {self.ranks[1]}"


@dataclass(frozen=True)
class Wires:
    """The ways between all ranks: those within a host are taken to be alike, and so are those between hosts.

    Taken one by one they would differ by noise, and ranks that can change places would not be seen to.

    Attributes:
        hosts: of each rank.
        near: within a host; None where no two ranks share one.
        far: between hosts; None where there is one.
    """

    hosts: Sequence[str]
    near: Wire | None
    far: Wire | None

    def between(self, rank: int, other: int) -> Wire:
        """The way from ``rank`` to ``other``."""
        wire = self.near if self.hosts[rank] == self.hosts[other] else self.far
        assert wire is not None  # there is such a pair, and one was measured
        return wire


def measure_wires(host: str, device: torch.device) -> Wires:
    """The ways between the ranks of the world; every rank calls it, and all but two wait.

    Half of the time that a tensor takes there and back, the least of a few for each of some sizes, and the line
    through these.

    Args:
        host: where this rank is.
        device: of this rank; tensors cross from it where the backend can, as they do in a pipeline.
    """
    hosts = gather(host)
    backends = dict(pair.split(":", 1) for pair in str(dist.get_backend_config()).split(","))
    if backends.get(device.type, "gloo") == "gloo":
        device = torch.device("cpu")
    near, far = _first_pair(hosts, same=True), _first_pair(hosts, same=False)
    return Wires(hosts, _measure(near, device), _measure(far, device))


def _first_pair(hosts: Sequence[str], *, same: bool) -> tuple[int, int] | None:
    pairs = combinations(range(len(hosts)), 2)
    return next(((a, b) for a, b in pairs if (hosts[a] == hosts[b]) is same), None)


def _measure(pair: tuple[int, int] | None, device: torch.device) -> Wire | None:
    if pair is None:
        return None
    found = None
    if dist.get_rank() in pair:
        found = fit([(size, _least_ns(pair, size, device)) for size in _SIZES_BYTES])
    bandwidth, latency_ns = gather(found)[pair[0]]  # type: ignore[misc]  # it is one of the two
    return Wire(pair, bandwidth, latency_ns)


def _least_ns(pair: tuple[int, int], size_bytes: int, device: torch.device) -> int:
    data = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    times = [_there_and_back_ns(pair, data) for _ in range(_REPEATS + 1)]
    return max(1, min(times[1:]) // 2)  # the first warms up; whatever else the machine does only adds to the others


def _there_and_back_ns(pair: tuple[int, int], data: torch.Tensor) -> int:
    first, second = pair
    start = time.perf_counter_ns()
    if dist.get_rank() == first:
        dist.send(data, second)
        dist.recv(data, second)
    else:
        dist.recv(data, first)
        dist.send(data, first)
    if data.device.type != "cpu":
        torch.get_device_module(data.device).synchronize(data.device)
    return time.perf_counter_ns() - start
