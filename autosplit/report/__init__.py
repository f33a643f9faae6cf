"""Report: a plan, or the error that stands in its place, for people (a table) and for programs (one JSON document)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from autosplit.device import Device
from autosplit.errors import AutosplitError, CapacityError
from autosplit.placement import DevicePrediction, Plan, Transfer, show
from autosplit.report.compare import DiffTable, diff_document
from autosplit.report.documents import (
    DOCUMENTS,
    CheckDocument,
    DemoDocument,
    ErrorContent,
    ErrorDocument,
    encoded,
    schema,
)
from autosplit.report.grid import Grid
from autosplit.report.ways import WaysTable
from autosplit.report.words import COPIES, MODES, Labels, clean, idle_words, layer_words, tensor_words
from autosplit.units import format_bytes, format_ns

__all__ = [
    "DOCUMENTS",
    "WIDTH",
    "CheckDocument",
    "CheckTable",
    "DemoDocument",
    "DiffTable",
    "ErrorTable",
    "Grid",
    "PlanTable",
    "WaysTable",
    "diff_document",
    "document",
    "encoded",
    "error_document",
    "schema",
    "text",
]

WIDTH = 80
"""Columns of the plain text form."""

_BAR_CELLS = 10
_MOST_TRANSFERS = 12  # listed one by one; more are summed up by pair of devices
_TIGHT, _FULL = 0.90, 0.98  # share of a device's memory from which its bar is yellow, and red


# ---------------------------------------------------------------- for programs


def document(plan: Plan) -> str:
    """The plan as one JSON document: what ``Plan.save`` writes, so ``autosplit show`` reads it again."""
    return plan.to_json().decode()


def error_document(error: BaseException, kind: str, message: str, exit_code: int) -> str:
    """An error as one JSON document: ``{"error": {"kind", "message", "exit_code", ...}}``.

    Args:
        error: a CapacityError adds ``needs_bytes``, ``has_bytes`` and ``short_bytes`` by device, ``proved``, and the
            ways out, which are looked for now.
        kind: "capacity", "capture", "plan", "usage", ...
        message: what is wrong, for people.
        exit_code: what the process exits with.

    >>> error_document(ValueError("no"), "usage", "no", 2)
    '{"error":{"kind":"usage","message":"no","exit_code":2}}'
    """
    content = ErrorContent(kind=kind, message=message, exit_code=exit_code)
    if isinstance(error, CapacityError):
        ways = error.ways_out()
        content = msgspec.structs.replace(
            content,
            needs_bytes=error.needs_bytes,
            has_bytes=error.has_bytes,
            short_bytes=error.short_bytes,
            proved=error.proved,
            ways_out=ways,
            not_tried=error.not_tried,
        )
    return encoded(ErrorDocument(error=content))


# ---------------------------------------------------------------- for people


def text(plan: Plan, width: int = WIDTH) -> str:
    """The plan as plain text of at most ``width`` columns, without colour."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(PlanTable(plan), markup=False)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


@dataclass(frozen=True)
class PlanTable:
    """The plan as something that a rich console prints."""

    plan: Plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Head line, devices, transfers, times, bound and assumptions."""
        yield _head(self.plan)
        yield from _replicas(self.plan)
        yield ""
        yield _devices(self.plan, options.ascii_only)
        yield from _breakdown(self.plan)
        if self.plan.transfers:
            yield ""
            yield from _transfers(self.plan)
        yield ""
        yield from _figures(self.plan)
        if self.plan.assumptions:
            yield Text("assumes:", style="bold")
            yield _bullets(self.plan.assumptions)


@dataclass(frozen=True)
class CheckTable:
    """What was checked of a plan, as something that a rich console prints."""

    document: CheckDocument

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Head line, a row for each device, what was checked and what was not."""
        checked = self.document
        yield Text.assemble(("OK", "bold green"), f"  {checked.strategy}, {checked.nodes} nodes")
        grid = Grid("device", ">needs", ">has")
        for name, has in checked.has_bytes.items():
            grid.add_row(clean(name), format_bytes(checked.needs_bytes.get(name, 0)), format_bytes(has))
        yield grid
        yield _bullets(checked.checked)
        if checked.not_checked:
            yield Text("not checked:", style="bold")
            yield _bullets(checked.not_checked)


@dataclass(frozen=True)
class ErrorTable:
    """An error as something that a rich console prints."""

    error: AutosplitError
    kind: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The message; for a misfit a row for each device in bytes and in words."""
        yield Text.assemble((f"error[{self.kind}]: ", "bold red"), clean(str(self.error)))
        if not isinstance(self.error, CapacityError) or not self.error.needs_bytes:
            return
        least = " at least" if self.error.proved else ""  # what proves it counts less than what would be planned
        grid = Grid("device", f">needs{least}", ">has", f">short{least}", ">in bytes")
        short = self.error.short_bytes
        for name, need in self.error.needs_bytes.items():
            has = self.error.has_bytes.get(name, 0)
            missing = (format_bytes(short[name]), f"{short[name]}") if name in short else ("-", "0")
            grid.add_row(clean(name), format_bytes(need), format_bytes(has), *missing)
        yield grid
        if self.error.proved:
            yield "Proved: no placement on these devices fits."
        else:
            yield "Not proved: the search found no placement that fits."


def _bullets(lines: Sequence[str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for line in lines:
        grid.add_row(" -", Text(clean(line), overflow="fold"))
    return grid


def _head(plan: Plan) -> Text:
    stages = f"{len(plan.stages)} stages: " if plan.strategy == "split" else ""
    return Text.assemble((plan.strategy.upper(), "bold"), f" for {MODES[plan.mode]}  {stages}{clean(plan.reason)}")


def _replicas(plan: Plan) -> Iterator[Text]:
    """That the table is of one replica, where the plan is for several."""
    if plan.replicas > 1:
        yield Text(f"one replica of {plan.replicas} is shown: each of the others needs the same of devices of its own")


# ---------------------------------------------------------------- devices


def _devices(plan: Plan, ascii_only: bool) -> Grid:
    grid = Grid("device", "memory", ">peak of capacity", ">weights", ">busy", "runs")
    words = layer_words(plan.placement)
    nothing = DevicePrediction(peak_bytes=0, reserved_bytes=0, weight_bytes=0, busy_ns=0)
    idle = idle_words(plan)
    for device in plan.cluster.devices:
        if device.name not in words and idle in COPIES:
            grid.add_row(clean(device.name), "", f"same of {format_bytes(device.memory_bytes)}", "same", "", idle)
            continue
        predicted = plan.prediction.devices.get(device.name, nothing)
        share = predicted.busy_ns / plan.prediction.step_ns if plan.prediction.step_ns else 0.0
        grid.add_row(
            clean(device.name),
            _bar(predicted.reserved_bytes, device, ascii_only),
            _of(predicted.reserved_bytes, device.memory_bytes),
            format_bytes(predicted.weight_bytes),
            f"{share:.0%}",
            Text(words.get(device.name, idle)),
        )
    return grid


def _breakdown(plan: Plan) -> Iterator[RenderableType]:
    """A row a device: what its memory is made of at the peak, the largest part first."""
    devices = plan.prediction.devices
    grid = Grid("device", "of that")
    for device in plan.cluster.devices:
        parts = devices[device.name].breakdown.parts if device.name in devices else {}
        found = sorted(((size, name) for name, size in parts.items() if size), reverse=True)
        if found:
            grid.add_row(clean(device.name), ", ".join(f"{name} {format_bytes(size)}" for size, name in found))
    if grid.row_count:
        yield ""
        yield grid


def _bar(used_bytes: int, device: Device, ascii_only: bool) -> Text:
    share = min(used_bytes / device.memory_bytes, 1.0) if device.memory_bytes else 1.0
    # A device with anything on it shows a cell, and only a full one shows all of them.
    cells = 0 if not used_bytes else max(1, int(share * _BAR_CELLS))
    full, empty = ("#", ".") if ascii_only else ("█", "░")
    style = "green" if share < _TIGHT else "yellow" if share < _FULL else "red"
    return Text.assemble((full * cells, style), (empty * (_BAR_CELLS - cells), "dim"))


def _of(used_bytes: int, all_bytes: int) -> str:
    """Both sizes, the unit once when it is the same."""
    used, has = format_bytes(used_bytes), format_bytes(all_bytes)
    number, unit = used.split(" ")
    return f"{number} of {has}" if has.endswith(f" {unit}") else f"{used} of {has}"


# ---------------------------------------------------------------- transfers


def _transfers(plan: Plan) -> Iterator[RenderableType]:
    total = sum(transfer.size_bytes for transfer in plan.transfers)
    back = sum(transfer.returns_gradient for transfer in plan.transfers)
    gradients = f", gradients back for {back}" if back else ""
    count, listed = len(plan.transfers), [transfer for transfer in plan.transfers if transfer.size_bytes]
    empty = f"; {count - len(listed)} of empty tensors, not listed" if len(listed) < count else ""
    head = f"{count} transfer{'s' if count > 1 else ''} a step, {format_bytes(total)}{gradients}{empty}"
    yield Text(head, style="bold")
    if listed:
        yield _by_pair(plan, listed) if len(listed) > _MOST_TRANSFERS else _one_by_one(plan, listed)


def _one_by_one(plan: Plan, transfers: Sequence[Transfer]) -> Grid:
    labels = Labels(plan.placement)
    grid = Grid("from", "to", ">bytes", ">time", "tensor")
    for transfer in transfers:
        grid.add_row(
            clean(transfer.src),
            clean(transfer.dst),
            format_bytes(transfer.size_bytes),
            format_ns(plan.cluster.transfer_ns(transfer.src, transfer.dst, transfer.size_bytes)),
            Text(tensor_words(transfer.tensor, labels)),
        )
    return grid


def _by_pair(plan: Plan, transfers: Sequence[Transfer]) -> Grid:
    pairs: dict[tuple[str, str], list[Transfer]] = {}
    for transfer in transfers:
        pairs.setdefault((transfer.src, transfer.dst), []).append(transfer)
    largest = {pair: max(found, key=lambda transfer: transfer.size_bytes) for pair, found in pairs.items()}
    labels = Labels(plan.placement)
    grid = Grid("from", "to", ">tensors", ">bytes", ">time", "largest")
    for (src, dst), found in pairs.items():
        times = (plan.cluster.transfer_ns(src, dst, transfer.size_bytes) for transfer in found)
        most = largest[src, dst]
        grid.add_row(
            clean(src),
            clean(dst),
            str(len(found)),
            format_bytes(sum(transfer.size_bytes for transfer in found)),
            format_ns(sum(times)),
            Text(f"{tensor_words(most.tensor, labels)}, {format_bytes(most.size_bytes)}"),
        )
    return grid


# ---------------------------------------------------------------- figures


def _idle(plan: Plan, compute_ns: int) -> list[str]:
    """The share of a step in which the devices in use compute nothing."""
    used, step_ns = len(set(plan.placement.values())), plan.prediction.step_ns
    return [f"idle {max(0.0, 1 - compute_ns / (used * step_ns)):.0%}"] if used > 1 and step_ns else []


def _against_one_device(plan: Plan) -> list[str]:
    """The step against that of one device, where both were weighed and one device holds the model."""
    options = {option.strategy: option for option in plan.options}
    alone, chosen = options.get("single"), options.get(plan.strategy)
    if alone is None or alone.step_ns is None or chosen is None or not chosen.step_ns or chosen is alone:
        return []
    factor = alone.step_ns * (chosen.samples or 1) / (chosen.step_ns * (alone.samples or 1))
    return [f"{factor:.2f}x the samples/s of one device, whose step takes {format_ns(alone.step_ns)}"]


def _figures(plan: Plan) -> Iterator[Text]:
    prediction = plan.prediction
    compute_ns = sum(device.busy_ns for device in prediction.devices.values())
    source = "estimated, unmeasured" if prediction.time_source == "estimated" else prediction.time_source
    yield Text.assemble(
        (f"step {format_ns(prediction.step_ns)}", "bold"),
        f"  compute {format_ns(compute_ns)}, transfers {format_ns(prediction.transfer_ns)}  times: {source}",
    )
    said = [*_idle(plan, compute_ns), *_against_one_device(plan)]
    if said:
        yield Text("  ".join(said))
    yield Text(_solved(plan))


_OBJECTIVES = {"latency": "one step", "throughput": "slowest device", "memory": "fullest device"}


def _solved(plan: Plan) -> str:
    """What was solved for, and how far from the best it may be."""
    say = format_bytes if plan.objective == "memory" else format_ns
    is_staged = plan.objective == "throughput" and plan.pipeline is not None
    of = "slowest stage" if is_staged else _OBJECTIVES[plan.objective]
    value = f"{plan.objective} ({of}) {say(plan.value)}"
    if not plan.bound:
        return f"{value}  no lower bound proved"
    gap = (plan.value - plan.bound) / plan.value if plan.value else 0.0
    return f"{value}  lower bound {say(plan.bound)}  gap {gap:.1%}"


def html_fragment(plan: Plan) -> str:
    """The plan for a notebook: a piece of HTML without script."""
    from autosplit.report.notebook import fragment  # Jinja2 is not needed before

    return fragment(plan)


show.register("text", text)
show.register("html", html_fragment)
