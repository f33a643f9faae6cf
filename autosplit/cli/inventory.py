"""``autosplit devices``: which devices there are or a spec describes, what is known of them, and of their links."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import msgspec
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from autosplit import catalogue
from autosplit.catalogue import RESERVE_BYTES, Entry, Fabric
from autosplit.device import Cluster, Device, Link, is_described, parse_cluster, read_cluster, to_toml
from autosplit.files import write
from autosplit.report.documents import CatalogueDocument, DevicesDocument, encoded
from autosplit.report.grid import Grid
from autosplit.report.words import clean
from autosplit.units import format_bytes, format_ns

_MOST_LINKS = 20  # listed one by one; more are summed up in a line
_RATES = "rates: TFLOP/s, dense, peak"


@dataclass(frozen=True)
class Inventory:
    """A cluster, and by device name the bytes of memory in all, where that is known."""

    cluster: Cluster
    total_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def is_measurable(self) -> bool:
        """Whether there are links to measure: an accelerator beside the host."""
        return any(device.kind != catalogue.CPU.name for device in self.cluster.devices)


def take_stock(spec: str | None) -> Inventory:
    """The devices that ``spec`` names or describes; without one those present, the CPU when there is no other.

    Described devices and files are read without torch.

    Raises:
        DeviceError: a device is unknown, or not present.
    """
    if spec is not None and spec.endswith(".toml"):
        return Inventory(read_cluster(spec))
    if spec is not None and is_described(spec):
        cluster = parse_cluster(spec)
        entries = {device.name: catalogue.find(device.kind) for device in cluster.devices}
        return Inventory(cluster, {name: entry.total_bytes for name, entry in entries.items() if entry is not None})
    from autosplit.hardware import memory_of, present_names, resolve

    cluster = resolve(spec if spec is not None else "auto" if present_names() else "cpu")
    return Inventory(cluster, {name: memory_of(name)[1] for name in cluster.names})


def measured(stock: Inventory) -> Inventory:
    """``stock`` with its links measured.

    Raises:
        DeviceError: a device is only described.
        DeviceFaultError: a link changes the data that passes it.
    """
    from autosplit.hardware import measure_links

    return Inventory(measure_links(stock.cluster), stock.total_bytes)


def save(cluster: Cluster, path: Path) -> None:
    """Write a cluster.toml, whole or not at all."""
    write(path, to_toml(cluster).encode())


# ---------------------------------------------------------------- for programs


def document(stock: Inventory) -> str:
    """One JSON document: ``cluster`` as in a plan, ``total_bytes`` and ``figures`` (their source) by device name."""
    figures = {device.name: _figures(device) for device in stock.cluster.devices}
    return encoded(DevicesDocument(cluster=stock.cluster, total_bytes=stock.total_bytes, figures=figures))


def catalogue_document() -> str:
    """One JSON document: ``catalogue`` with every device and its sources, and ``reserve_bytes``."""
    entries = tuple({**msgspec.to_builtins(entry), "sources": entry.sources} for entry in catalogue.ENTRIES)
    return encoded(CatalogueDocument(catalogue=entries, reserve_bytes=RESERVE_BYTES))


# ---------------------------------------------------------------- for people


def listing(stock: Inventory) -> Iterator[RenderableType]:
    """The devices, alike ones in one row; their links; and what the figures rest on."""
    yield _devices(stock)
    yield Text(f"{_RATES}; GB/s: of the memory", style="dim")
    yield ""
    yield from _links(stock.cluster)
    if stock.cluster.assumptions:
        yield Text("rests on:", style="bold")
        yield _bullets(stock.cluster.assumptions)


def catalogue_listing() -> Iterator[RenderableType]:
    """Every device of the catalogue, then the source of its figures."""
    grid = Grid("name", ">memory", ">float32", ">tf32", ">float16", ">float8", ">int8", ">GB/s", wraps="text")
    for entry in catalogue.ENTRIES:
        rates = entry.flops_per_s
        known = (rates.float32, rates.tf32, rates.float16, rates.float8, rates.int8)
        grid.add_row(
            entry.name,
            format_bytes(entry.usable_bytes),
            *("?" if rate is None else f"{rate / 1e12:g}" for rate in known),
            f"{entry.bandwidth_bytes_per_s / 1e9:g}",
        )
    yield grid
    yield ""
    yield Text(
        f"memory: what a plan may use, {format_bytes(RESERVE_BYTES)} less than there is; {_RATES} (int8: TOP/s); "
        "?: unknown, float32's is taken; GB/s: of the memory"
    )
    yield Text("sources:", style="bold")
    yield _bullets(f"{', '.join(names)}: {source}" for source, names in _by_source().items())


def _by_source() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}

    def note(source: str, entry: Entry) -> None:
        names = found.setdefault(source, [])
        if entry.name not in names:
            names.append(entry.name)

    for entry in catalogue.ENTRIES:
        fabrics = (entry.pcie,) if entry.fabric is None else (entry.fabric, entry.pcie)
        for source in (*entry.sources, *map(_in_words, fabrics)):
            note(source, entry)
    return found


def _in_words(fabric: Fabric) -> str:
    return f"{fabric.name}, {fabric.bandwidth_bytes_per_s / 1e9:g} GB/s each way: {fabric.source}"


def _bullets(lines: Iterable[str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for line in lines:
        grid.add_row(" -", Text(clean(line), overflow="fold"))
    return grid


def _devices(stock: Inventory) -> Grid:
    grid = Grid("device", "kind", ">to use", ">of", ">float32", ">float16", ">GB/s", "figures", wraps="text")
    for _, alike in groupby(stock.cluster.devices, key=lambda device: _apart_from_name(device, stock)):
        same = list(alike)
        first, total = same[0], stock.total_bytes.get(same[0].name)
        grid.add_row(
            clean(_range(first.name, same[-1].name)),
            clean(first.kind),
            format_bytes(first.memory_bytes),
            "unknown" if total is None else format_bytes(total),
            *(f"{rate / 1e12:g}" for rate in (first.rate("float32"), first.rate("float16"))),
            f"{first.bandwidth_bytes_per_s / 1e9:g}",
            _figures(first),
        )
    return grid


def _range(first: str, last: str) -> str:
    """The names of neighbours in short: "gpu:0" and "gpu:3" are "gpu:0-3"."""
    alike, _, number = last.rpartition(":")
    if first == last:
        return first
    return f"{first}-{number}" if first.startswith(f"{alike}:") else f"{first} ... {last}"


def _apart_from_name(device: Device, stock: Inventory) -> tuple[Device, int | None]:
    return msgspec.structs.replace(device, name=""), stock.total_bytes.get(device.name)


def _figures(device: Device) -> str:
    """Where the device's rates come from."""
    entry = catalogue.CPU if device.kind == catalogue.CPU.name else catalogue.find(device.kind)
    if entry is not None and entry.flops_per_s == device.flops_per_s:
        return "assumed" if entry is catalogue.CPU else "catalogue"
    plain = Device(name="", kind="", memory_bytes=0)
    return "assumed" if device.flops_per_s == plain.flops_per_s else "described"


def _links(cluster: Cluster) -> Iterator[RenderableType]:
    if len(cluster.links) > _MOST_LINKS:
        bandwidths = [link.bandwidth_bytes_per_s / 1e9 for link in cluster.links]
        latencies = [format_ns(edge(link.latency_ns for link in cluster.links)) for edge in (min, max)]
        yield Text(
            f"{len(cluster.links)} links: {min(bandwidths):.1f} to {max(bandwidths):.1f} GB/s, "
            f"{latencies[0]} to {latencies[1]} (each one: --json, --out)"
        )
    elif cluster.links:
        grid = Grid("from", "to", ">bandwidth", ">latency", wraps="text")
        for link in cluster.links:
            grid.add_row(clean(link.src), clean(link.dst), *_speed(link))
        yield grid
    others = Link(
        src="any",
        dst="other",
        bandwidth_bytes_per_s=cluster.default_bandwidth_bytes_per_s,
        latency_ns=cluster.default_latency_ns,
    )
    what = "any other pair" if cluster.links else "links: any pair"
    yield Text(f"{what}: {', '.join(_speed(others))}")


def _speed(link: Link) -> tuple[str, str]:
    return f"{link.bandwidth_bytes_per_s / 1e9:.1f} GB/s", format_ns(link.latency_ns)
