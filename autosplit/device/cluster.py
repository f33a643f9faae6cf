"""Devices, links and clusters."""

from __future__ import annotations

from functools import cached_property

import msgspec

from autosplit.catalogue import ASSUMED_LAUNCH_NS, Rates
from autosplit.errors import DeviceError

HOST = "host"
"""The name of the place where inputs arrive from and outputs go to when that is none of the devices."""

DEFAULT_BANDWIDTH_BYTES_PER_S = 25_000_000_000
DEFAULT_LATENCY_NS = 10_000
"""Of a link of which nothing is known: about what PCIe 4 x16 gives to a copy."""

UNKNOWN_RATES = Rates(float32=50_000_000_000_000)
UNKNOWN_BANDWIDTH_BYTES_PER_S = 1_000_000_000_000
"""What a device is taken to reach when nothing is known of it but its memory."""


_SYNCHRONOUS = ("cpu", "sim")

_MOST = 2**63 - 1  # what a plan file and TOML can hold


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place to run.

    Attributes:
        name: "cuda:0", "sim:1", or "gpu:0" for a described device.
        kind: devices of one kind share their measured costs; for a device of the catalogue, its name there.
        memory_bytes: what a plan may use there; context and reserve are already taken off.
        flops_per_s: dense matrix rates by number format, used by the roofline estimate.
        bandwidth_bytes_per_s: memory bandwidth used by the roofline estimate.
        launch_ns: time to start one operator.
    """

    name: str
    kind: str
    memory_bytes: int
    flops_per_s: Rates = UNKNOWN_RATES
    bandwidth_bytes_per_s: int = UNKNOWN_BANDWIDTH_BYTES_PER_S
    launch_ns: int = ASSUMED_LAUNCH_NS

    def __post_init__(self) -> None:
        if not isinstance(self.flops_per_s, Rates):
            raise DeviceError(
                f"device {self.name!r}: flops_per_s is {self.flops_per_s!r}: pass rates by number format, as in "
                "Rates(float32=10**13, bfloat16=10**14)"
            )
        rates = {f"flops_per_s.{name}": getattr(self.flops_per_s, name) for name in Rates.__struct_fields__}
        for name, rate in {**rates, "bandwidth_bytes_per_s": self.bandwidth_bytes_per_s}.items():
            if rate is not None:
                _check(f"device {self.name!r}: {name}", rate, least=1)
        _check(f"device {self.name!r}: memory_bytes", self.memory_bytes, least=0)
        _check(f"device {self.name!r}: launch_ns", self.launch_ns, least=0)

    def rate(self, dtype: str) -> int:
        """Dense matrix rate in flop/s for a dtype as torch names it, without "torch.", or "tf32".

        A format whose rate is unknown takes float32's. float32 factors run as "tf32" only where torch.backends says
        so; the caller asks for that by its name.

        >>> device = Device(name="a", kind="k", memory_bytes=1, flops_per_s=Rates(float32=10, bfloat16=80))
        >>> device.rate("bfloat16"), device.rate("float32"), device.rate("float8_e4m3fn")
        (80, 10, 10)
        """
        return self.flops_per_s.of(dtype)

    @property
    def is_synchronous(self) -> bool:
        """Whether the host does the work itself and waits for each operator: "cpu" and "sim:0" do, told by the name.

        All others are accelerators: the host starts an operator, which takes it ``launch_ns``, and goes on.

        >>> Device(name="sim:0", kind="k", memory_bytes=1).is_synchronous
        True
        """
        return self.name.partition(":")[0] in _SYNCHRONOUS


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bandwidth and latency from one device to another (names as in Device.name, or "host")."""

    src: str
    dst: str
    bandwidth_bytes_per_s: int
    latency_ns: int

    def __post_init__(self) -> None:
        if self.src == self.dst:
            raise DeviceError(f"link {self.src!r} -> {self.dst!r}: a link joins two devices")
        _check_speed(f"link {self.src!r} -> {self.dst!r}", self.bandwidth_bytes_per_s, self.latency_ns)


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Devices and the links between them. A pair without a Link uses the defaults.

    The order of ``devices`` is the order in which stages are laid out. ``assumptions`` says in words what the
    figures rest on; a plan for the cluster repeats it.
    """

    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    default_bandwidth_bytes_per_s: int = DEFAULT_BANDWIDTH_BYTES_PER_S
    default_latency_ns: int = DEFAULT_LATENCY_NS
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.devices:
            raise DeviceError("no devices: pass at least one, for example devices=['cuda:0', 'cuda:1']")
        seen: set[str] = set()
        for device in self.devices:
            if device.name in seen:
                raise DeviceError(f"device {device.name!r} appears more than once: name each device once")
            seen.add(device.name)
        _check_speed("default link", self.default_bandwidth_bytes_per_s, self.default_latency_ns)
        if len(self._link_of) < len(self.links):
            raise DeviceError("a pair of devices has two links in one direction: give each pair one")
        for link in self.links:
            for end in (link.src, link.dst):
                if end not in seen and end != HOST:
                    known = ", ".join([*self.names, HOST])
                    raise DeviceError(f"link {link.src!r} -> {link.dst!r}: {end!r} is not one of {known}")

    @cached_property
    def _link_of(self) -> dict[tuple[str, str], Link]:
        return {(link.src, link.dst): link for link in self.links}

    @cached_property
    def first_alike(self) -> dict[str, str]:
        """By device name, the first device that it can be swapped with: equal but for the name, and so are its links.

        O(devices x kinds of devices + links).
        """
        others: dict[str, dict[tuple[str, bool], tuple[int, int]]] = {name: {} for name in (*self.names, HOST)}
        for link in self.links:
            speed = (link.bandwidth_bytes_per_s, link.latency_ns)
            if speed != (self.default_bandwidth_bytes_per_s, self.default_latency_ns):
                others[link.src][link.dst, True] = others[link.dst][link.src, False] = speed

        def apart_from(name: str, other: str) -> dict[tuple[str, bool], tuple[int, int]]:
            return {(end, sends): speed for (end, sends), speed in others[name].items() if end != other}

        def alike(a: Device, b: Device) -> bool:
            there, back = others[a.name].get((b.name, True)), others[a.name].get((b.name, False))
            same = (
                msgspec.structs.replace(a, name=b.name) == b and a.is_synchronous == b.is_synchronous and there == back
            )
            return same and apart_from(a.name, b.name) == apart_from(b.name, a.name)

        firsts: list[Device] = []
        found: dict[str, str] = {}
        for device in self.devices:
            first = next((first for first in firsts if alike(first, device)), device)
            found[device.name] = first.name
            if first is device:
                firsts.append(device)
        return found

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

    def link(self, src: str, dst: str) -> Link:
        """The link from ``src`` to ``dst``; with the default figures where the pair has none."""
        found = self._link_of.get((src, dst))
        if found is not None:
            return found
        return Link(
            src=src,
            dst=dst,
            bandwidth_bytes_per_s=self.default_bandwidth_bytes_per_s,
            latency_ns=self.default_latency_ns,
        )

    def transfer_ns(self, src: str, dst: str, size_bytes: int) -> int:
        """Nanoseconds to copy ``size_bytes`` from ``src`` to ``dst``; 0 when they are one device."""
        if src == dst:
            return 0
        link = self._link_of.get((src, dst))
        if link is not None:
            return link.latency_ns + size_bytes * 10**9 // link.bandwidth_bytes_per_s
        return self.default_latency_ns + size_bytes * 10**9 // self.default_bandwidth_bytes_per_s


def _check_speed(what: str, bandwidth_bytes_per_s: int, latency_ns: int) -> None:
    _check(f"{what}: bandwidth_bytes_per_s", bandwidth_bytes_per_s, least=1)
    _check(f"{what}: latency_ns", latency_ns, least=0)


def _check(what: str, value: int, *, least: int) -> None:
    if not least <= value <= _MOST:
        raise DeviceError(f"{what} is {value}; it must be {least} to {_MOST}")
