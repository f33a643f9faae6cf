"""The step of a plan as a schedule: as planned, and as it would be with one device at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from autosplit.placement import Plan, Span

_FORWARD = ("forward", "send")


@dataclass(frozen=True)
class Schedule:
    """Spans ordered by start, and when the last one ends."""

    spans: tuple[Span, ...]

    @property
    def total_ns(self) -> int:
        """From the start of the step to the end of the last span."""
        return max((span.end_ns for span in self.spans), default=0)


def planned(plan: Plan) -> Schedule:
    """The schedule of the plan; empty where the plan holds none."""
    return Schedule(plan.prediction.spans)


def one_at_a_time(plan: Plan) -> Schedule:
    """The same passes and copies laid end to end: a split without micro-batches, no device beside another.

    The passes of all micro-batches of a stage become one of no micro-batch (-1), and so do copies between two stages.
    Stages go forward in their order, and backward in the reverse. O(spans log spans).
    """
    spans = plan.prediction.spans
    if plan.pipeline is not None:
        forward = sorted((s for s in spans if s.kind in _FORWARD), key=lambda s: (s.stage, s.kind, s.start_ns))
        back = sorted((s for s in spans if s.kind not in _FORWARD), key=lambda s: (-s.stage, s.kind, s.start_ns))
        spans = (*forward, *back)
    return Schedule(tuple(_end_to_end(spans)))


def _end_to_end(spans: Sequence[Span]) -> list[Span]:
    laid: list[Span] = []
    clock_ns = 0
    for span in spans:
        end_ns = clock_ns + span.end_ns - span.start_ns
        last = laid[-1] if laid else None
        if last is not None and (last.device, last.to, last.kind) == (span.device, span.to, span.kind):
            laid[-1] = msgspec.structs.replace(last, end_ns=end_ns)
        else:
            laid.append(msgspec.structs.replace(span, start_ns=clock_ns, end_ns=end_ns, microbatch=-1))
        clock_ns = end_ns
    return laid
