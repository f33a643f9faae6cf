"""A device for every node of one capture, from the names in a plan.

A later capture of the same model (another batch, train() for eval()) may have nodes that the plan has not. Weights
never move between captures, so such a node follows what it is tied to: its group, its weights, its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from autosplit.program import Program


@dataclass(frozen=True)
class Assignment:
    """Device name by node: placed nodes and sources; and how many nodes the plan did not name."""

    devices: dict[fx.Node, str]
    unplanned: int = 0


def assign(program: Program, placement: Mapping[str, str], weights: Mapping[str, str], io_device: str) -> Assignment:
    """Place every node and source of ``program``.

    Args:
        program: this capture.
        placement: device name by node name, from the plan.
        weights: home device by weight name, from the plan; weights that have none follow their first reader.
        io_device: where inputs that nobody reads stay.
    """
    devices: dict[fx.Node, str] = {}
    for source in program.sources:
        known = program.inputs.get(source)
        if known is not None and known.is_weight and known.name in weights:
            devices[source] = weights[known.name]
    group_of = {member: group for group in program.groups for member in group}
    unplanned = 0
    for node in program.nodes:
        if node in devices:
            continue
        planned = placement.get(program.names[node])
        unplanned += planned is None
        device = _fixed(group_of.get(node, []), devices) or planned or _follow(program, node, devices, io_device)
        for member in group_of.get(node, [node]):
            devices.setdefault(member, device)
    for source, reader in program.sources.items():
        devices.setdefault(source, devices[reader] if reader is not None else io_device)
    return Assignment(devices, unplanned)


def _fixed(group: list[fx.Node], devices: Mapping[fx.Node, str]) -> str | None:
    """Where a group must be: at the home of a weight that it writes."""
    return next((devices[member] for member in group if member in devices), None)


def _follow(program: Program, node: fx.Node, devices: Mapping[fx.Node, str], io_device: str) -> str:
    placed = [argument for argument in node.all_input_nodes if argument in devices]
    for argument in placed:
        source = program.inputs.get(argument)
        if source is not None and source.is_weight:
            return devices[argument]
    return devices[placed[-1]] if placed else io_device
