"""Spans: the clocks of a makespan, written down as they run, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from autosplit.device import HOST
from autosplit.estimate.makespan import Clocks, play
from autosplit.estimate.pipeline import Timed
from autosplit.placement import Span

if TYPE_CHECKING:
    from autosplit.estimate.judge import Judge

_MOST_SPANS = 2000  # more cannot be seen in a picture, and would only make the plan's file large
_RESOLUTION = 4096  # of a step: the first gap that is closed when there are too many

_Kind = Literal["forward", "backward", "send", "return"]


class _Work(NamedTuple):
    """What is done: by which device, of which kind, and for a copy to which device."""

    device: int
    kind: _Kind
    to: int = -1


class _Recorder(Clocks):
    """Clocks that remember what ran when."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self.backward = False
        self.found: list[tuple[_Work, int, int]] = []

    def turn(self) -> None:
        """See Clocks."""
        self.backward = True

    def compute(self, device: int, time_ns: int) -> None:
        """See Clocks."""
        super().compute(device, time_ns)
        self._note(_Work(device, "backward" if self.backward else "forward"), self.at[self.queue[device]], time_ns)

    def copy(self, src: int, dst: int, time_ns: int) -> None:
        """See Clocks."""
        super().copy(src, dst, time_ns)
        self._note(_Work(src, "return" if self.backward else "send", dst), self.at[self.queue[dst]], time_ns)

    def _note(self, work: _Work, end_ns: int, time_ns: int) -> None:
        if time_ns:
            self.found.append((work, end_ns - time_ns, end_ns))


def record(judge: Judge, labels: Sequence[int]) -> tuple[Span, ...]:
    """The step as spans, ordered by start; of one device and kind without gaps between, one span.

    Args:
        judge: a graph and a cluster as numbers.
        labels: for each node in program order the position of its device in the cluster.

    Returns:
        At most 2000 or so: where there would be more, gaps between spans of one kind are closed, the smallest first,
        which makes the device look busier than it is. O(nodes + reads + transfers * log transfers).
    """
    recorder = _Recorder(judge)
    play(recorder, labels)
    found = _joined(recorder.found, 0)
    gap_ns = max(recorder.at) // _RESOLUTION
    while len(found) > _MOST_SPANS and gap_ns < max(recorder.at):
        gap_ns = 2 * gap_ns + 1
        found = _joined(found, gap_ns)
    names = (*judge.cluster.names, HOST)
    return tuple(
        Span(
            device=names[work.device],
            kind=work.kind,
            start_ns=start,
            end_ns=end,
            to=names[work.to] if work.to >= 0 else "",
        )
        for work, start, end in sorted(found, key=lambda span: (span[1], span[2], span[0]))
    )


def of_pipeline(timed: Timed, devices: Sequence[str]) -> tuple[Span, ...]:
    """A step of a pipeline as spans, ordered by start.

    Args:
        timed: the step.
        devices: of the stages, in order.
    """
    passes = [
        Span(
            device=devices[p.stage],
            kind="forward" if p.kind == "F" else "backward",
            start_ns=p.start_ns,
            end_ns=p.end_ns,
            stage=p.stage,
            microbatch=p.microbatch,
        )
        for p in timed.passes
    ]
    copies = [
        Span(
            device=devices[hop.src],
            kind="send" if hop.kind == "F" else "return",
            start_ns=hop.start_ns,
            end_ns=hop.end_ns,
            to=devices[hop.dst],
            stage=hop.src,
            microbatch=hop.microbatch,
        )
        for hop in timed.hops
        if hop.end_ns > hop.start_ns
    ]
    return tuple(sorted(passes + copies, key=lambda span: (span.start_ns, span.end_ns)))


def _joined(found: Sequence[tuple[_Work, int, int]], gap_ns: int) -> list[tuple[_Work, int, int]]:
    """Spans of the same work with at most so much between them as one; they come in order of time for each work."""
    joined: list[tuple[_Work, int, int]] = []
    last: dict[_Work, int] = {}
    for work, start, end in found:
        place = last.get(work)
        if place is not None and start - joined[place][2] <= gap_ns:
            joined[place] = (work, joined[place][1], end)
        else:
            last[work] = len(joined)
            joined.append((work, start, end))
    return joined
