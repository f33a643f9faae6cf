"""Pipeline: when each pass of a pipeline runs, and when the last is done.

Each stage runs its passes in the order of its schedule (``autosplit.schedule``), as soon as its device is free and what
the pass reads is there. Rules:

- One thread issues the passes, in the order of ``schedule.in_turn``. A stage whose device is synchronous
  (``Device.is_synchronous``) is run by that thread itself: all such stages work one at a time. Any other takes the
  thread ``issue_ns`` for a pass, and runs its queue beside the others.
- A hop carries all that one stage makes for another. With ``overlap`` it runs beside compute, on streams of its own:
  one at a time for each pair of stages and direction, from the end of the pass that makes it. Without, it occupies
  both ends and is issued right before the pass that reads it. Either way a synchronous end does the copy itself.
- What goes to or comes from the host is part of the pass of its stage, as ``.to()`` waits there unless memory is
  pinned.
- In training the gradient comes back over the same pair of stages. The optimizer's update is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from autosplit.estimate.judge import Judge
from autosplit.schedule import Pass, ScheduleName, in_turn, orders


class StageCost(NamedTuple):
    """What a stage takes for one micro-batch.

    Attributes:
        forward_ns: of a forward pass, with what it gets from and sends to the host.
        backward_ns: of a backward pass, likewise; 0 in inference.
        forward_issue_ns: of the host's time to issue a forward pass.
        backward_issue_ns: likewise.
        is_synchronous: the host does the work itself.
        compute_ns: of both passes, without what goes to and comes from the host.
    """

    forward_ns: int
    backward_ns: int = 0
    forward_issue_ns: int = 0
    backward_issue_ns: int = 0
    is_synchronous: bool = False
    compute_ns: int = 0


class Hop(NamedTuple):
    """What one stage sends to a later one for each micro-batch; ``gradient_ns`` is None where none comes back."""

    src: int
    dst: int
    forward_ns: int
    gradient_ns: int | None = None


class TimedPass(NamedTuple):
    """A pass and when it runs, in ns from the start of the step."""

    stage: int
    kind: Literal["F", "B"]
    microbatch: int
    start_ns: int
    end_ns: int


class TimedHop(NamedTuple):
    """A hop of one micro-batch, or in the backward pass ("B") of its gradient, and when it runs, in ns."""

    src: int
    dst: int
    kind: Literal["F", "B"]
    microbatch: int
    start_ns: int
    end_ns: int


class Timed(NamedTuple):
    """A step of a pipeline.

    Attributes:
        makespan_ns: from its start until every stage and the host are done.
        passes: in the order in which they are issued.
        busy_ns: of each stage, in its passes.
        hops: in the order in which they are issued.
    """

    makespan_ns: int
    passes: tuple[TimedPass, ...]
    busy_ns: tuple[int, ...]
    hops: tuple[TimedHop, ...] = ()

    @property
    def idle(self) -> float:
        """The share of the step that the stages, all together, do nothing in: the bubble."""
        return 1 - sum(self.busy_ns) / max(1, self.makespan_ns * len(self.busy_ns))


def simulate(
    stages: Sequence[StageCost], hops: Sequence[Hop], by_stage: Sequence[Sequence[Pass]], *, overlap: bool = True
) -> Timed:
    """Run a step on paper, under the rules of this module.

    Args:
        stages: what each takes for a micro-batch.
        hops: at most one for each pair of stages, from an earlier to a later one.
        by_stage: the passes of each stage in order, as ``schedule.orders`` gives them.
        overlap: transfers run beside compute.

    Returns:
        Start and end of every pass (ns). O(passes x hops of a stage).

    Raises:
        ValueError: as ``schedule.in_turn``.

    >>> stages = [StageCost(10, 20), StageCost(10, 20)]
    >>> timed = simulate(stages, [Hop(0, 1, 0, 0)], orders("gpipe", 2, 4, trains=True))
    >>> timed.makespan_ns, timed.idle  # (4 micro-batches + 2 stages - 1) x 30 ns
    (150, 0.19999999999999996)
    """
    clocks = _Clocks(stages, hops, overlap)
    passes = tuple(clocks.run(p) for p in in_turn(by_stage))
    busy = [0] * len(stages)
    for timed in passes:
        busy[timed.stage] += timed.end_ns - timed.start_ns
    return Timed(max([clocks.host, *clocks.free, *clocks.link.values()]), passes, tuple(busy), tuple(clocks.hops))


class _Clocks:
    """When the host, each stage's device and each link are done with what was issued."""

    def __init__(self, stages: Sequence[StageCost], hops: Sequence[Hop], overlap: bool) -> None:
        self.stages, self.overlap = stages, overlap
        self.into: list[list[Hop]] = [[] for _ in stages]
        self.back: list[list[Hop]] = [[] for _ in stages]
        for hop in hops:
            self.into[hop.dst].append(hop)
            if hop.gradient_ns is not None:
                self.back[hop.src].append(hop)
        self.host = 0
        self.free = [0] * len(stages)
        self.link: dict[tuple[int, int], int] = {}
        self.done: dict[Pass, int] = {}
        self.hops: list[TimedHop] = []

    def run(self, p: Pass) -> TimedPass:
        """Issue a pass, and before it the transfers of what it reads."""
        arrived = [
            self._send(hop.src, p, hop.forward_ns, self.done[Pass(hop.src, "F", p.microbatch)])
            for hop in (self.into[p.stage] if p.kind == "F" else ())
        ] + [
            self._send(hop.dst, p, hop.gradient_ns or 0, self.done[Pass(hop.dst, "B", p.microbatch)])
            for hop in (self.back[p.stage] if p.kind == "B" else ())
        ]
        cost = self.stages[p.stage]
        forward = p.kind == "F"
        takes = cost.forward_ns if forward else cost.backward_ns
        start = max([self.host, self.free[p.stage], *arrived])
        end = start + takes
        self.host = end if cost.is_synchronous else self.host + self._issue_ns(cost, forward)
        self.free[p.stage] = self.done[p] = end
        return TimedPass(*p, start, end)

    def _issue_ns(self, cost: StageCost, forward: bool) -> int:
        return cost.forward_issue_ns if forward else cost.backward_issue_ns

    def _send(self, src: int, reader: Pass, takes: int, made: int) -> int:
        """Copy from a stage to a pass of another what was made at a time. Returns when it is there."""
        dst = reader.stage
        host_copies = self.stages[src].is_synchronous or self.stages[dst].is_synchronous
        waits = [made, self.link.get((src, dst), 0)]
        if not self.overlap:
            waits += [self.free[src], self.free[dst]]
        if host_copies:
            waits.append(self.host)
        end = self.link[src, dst] = max(waits) + takes
        if not self.overlap:
            self.free[src] = self.free[dst] = end
        if host_copies:
            self.host = end
        self.hops.append(TimedHop(src, dst, reader.kind, reader.microbatch, end - takes, end))
        return end


def stage_order(judge: Judge, labels: Sequence[int]) -> list[int]:
    """The devices in use, by position in the cluster, in the order in which data flow through them. O(reads)."""
    return judge.numbered(labels, list(dict.fromkeys(labels)))


def pipeline_costs(judge: Judge, labels: Sequence[int]) -> tuple[list[StageCost], list[Hop]]:
    """What the stages of a placement, one on each device, take for one micro-batch.

    Args:
        judge: the costs of a micro-batch, and the cluster.
        labels: for each node in program order the position of its device in the cluster.

    Returns:
        The stages in order, and the hops between them (ns). O(nodes + reads).
    """
    order = {device: s for s, device in enumerate(stage_order(judge, labels))}
    ways: list[list[int]] = [[0, 0, 0, 0] for _ in order]  # forward, backward, and the issue of each
    for i, device in enumerate(labels):
        forward, both, launch = judge.forward_ns[device][i], judge.node_ns[device][i], judge.launch_ns[device]
        cost = ways[order[device]]
        for place, takes in enumerate((forward, both - forward)):
            cost[place] += takes
            cost[place + 2] += min(launch, takes)
    compute = [cost[0] + cost[1] for cost in ways]
    hops = _hops(judge, labels, order, ways)
    devices = judge.cluster.devices
    stages = []
    for device, s in order.items():
        forward, backward, forward_issue, backward_issue = ways[s]
        waits = devices[device].is_synchronous
        stages.append(StageCost(forward, backward, forward_issue, backward_issue, waits, compute[s]))
    return stages, hops


def _hops(judge: Judge, labels: Sequence[int], order: dict[int, int], ways: Sequence[list[int]]) -> list[Hop]:
    """The hops of a placement; what a stage gets from or returns to the caller is added to its pass."""
    found: dict[tuple[int, int], list[int | None]] = {}
    for move in judge.moves(labels):
        item = judge.items[move.tensor]
        there = judge.one_way_ns(move.src, move.dst, item.size)
        back = judge.one_way_ns(move.dst, move.src, item.size) if judge.train and item.grad else None
        src, dst = order.get(move.src), order.get(move.dst)
        if src is not None and dst is not None and src < dst and move.slot < judge.n:
            hop = found.setdefault((src, dst), [0, None])
            hop[0] = (hop[0] or 0) + there
            hop[1] = hop[1] if back is None else (hop[1] or 0) + back
            continue
        own = src if dst is None or (src is not None and move.slot == judge.n) else dst
        if own is not None:
            ways[own][0] += there
            ways[own][1] += back or 0
    return [Hop(src, dst, there or 0, back) for (src, dst), (there, back) in sorted(found.items())]


def pipeline_step(judge: Judge, labels: Sequence[int], schedule: ScheduleName, microbatches: int) -> Timed:
    """A step of a pipeline whose stages are the devices of a placement, at the costs of one micro-batch.

    Args:
        judge: the costs of one micro-batch, and the cluster.
        labels: for each node in program order the position of its device in the cluster.
        schedule: "gpipe" or "1f1b".
        microbatches: of a step.

    Raises:
        ValueError: another schedule.
    """
    stages, hops = pipeline_costs(judge, labels)
    return simulate(stages, hops, orders(schedule, len(stages), microbatches, trains=judge.train))
