"""The times of a problem: measured on the devices that are here, read from earlier measurements, or estimated."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import torch
from torch import fx

from autosplit.catalogue import find
from autosplit.costs import Lender, Measured, Times
from autosplit.device import Cluster, Device, from_entry
from autosplit.emit import assign, rewrite
from autosplit.estimate import peak_bytes
from autosplit.graph import CostGraph
from autosplit.hardware import is_present, present_device, torch_devices
from autosplit.placement import TimeSource
from autosplit.profiler import NOISY, Profile, Progress, Store, device_name, profile, recall
from autosplit.program import Program
from autosplit.ranks.seats import rank_of

ProfileChoice = bool | Literal["auto"]

_SHARE = 0.8  # of the free memory: what whole passes may take


@dataclass
class Timed:
    """Times by kind of device and node name, how good they are, and what to say of them.

    ``lent`` is what the estimates of other kinds follow; ``lenders`` what those of other programs follow, on any kind.
    """

    times: dict[str, Times] = field(default_factory=dict)
    lent: dict[str, Lender] = field(default_factory=dict)
    source: TimeSource = "estimated"
    notes: list[str] = field(default_factory=list)
    lenders: dict[str, Lender] = field(default_factory=dict)


def find_times(program: Program, graph: CostGraph, cluster: Cluster, choice: ProfileChoice) -> Timed:
    """What is measured of ``program`` on the kinds of devices of ``cluster``.

    Args:
        program: a captured program.
        graph: its cost graph with estimated times, to know whether it fits a device.
        cluster: the devices.
        choice: True measures on every kind that is present; "auto" on accelerators, and reads what is known of
            others; False neither.
    """
    timed = Timed()
    kinds = {device.kind: _as_here(device) for device in reversed(cluster.devices)}
    store = Store()
    for kind, device in kinds.items():
        if not _is_here(device):
            if choice is True:
                timed.notes.append(f"times on {kind}: not measured, as {device.name} is not here")
            _borrow(timed, program, device, store)
            continue
        where = torch.device(device.name)
        own = store if where.type in ("cpu", "cuda") else None  # a virtual device is whatever its host is today
        measures = choice is True or where.type not in ("cpu", "sim")
        if measures or (own is not None and own.read(device_name(where))):
            found = _profile(program, graph, device, own, measures=measures)
            timed.times[kind] = {
                name: Measured(t.forward_ns, t.backward_ns, t.workspace_bytes) for name, t in found.timings.items()
            }
            timed.lenders[kind] = Lender(device, program, timed.times[kind])
            timed.notes += _told(found, kind, len(program.nodes))
    timed.lenders |= timed.lent
    wanted = len(kinds) * len(program.nodes)
    known = sum(name in times for times in timed.times.values() for name in graph.nodes)
    timed.source = "measured" if known == wanted else "calibrated" if known or timed.lent else "estimated"
    return timed


def _as_here(device: Device) -> Device:
    """A device of a rank by the name that it has there: the rank that plans has the first of them."""
    known = rank_of(device.name)
    return device if known is None else msgspec.structs.replace(device, name=known[1])


def _is_here(device: Device) -> bool:
    """Whether the device that is meant is the one of that name here, and computes."""
    if not is_present(device.name) or present_device(device.name).kind != device.kind:
        return False
    where = torch.device(device.name)
    return where.type == "cpu" or getattr(torch.get_device_module(where), "holds_data", True)


def _borrow(timed: Timed, program: Program, device: Device, store: Store) -> None:
    """Have a described device's estimates follow what was measured on another accelerator of the catalogue."""
    if find(device.kind) is None:
        return  # its rates are a guess: nothing to scale
    for name in store.devices():
        entry = find(name)
        if entry is not None:
            found = recall(program, _emitted(program, "cpu"), store, name)
            if found:
                times = {n: Measured(t.forward_ns, t.backward_ns) for n, t in found.items()}
                timed.lent[device.kind] = Lender(from_entry(name, entry), program, times)
                timed.notes.append(
                    f"times on {device.kind}: estimates scaled by operator by what {len(found)} of "
                    f"{len(program.nodes)} operations took on {name}"
                )
                return


def _profile(program: Program, graph: CostGraph, device: Device, store: Store | None, *, measures: bool) -> Profile:
    here = Cluster(devices=(device,))
    needs = peak_bytes(graph, dict.fromkeys(graph.nodes, device.name), here, device.name)[device.name]
    with _bar() as progress:
        return profile(
            program,
            _emitted(program, device.name),
            torch.device(device.name),
            fits=needs <= _SHARE * _free_bytes(device),
            store=store,
            measures=measures,
            progress=progress,
        )


def _emitted(program: Program, device: str) -> fx.GraphModule:
    """The program as it runs on one device alone."""
    placement = dict.fromkeys(program.names.values(), device)
    devices = torch_devices(Cluster(devices=(Device(name=device, kind=device, memory_bytes=1),)))
    return rewrite(program, assign(program, placement, {}, device), devices, device).graph_module


def _free_bytes(device: Device) -> int:
    """What is free now: the model may be on the device already, and is measured on weights of its own."""
    where = torch.device(device.name)
    if where.type == "cpu":
        return min(device.memory_bytes, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return device.memory_bytes - int(torch.get_device_module(where).memory_allocated(where))


def _told(found: Profile, kind: str, nodes: int) -> list[str]:
    if not found.timings:
        return found.notes
    noisy = " (noisy)" if found.noise > NOISY else ""
    how = "in whole passes" if found.whole_ns is not None else "each by itself" if found.measured else "read from disk"
    return [
        f"times on {kind}: {len(found.timings)} of {nodes} operations measured, {found.distinct} distinct, {how}; "
        f"noise {found.noise:.0%}{noisy}",
        *found.notes,
    ]


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # here: rich draws from Python's random numbers when it is imported
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring operations", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
