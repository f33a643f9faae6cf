"""The text of ``Cluster.report``: memory by device, bytes moved by pair of devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autosplit.sim.world import NAME, Transfer, World
from autosplit.units import format_bytes


def render(world: World) -> str:
    """A table of capacity and peaks by device, and below it the transfer matrix when anything moved."""
    rows = [["device", "capacity", "peak allocated", "peak reserved"]]
    for index, allocator in enumerate(world.allocators):
        capacity = "unlimited" if allocator.capacity_bytes is None else format_bytes(allocator.capacity_bytes)
        peaks = (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes)
        rows.append([f"{NAME}:{index}", capacity, *map(format_bytes, peaks)])
    text = _table(rows)
    return f"{text}\n\n{_transfer_matrix(world.transfers)}" if world.transfers else text


def _transfer_matrix(transfers: Sequence[Transfer]) -> str:
    moved: Counter[tuple[str, str]] = Counter()
    for transfer in transfers:
        moved[transfer.src, transfer.dst] += transfer.size_bytes
    names = sorted({name for pair in moved for name in pair}, key=_device_order)
    rows = [["from \\ to", *names]]
    rows.extend(
        [src, *(format_bytes(moved[src, dst]) if (src, dst) in moved else "-" for dst in names)] for src in names
    )
    return f"{len(transfers)} transfers\n{_table(rows)}"


def _device_order(name: str) -> tuple[str, int]:
    kind, _, index = name.partition(":")
    return kind, int(index or 0)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
