"""What was allocated, in order, played through the caching allocator of each device: peaks, parts, a timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from autosplit.allocator import AllocationError, Block, CachingAllocator
from autosplit.device import Cluster
from autosplit.placement import Breakdown, Timeline

Kind = Literal["weights", "gradients", "optimizer", "activations", "cache", "workspace"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_PLACE = {kind: i for i, kind in enumerate(_KINDS)}
_MOST_POINTS = 256  # of a timeline

Point = tuple[int, int]
"""(position, bytes allocated from then on)."""


@dataclass(slots=True)
class Record:
    """One storage.

    Attributes:
        device: by number.
        kind: what it is for, settled when that is known.
        operator: the call that made it.
        born: the event of its birth.
        block: where it is while a log is replayed.
        heirs: storages that die when it does.
    """

    device: int
    size_bytes: int
    kind: Kind
    operator: int = -1
    is_live: bool = True
    born: int = -1
    block: Block | None = None
    heirs: tuple[Record, ...] = ()

    def again(self) -> Record:
        """Another storage like it, not born yet."""
        return Record(self.device, self.size_bytes, self.kind, self.operator)


@dataclass
class Log:
    """Births and deaths of storages, in order.

    Attributes:
        events: each storage at its birth, and again at its death.
        positions: of each event: how many operators ran before it.
        phases: (name, position) of the start of each phase.
        steps: position of the start of each step.
    """

    events: list[Record] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    phases: list[tuple[str, int]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def note(self, record: Record, position: int) -> None:
        """Note the birth or the death of a storage."""
        if record.born < 0:
            record.born = len(self.events)
        self.events.append(record)
        self.positions.append(position)

    def mark(self) -> int:
        """This moment, as a number of events."""
        return len(self.events)

    def take_back(self) -> None:
        """Forget the last event."""
        self.events.pop()
        self.positions.pop()


@dataclass(frozen=True)
class Step:
    """Where the parts of one step are in a log: at which events, and at which positions of the program.

    It ran its passes (forward and backward) once and its update twice, one after the other, and then let go of its
    gradients and results.

    Attributes:
        passes, first, second, end: (event, position) at which the passes, the first and the second update, and the
            letting go begin.
    """

    passes: tuple[int, int]
    first: tuple[int, int]
    second: tuple[int, int]
    end: tuple[int, int]

    def can_repeat(self, log: Log) -> bool:
        """Whether the update lets go of nothing that the passes made, so that the passes may stand between two."""
        made = {id(record) for record in log.events[self.passes[0] : self.first[0]]}
        return not any(id(record) in made for record in log.events[self.first[0] : self.end[0]])

    def twice(self, log: Log) -> Log:
        """The log of two steps in the order in which they run: passes, update, letting go; and the same again."""
        start, (i, middle), (j, second) = self.passes, self.first, self.second
        copies = {id(record): record.again() for record in log.events[start[0] : i]}
        later = second - start[1]  # operators between the passes and their repetition
        end = range(self.end[0], len(log.events))
        found = Log(list(log.events[: start[0]]), list(log.positions[: start[0]]), steps=[start[1], second])
        parts: list[tuple[range, int, bool]] = [  # events, later by so many operators, of the copies
            (range(start[0], j), 0, True),
            (end, second - self.end[1], True),
            (range(start[0], i), later, False),
            (range(j, self.end[0]), middle - start[1], False),
            (end, middle - start[1], False),
        ]
        for events, shift, is_copy in parts:
            for event in events:
                record = log.events[event]
                if not is_copy or event < j or id(record) in copies:
                    found.note(copies.get(id(record), record) if is_copy else record, log.positions[event] + shift)
        passed = [(name, at) for name, at in log.phases if at < middle]
        repeated = [(name, at + later) for name, at in passed if at >= start[1]]
        found.phases = [*passed, ("step", middle), *repeated, ("step", second + middle - start[1])]
        return found


@dataclass(frozen=True)
class Footprint:
    """Memory of one device over one step.

    Attributes:
        peak_bytes: most bytes allocated at once, each allocation rounded as the allocator rounds.
        reserved_bytes: most bytes the allocator takes from the device.
        requested_bytes: most bytes asked for at once, before rounding.
        weight_bytes: parameters and buffers.
        breakdown: what the peak is made of; with its reserve, what the reserved bytes are.
        timeline: bytes allocated over the step that has the peak, the last one of those.
    """

    peak_bytes: int
    reserved_bytes: int
    requested_bytes: int
    weight_bytes: int
    breakdown: Breakdown
    timeline: Timeline


class _Device:
    """One device while the log is played."""

    def __init__(self, capacity_bytes: int) -> None:
        self.allocator = CachingAllocator(capacity_bytes)
        self.held = [0] * len(_KINDS)
        self.at_peak = list(self.held)
        self.peak_bytes = 0
        self.peak_position = 0
        self.points: list[Point] = []

    def play(self, record: Record, position: int) -> None:
        """Allocate a storage at its first event, free it at its second."""
        if record.block is None:
            record.block = _malloc(self.allocator, record.size_bytes)
            if record.block is not None:
                self.held[_PLACE[record.kind]] += record.block.size_bytes
            if self.allocator.allocated_bytes >= self.peak_bytes:
                self.peak_bytes, self.at_peak = self.allocator.allocated_bytes, list(self.held)
                self.peak_position = position
        else:
            self.held[_PLACE[record.kind]] -= record.block.size_bytes
            self.allocator.free(record.block)
        self.points.append((position, self.allocator.allocated_bytes))


def replay(log: Log, cluster: Cluster, weight_bytes: Sequence[int]) -> dict[str, Footprint]:
    """The footprint of each device.

    Args:
        log: what happened; each record is played once, so a log is replayed once.
        cluster: the devices; records name them by number.
        weight_bytes: bytes of the weights of each device.

    Returns:
        Footprint by device name. O(events x log(free blocks)).
    """
    devices = [_Device(device.memory_bytes) for device in cluster.devices]
    for record, position in zip(log.events, log.positions, strict=True):
        devices[record.device].play(record, position)
    return {
        name: _footprint(device, weights, log)
        for name, device, weights in zip(cluster.names, devices, weight_bytes, strict=True)
    }


def _footprint(device: _Device, weight_bytes: int, log: Log) -> Footprint:
    peak_bytes, reserved_bytes = device.peak_bytes, device.allocator.peak_reserved_bytes
    parts = {f"{kind}_bytes": size for kind, size in zip(_KINDS, device.at_peak, strict=True)}
    return Footprint(
        peak_bytes=peak_bytes,
        reserved_bytes=reserved_bytes,
        requested_bytes=device.allocator.peak_requested_bytes,
        weight_bytes=weight_bytes,
        breakdown=Breakdown(**parts, reserve_bytes=reserved_bytes - peak_bytes),
        timeline=_timeline(device, log),
    )


def _timeline(device: _Device, log: Log) -> Timeline:
    start = max((step for step in log.steps if step <= device.peak_position), default=0)
    end = min((step for step in log.steps if step > device.peak_position), default=log.positions[-1] + 1)
    points = downsample([point for point in device.points if start <= point[0] < end], _MOST_POINTS)
    return Timeline(
        positions=tuple(position for position, _ in points),
        allocated_bytes=tuple(size for _, size in points),
        phases=tuple(phase for phase in log.phases if start <= phase[1] < end),
    )


def downsample(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` of the points: of each run of neighbours the first, the lowest, the highest and the last.

    The highest and the lowest point of all are always kept, and so is the end of the line. O(points).

    Source: M4, Jugel et al., VLDB 2014.

    >>> downsample([(i, i % 7) for i in range(100)], 8)
    [(0, 0), (6, 6), (49, 0), (50, 1), (55, 6), (56, 0), (99, 1)]
    """
    if len(points) <= most:
        return list(points)
    runs = max(1, most // 4)
    kept: list[Point] = []
    for i in range(runs):
        run = range(len(points) * i // runs, len(points) * (i + 1) // runs)
        low, high = min(run, key=lambda j: points[j][1]), max(run, key=lambda j: points[j][1])
        kept += [points[j] for j in sorted({run[0], low, high, run[-1]})]
    return kept


def _malloc(allocator: CachingAllocator, size_bytes: int) -> Block | None:
    try:
        return allocator.malloc(size_bytes)
    except AllocationError:
        allocator.capacity_bytes = None  # it does not fit: go on without the limit, to say by how much
        return allocator.malloc(size_bytes)
