"""Pipelines with replicas and recomputation: a line over blocks, judged stage by stage, as a placement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from autosplit.device import HOST
from autosplit.errors import CapacityError, DeviceError
from autosplit.estimate.judge import Item
from autosplit.placement import CostModel, Placement, Stage
from autosplit.solvers.blocks.compiled import Blocks, blocks_of
from autosplit.solvers.problem import Problem
from autosplit.solvers.stages.contiguous import by_all_downsets, by_neighbours, by_orders
from autosplit.solvers.stages.line import ALONE, NEVER, Line, Replication
from autosplit.units import format_bytes

Replicate = Literal["none", "stages", "grid"]

_ROUNDS = 8
_MOST_NEIGHBOURED = 2000


class _Piece(NamedTuple):
    """A stage in nodes: positions of its devices and nodes, those recomputed, and micro-batches that it holds."""

    devices: tuple[int, ...]
    nodes: tuple[int, ...]
    again: tuple[int, ...]
    held: int


def pipeline(
    problem: Problem, replicate: Replicate, *, recompute: bool, may_go_on: Callable[[], bool] = lambda: True
) -> Placement:
    """The best pipeline that is found for throughput.

    Args:
        problem: contiguous throughput, its inputs and outputs on the host.
        replicate: "stages": each stage may run on several devices of one kind, which share its micro-batches; "grid":
            each on equally many. In training a degree divides the micro-batches of a step, and the replicas exchange
            the gradients of their parameters once a step, in a ring.
        recompute: whether nodes that say what they take ``recomputed`` may be.
        may_go_on: whether there is time to look among neighbours of a line.

    Returns:
        The placement with its ``stages``. Its value counts each transfer over the slowest link between two stages.
        Its bound is exact where there are few downsets; else the work shared by all devices.

    Raises:
        CapacityError: nothing fits (``proved``), or nothing was found that does.
        DeviceError: the io_device is not the host.
        ValueError: another objective, or not contiguous; or ``replicate`` is none of the above.
    """
    if problem.objective != "throughput" or not problem.contiguous:
        raise ValueError(
            f"replicas and recomputation for objective {problem.objective!r}, contiguous {problem.contiguous}: they "
            "are for pipelines; ask for objective 'throughput' and contiguous=True"
        )
    if replicate not in get_args(Replicate):
        raise ValueError(f"replicate {replicate!r}: expected one of {', '.join(get_args(Replicate))}")
    if problem.judge.io < problem.k:
        raise DeviceError(
            f"replicas and recomputation with io_device {problem.cluster.names[problem.judge.io]!r}: a pipeline takes "
            f"its inputs from the host; leave io_device at {HOST!r}"
        )
    problem.check_devices()
    blocks = _with_choices(problem, replicate, recompute)
    line, proved = _search(blocks, may_go_on)
    if line is None:
        raise _does_not_fit(problem, proved=proved)
    proved_ns = line.value - line.slack if proved else 0
    pieces = _pieces(blocks, line)
    if any(_excess(problem, pieces)):
        line, pieces = _within_memory(problem, blocks, may_go_on)
    return _placement(problem, blocks, line, pieces, proved_ns)


def shared_work_ns(problem: Problem) -> int:
    """A bound of the time of any pipeline: all work, each node on the device fastest for it, shared by all devices."""
    fastest_ns: int = sum(min(times) for times in zip(*problem.judge.node_ns, strict=True))
    return -(-fastest_ns // problem.k)


def _within_memory(problem: Problem, blocks: Blocks, may_go_on: Callable[[], bool]) -> tuple[Line, list[_Piece]]:
    """A line that fits where bytes do not just add up: with what the backward needs saved, and less capacity."""
    limits = _with_saved(problem, blocks)
    for _ in range(_ROUNDS):
        line, _proved = _search(limits, may_go_on)
        if line is None:
            break
        pieces = _pieces(blocks, line)
        over = _excess(problem, pieces)
        if not any(over):
            return line, pieces
        limits = _tightened(limits, line, over)
    raise _does_not_fit(problem, proved=False)


def _with_saved(problem: Problem, blocks: Blocks) -> Blocks:
    """Each tensor that a backward needs is held, for each micro-batch, at the first block that saves it."""
    quotient, judge = blocks.quotient, problem.judge
    block_of = {node: b for b, members in enumerate(quotient.members) for node in members}
    saved, seen = np.zeros(len(quotient), dtype=np.int64), {item.storage for item in judge.items if item.weight}
    for item in judge.items if judge.train else ():
        if item.savers and item.storage not in seen:
            seen.add(item.storage)
            saved[block_of[min(item.savers)]] += min(item.copy, item.bytes)
    again = quotient.recomputed
    if again is not None:
        again = replace(again, stash_bytes=again.stash_bytes + saved)
    return blocks._replace(quotient=replace(quotient, stash_bytes=quotient.stash_bytes + saved, recomputed=again))


def _with_choices(problem: Problem, replicate: Replicate, recompute: bool) -> Blocks:
    blocks = blocks_of(problem, ordered=True)
    replication = ALONE
    if replicate != "none":
        most = max(len(kind.devices) for kind in blocks.fleet.kinds)
        shared = blocks.flight.microbatches if problem.judge.train else None
        replication = Replication.up_to(most, shared)._replace(uniform=replicate == "grid")
    return blocks._replace(flight=blocks.flight._replace(replication=replication, recompute=recompute))


def _search(blocks: Blocks, may_go_on: Callable[[], bool]) -> tuple[Line | None, bool]:
    """The best line over a few orders, all downsets where they are few, else neighbours; whether it is proved."""
    quotient, fleet, flight = blocks.quotient, blocks.fleet, blocks.flight
    line = by_orders(quotient, fleet, flight)
    better, proved = by_all_downsets(quotient, fleet, flight, NEVER if line is None else line.value - 1)
    line = better or line
    if not proved and line is not None and len(quotient) <= _MOST_NEIGHBOURED:
        line = by_neighbours(quotient, fleet, flight, line, may_go_on)
    return line, proved


def _pieces(blocks: Blocks, line: Line) -> list[_Piece]:
    members, flight = blocks.quotient.members, blocks.flight
    copies, pieces = sum(stage.replicas for stage in line.stages), []
    for stage, devices in zip(line.stages, line.devices(blocks.fleet), strict=True):
        nodes, again = (
            tuple(sorted(node for block in chosen for node in members[block]))
            for chosen in (stage.blocks, stage.recomputed)
        )
        pieces.append(_Piece(devices, nodes, again, flight.held(copies, stage.replicas)))
        copies -= stage.replicas
    return pieces


def _excess(problem: Problem, pieces: Sequence[_Piece]) -> list[int]:
    """By how much each stage is over the capacity of its devices, as the judge sees it."""
    labels = _labels(problem, pieces)
    one, two = (_peaks(problem, labels, CostModel(microbatches=held, schedule="gpipe")) for held in (1, 2))
    nodes, over = list(problem.graph.nodes.values()), []
    for piece in pieces:
        device = piece.devices[0]
        need = one[device] + (piece.held - 1) * (two[device] - one[device])
        for node in (nodes[i] for i in piece.again):
            again = node.recomputed or node
            need += again.fixed_bytes - node.fixed_bytes
            need += piece.held * (again.inflight_bytes - node.inflight_bytes)
        over.append(max(0, need - problem.capacity[device]))
    return over


def _labels(problem: Problem, pieces: Sequence[_Piece]) -> list[int]:
    """For each node the first device of its stage."""
    labels = [0] * problem.n
    for piece in pieces:
        for node in piece.nodes:
            labels[node] = piece.devices[0]
    return labels


def _peaks(problem: Problem, labels: Sequence[int], model: CostModel) -> list[int]:
    judge = copy(problem.judge)
    judge.model = model
    return judge.peaks(labels)


def _tightened(blocks: Blocks, line: Line, over: Sequence[int]) -> Blocks:
    """With less capacity, by what the stages turned out to need beyond it."""
    kinds = list(blocks.fleet.kinds)
    for k, kind in enumerate(kinds):
        most = max((excess for stage, excess in zip(line.stages, over, strict=True) if stage.kind == k), default=0)
        kinds[k] = kind._replace(capacity_bytes=max(0, kind.capacity_bytes - most))
    return blocks._replace(fleet=replace(blocks.fleet, kinds=tuple(kinds)))


def _placement(problem: Problem, blocks: Blocks, line: Line, pieces: Sequence[_Piece], proved_ns: int) -> Placement:
    value = max(_stage_ns(problem, blocks, line, pieces))
    names, devices = list(problem.graph.nodes), problem.cluster.names
    return Placement(
        devices=dict(zip(names, (devices[label] for label in _labels(problem, pieces)), strict=True)),
        objective="throughput",
        value=value,
        bound=min(value, max(proved_ns, shared_work_ns(problem))),
        method="stages, replicas and recomputation",
        stages=tuple(
            Stage(
                devices=tuple(devices[device] for device in piece.devices),
                nodes=tuple(names[node] for node in piece.nodes),
                recomputed=tuple(names[node] for node in piece.again if problem.graph.nodes[names[node]].recomputed),
            )
            for piece in pieces
        ),
    )


def _stage_ns(problem: Problem, blocks: Blocks, line: Line, pieces: Sequence[_Piece]) -> list[int]:
    """The time of each stage for one micro-batch of the pipeline, in the cost model."""
    judge, flight, found = problem.judge, blocks.flight, []
    traffic = _traffic(problem, pieces)
    for stage, piece, moved in zip(line.stages, pieces, traffic, strict=True):
        kind = problem.cluster.devices[piece.devices[0]].kind
        work = sum(judge.node_ns[piece.devices[0]][node] for node in piece.nodes)
        for node in (list(problem.graph.nodes)[i] for i in piece.again):
            work += problem.graph.recomputed_ns(node, kind) - problem.graph.node_ns(node, kind)
        gradients = blocks.quotient.gradient_ns
        once = 0 if gradients is None else int(gradients[stage.kind, list(stage.blocks)].sum())
        sync = int(flight.replication.sync_ns(np.array(once), stage.replicas))
        if judge.model.overlap:
            found.append(max(-(-work // stage.replicas) + sync, -(-moved // stage.replicas)))
        else:
            found.append(-(-(work + moved) // stage.replicas) + sync)
    return found


def _traffic(problem: Problem, pieces: Sequence[_Piece]) -> list[int]:
    """The transfers of each stage, each over the slowest link between two devices that it may take."""
    judge, host = problem.judge, len(pieces)
    stage_of = {node: i for i, piece in enumerate(pieces) for node in piece.nodes}
    devices = [*(piece.devices for piece in pieces), (problem.k,)]
    through_host = judge.model.transfers == "host"
    traffic = [0] * (host + 1)

    def cost(item: Item, src: int, dst: int) -> int:
        if through_host and judge.is_host[devices[src][0]] and judge.is_host[devices[dst][0]]:
            return 0
        return max(judge.move_ns(item, a, b) for a in devices[src] for b in devices[dst])

    for item in judge.items:
        home = stage_of[item.producer]
        there = list(dict.fromkeys(stage_of[reader] for reader in item.readers if stage_of[reader] != home))
        moves = [(host, home)] * item.input + [(home, reader) for reader in there]
        moves += [(home, host)] * (item.output and not item.input)
        if through_host:  # what comes from the host is there already, all else is sent there once
            moves = [(home, host)] * (bool(moves) and not item.input) + [(host, dst) for _, dst in moves if dst != host]
        for src, dst in moves:
            moved = cost(item, src, dst)
            traffic[dst] += moved
            traffic[src] += moved * (judge.model.transfers != "receiver")
    return traffic[:-1]


def _does_not_fit(problem: Problem, *, proved: bool) -> CapacityError:
    has = dict(zip(problem.cluster.names, problem.capacity, strict=True))
    what = "no pipeline fits" if proved else "no pipeline that fits was found"
    room = format_bytes(sum(problem.capacity))
    return CapacityError(
        f"{what}: {problem.n} nodes in stages on {problem.k} device(s) of together {room}; "
        "add a device, use fewer micro-batches in flight, or allow recomputation",
        needs_bytes={},
        has_bytes=has,
        proved=proved,
    )
