"""Trace: the schedule of a plan in the format of chrome://tracing, which Perfetto (ui.perfetto.dev) reads too.

Source: Trace Event Format, Google, 2016: complete events ("X") in microseconds, metadata events ("M") for names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from autosplit.device import HOST
from autosplit.placement import Plan, Span
from autosplit.report.words import clean
from autosplit.units import format_bytes

_COMPUTE, _COPIES = 1, 2  # the tracks of a device
_NAMES = {"forward": "forward", "backward": "backward", "send": "copy", "return": "gradient back"}


def trace(plan: Plan) -> str:
    """The predicted step as a trace: a process for each device, a track for compute and one for copies.

    A copy is on the tracks of both its ends. Without a schedule in the plan the trace has the devices alone.
    O(spans).
    """
    devices = {device.name: device for device in plan.cluster.devices}
    used = [*devices, *([HOST] if any(HOST in (span.device, span.to) for span in plan.prediction.spans) else [])]
    process = {name: number for number, name in enumerate(used, start=1)}
    events: list[dict[str, Any]] = []
    for name, number in process.items():
        memory = f", {format_bytes(devices[name].memory_bytes)}" if name in devices else ""
        events += [
            _named("process_name", number, 0, clean(name) + memory),
            {"ph": "M", "name": "process_sort_index", "pid": number, "tid": 0, "args": {"sort_index": number}},
            _named("thread_name", number, _COMPUTE, "compute"),
            _named("thread_name", number, _COPIES, "copies"),
        ]
    for span in plan.prediction.spans:
        events += _events(span, process, is_pipeline=plan.pipeline is not None)
    made = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"strategy": plan.strategy, "mode": plan.mode}}
    return msgspec.json.encode(made).decode()


def _named(what: str, process: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": track, "args": {"name": name}}


def _events(span: Span, process: dict[str, int], *, is_pipeline: bool) -> Iterator[dict[str, Any]]:
    details: dict[str, Any] = {"stage": span.stage, "microbatch": span.microbatch} if is_pipeline else {}
    if span.to:
        details |= {"from": clean(span.device), "to": clean(span.to)}
    number = f" {span.microbatch}" if is_pipeline else ""
    for end in (span.device, span.to) if span.to else (span.device,):
        if end in process:
            yield {
                "ph": "X",
                "name": _NAMES[span.kind] + number,
                "cat": span.kind,
                "pid": process[end],
                "tid": _COPIES if span.to else _COMPUTE,
                "ts": span.start_ns / 1000,
                "dur": (span.end_ns - span.start_ns) / 1000,
                "args": details,
            }
