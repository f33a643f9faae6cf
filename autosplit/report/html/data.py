"""What the page shows of a plan, in words and in numbers. All names are cleaned here; the template escapes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from autosplit.device import HOST, Device
from autosplit.placement import DevicePrediction, Plan, Transfer
from autosplit.report.timeline import Schedule, one_at_a_time, planned
from autosplit.report.tree import Block, Module, blocks, made_at, module_tree
from autosplit.report.words import MODES, Labels, clean, idle_words, tensor_words
from autosplit.units import format_bytes, format_ns

MOST_ROWS = 500
"""Transfers in the table, the largest."""

_MOST_LABELS = 8  # of blocks, for one device
_MOST_COPIES = 200  # drawn in the graph, the largest
_KINDS = ("forward", "backward", "send", "return")
_UNUSED = DevicePrediction(peak_bytes=0, reserved_bytes=0, weight_bytes=0, busy_ns=0)


class View:
    """A plan, and what several parts of its page read from it, found once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def tree(self) -> Module:
        """The modules."""
        return module_tree(self.plan.placement)

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks of the graph."""
        return blocks(self.tree, self.plan.placement)

    @cached_property
    def labels(self) -> Labels:
        """Short names of the modules."""
        return Labels(self.plan.placement)

    @cached_property
    def places(self) -> dict[str, int]:
        """Devices by their position, the host one past the last."""
        return {name: place for place, name in enumerate((*self.plan.cluster.names, HOST))}

    @cached_property
    def serial(self) -> Schedule:
        """The schedule of one device at a time."""
        return one_at_a_time(self.plan)


def words(view: View) -> dict[str, Any]:
    """What the template prints: strings and lists of them."""
    plan = view.plan
    prediction = plan.prediction
    return {
        "strategy": plan.strategy,
        "reason": clean(plan.reason),
        "mode": MODES[plan.mode],
        "cards": _cards(plan),
        "options": _options(plan),
        "devices": _device_rows(view),
        "parts": _parts_in_use(plan),
        "transfers": _transfer_rows(view),
        "transfer_count": len(plan.transfers),
        "assumptions": [clean(line) for line in plan.assumptions],
        "step": format_ns(prediction.step_ns),
        "serial": format_ns(view.serial.total_ns),
        "is_pipeline": plan.pipeline is not None,
        "has_schedule": bool(prediction.spans),
        "has_timeline": any(device.timeline.positions for device in prediction.devices.values()),
        "memory_source": prediction.memory_source,
        "format": plan.format,
        "fingerprint": clean(plan.fingerprint),
    }


def numbers(view: View) -> dict[str, Any]:
    """What the charts draw, as JSON values; devices by their position, the host one past the last."""
    plan = view.plan
    return {
        "devices": [_device(plan, device) for device in plan.cluster.devices],
        "step_ns": plan.prediction.step_ns,
        "schedule": {"planned": _bars(view, planned(plan)), "serial": _bars(view, view.serial)},
        "graph": _graph(view),
    }


# ---------------------------------------------------------------- words


def _cards(plan: Plan) -> list[tuple[str, str, str]]:
    """Title, figure and what it means, of the figures that matter most."""
    prediction = plan.prediction
    source = {"estimated": "estimated, unmeasured", "calibrated": "calibrated by measurements"}
    cards = [("step", format_ns(prediction.step_ns), source.get(prediction.time_source, prediction.time_source))]
    fullest = _fullest(plan)
    if fullest is not None:
        device, used = fullest
        share = f"{used.reserved_bytes / device.memory_bytes:.0%}" if device.memory_bytes else "-"
        of = f"{format_bytes(used.reserved_bytes)} of {format_bytes(device.memory_bytes)} on {clean(device.name)}"
        cards.append(("fullest device", share, of))
    used_count = sum(device.busy_ns > 0 for device in prediction.devices.values())
    cards.append(("devices used", f"{used_count} of {len(plan.cluster.devices)}", _copies(plan)))
    if prediction.step_ns and used_count:
        busy = sum(device.busy_ns for device in prediction.devices.values())
        cards.append(("idle", f"{max(0.0, 1 - busy / (used_count * prediction.step_ns)):.0%}", "of the devices used"))
    size = format_bytes(sum(transfer.size_bytes for transfer in plan.transfers))
    cards.append(("transfers", str(len(plan.transfers)), f"{size}, {format_ns(prediction.transfer_ns)} in all"))
    return [*cards, _gap(plan)]


def _copies(plan: Plan) -> str:
    if plan.replicas > 1:
        return f"{plan.replicas} replicas of that"
    if plan.pipeline is not None:
        return f"{plan.pipeline.microbatches} micro-batches, {plan.pipeline.schedule}"
    return "a copy on each under torchrun" if plan.strategy == "replicate" else "one call at a time"


def _gap(plan: Plan) -> tuple[str, str, str]:
    say = format_bytes if plan.objective == "memory" else format_ns
    if not plan.bound:
        return "gap", "unknown", f"{plan.objective} {say(plan.value)}, no lower bound proved"
    gap = (plan.value - plan.bound) / plan.value if plan.value else 0.0
    return "gap to bound", f"{gap:.1%}", f"{plan.objective} {say(plan.value)}, proved bound {say(plan.bound)}"


def _fullest(plan: Plan) -> tuple[Device, DevicePrediction] | None:
    used = [(device, plan.prediction.devices.get(device.name, _UNUSED)) for device in plan.cluster.devices]
    used = [(device, found) for device, found in used if found.reserved_bytes]
    return max(used, key=lambda pair: pair[1].reserved_bytes / max(1, pair[0].memory_bytes), default=None)


def _options(plan: Plan) -> list[dict[str, str]]:
    return [
        {
            "strategy": option.strategy,
            "devices": str(option.devices),
            "step": "-" if option.step_ns is None else format_ns(option.step_ns),
            "rate": f"{option.samples * 10**9 / option.step_ns:.2f}" if option.samples and option.step_ns else "-",
            "words": clean(option.words),
        }
        for option in plan.options
    ]


def _parts_in_use(plan: Plan) -> list[str]:
    """The parts of memory that any device has, in the order of Breakdown."""
    found = [device.breakdown.parts for device in plan.prediction.devices.values()]
    return [name for name in (found[0] if found else ()) if any(parts[name] for parts in found)]


def _device_rows(view: View) -> list[dict[str, Any]]:
    plan, runs = view.plan, _runs(view)
    idle = idle_words(plan)
    rows = []
    for place, device in enumerate(plan.cluster.devices):
        used = plan.prediction.devices.get(device.name, _UNUSED)
        step_ns = plan.prediction.step_ns
        rows.append(
            {
                "place": place,
                "name": clean(device.name),
                "kind": clean(device.kind),
                "reserved": format_bytes(used.reserved_bytes),
                "capacity": format_bytes(device.memory_bytes),
                "share": f"{used.reserved_bytes / device.memory_bytes:.0%}" if device.memory_bytes else "-",
                "percent": round(100 * used.reserved_bytes / max(1, device.memory_bytes)),
                "busy": f"{used.busy_ns / step_ns:.0%}" if step_ns else "-",
                "parts": [format_bytes(used.breakdown.parts[part]) for part in _parts_in_use(plan)],
                "runs": runs.get(device.name, idle),
            }
        )
    return rows


def _runs(view: View) -> dict[str, str]:
    """What each device runs, by its name: the blocks of the graph, modules before single operators."""
    found: dict[str, list[Block]] = {}
    for block in view.blocks:
        found.setdefault(block.device, []).append(block)
    counts = Counter(view.plan.placement.values())
    said = {}
    for device, mine in found.items():
        labels = [block.label for block in mine]
        if len(labels) > _MOST_LABELS:
            labels[_MOST_LABELS - 1 :] = [f"{len(labels) - _MOST_LABELS + 1} more"]
        single = counts[device] - sum(block.count for block in mine)
        said[device] = ", ".join(labels + ([f"{single} single operator{'s' if single > 1 else ''}"] if single else []))
    return said


def _transfer_rows(view: View) -> list[dict[str, Any]]:
    plan = view.plan
    largest = sorted(plan.transfers, key=lambda transfer: -transfer.size_bytes)[:MOST_ROWS]
    rows = []
    for transfer in largest:
        time_ns = plan.cluster.transfer_ns(transfer.src, transfer.dst, transfer.size_bytes)
        rows.append(
            {
                "tensor": tensor_words(transfer.tensor, view.labels),
                "src": clean(transfer.src),
                "dst": clean(transfer.dst),
                "size_bytes": transfer.size_bytes,
                "size": format_bytes(transfer.size_bytes),
                "time_ns": time_ns,
                "time": format_ns(time_ns),
                "gradient": "yes" if transfer.returns_gradient else "no",
            }
        )
    return rows


# ---------------------------------------------------------------- numbers


def _device(plan: Plan, device: Device) -> dict[str, Any]:
    used = plan.prediction.devices.get(device.name, _UNUSED)
    return {
        "name": clean(device.name),
        "memory_bytes": device.memory_bytes,
        "reserved_bytes": used.reserved_bytes,
        "parts": used.breakdown.parts,
        "busy_ns": used.busy_ns,
        "positions": used.timeline.positions,
        "allocated_bytes": used.timeline.allocated_bytes,
        "phases": [(clean(name), position) for name, position in used.timeline.phases],
    }


def _bars(view: View, schedule: Schedule) -> dict[str, Any]:
    """Rows of [device, start_ns, end_ns, kind, micro-batch, stage, receiver or -1]."""
    place = view.places
    bars = [
        [
            place[span.device],
            span.start_ns,
            span.end_ns,
            _KINDS.index(span.kind),
            span.microbatch,
            span.stage,
            place.get(span.to, -1),
        ]
        for span in schedule.spans
        if span.device in place
    ]
    return {"bars": bars, "total_ns": schedule.total_ns}


def _graph(view: View) -> dict[str, Any]:
    plan, place = view.plan, view.places
    largest = sorted(plan.transfers, key=lambda transfer: -transfer.size_bytes)[:_MOST_COPIES]
    return {
        "tree": _branch(view.tree, place),
        "blocks": [_block(block, place) for block in view.blocks],
        "copies": _copy_nodes(view, largest),
        "nodes": len(plan.placement),
        "single": len(plan.placement) - sum(block.count for block in view.blocks),
        "copies_left_out": len(plan.transfers) - len(largest),
    }


def _block(block: Block, place: dict[str, int]) -> dict[str, Any]:
    return {
        "label": block.label,
        "device": place[block.device],
        "count": block.count,
        "at": block.at,
        "modules": block.modules,
        "part": block.is_part,
    }


def _branch(module: Module, place: dict[str, int]) -> list[Any]:
    """[name, {device: nodes}, position, submodules, [[operator, device, position] of its own]]."""
    return [
        clean(module.path[-1]) if module.path else "",
        {place[device]: count for device, count in module.nodes.items()},
        module.at,
        [_branch(child, place) for child in module.children.values()],
        [[clean(operator), place[device], at] for operator, device, at in module.own],
    ]


def _copy_nodes(view: View, transfers: Sequence[Transfer]) -> list[dict[str, Any]]:
    """One for each transfer: its ends, where in the program it was made, its name, size and time."""
    plan, place, find = view.plan, view.places, made_at(view.plan)
    return [
        {
            "src": place[transfer.src],
            "dst": place[transfer.dst],
            "at": find(transfer.tensor),
            "label": tensor_words(transfer.tensor, view.labels),
            "size_bytes": transfer.size_bytes,
            "time_ns": plan.cluster.transfer_ns(transfer.src, transfer.dst, transfer.size_bytes),
            "gradient": transfer.returns_gradient,
        }
        for transfer in transfers
        if transfer.src in place and transfer.dst in place
    ]
