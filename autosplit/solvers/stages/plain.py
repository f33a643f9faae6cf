"""Plain placements: what other tools would do. They are candidates, so that no answer is worse than theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from autosplit.solvers.blocks.compiled import Blocks
from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Quotient
from autosplit.solvers.stages.contiguous import by_order
from autosplit.solvers.stages.line import Line


def plain_splits(blocks: Blocks) -> Iterator[tuple[str, list[int]]]:
    """Names and labels by block, on the blocks' own order.

    - equal compute: a boundary wherever a device has done its share of the work;
    - sequential fill: each device is filled with weights before the next, as device maps do (Accelerate);
    - block partition: the least busiest device when transfers are free (torchgpipe, Kim et al. 2020);
    - pipelined: the least busiest device when transfers overlap with compute (PipeDream, Narayanan et al. 2019).
    """
    quotient, fleet, flight, *_ = blocks
    yield "equal compute", equal_compute(quotient, fleet)
    yield "sequential fill", _sequential_fill(quotient, fleet)
    for name, free, terms in (
        ("block partition", True, fleet),
        ("pipelined", False, Fleet(fleet.kinds, fleet.sender_pays, overlap=True)),
    ):
        simpler = replace(quotient, wires=()) if free else quotient
        line: Line | None = by_order(simpler, terms, flight, range(len(quotient)))
        if line is not None:
            yield name, line.labels(quotient, fleet)


def equal_compute(quotient: Quotient, fleet: Fleet) -> list[int]:
    """Labels by block: runs of the blocks' own order with equal work, on all devices that pay for transfers."""
    devices = _devices(fleet, [kind for kind in range(len(fleet.kinds)) if fleet.kinds[kind].pays] or [0])
    done = np.cumsum(quotient.work_ns[devices[0][1]])
    share = (done * len(devices) - 1) // max(1, int(done[-1])) if len(done) else done
    return [devices[min(max(0, part), len(devices) - 1)][0] for part in share.tolist()]


def _devices(fleet: Fleet, kinds: Iterable[int]) -> list[tuple[int, int]]:
    """Devices by position, and the kind of each."""
    return sorted((device, kind) for kind in kinds for device in fleet.kinds[kind].devices)


def _sequential_fill(quotient: Quotient, fleet: Fleet) -> list[int]:
    devices = _devices(fleet, range(len(fleet.kinds)))
    labels, at, used = [], 0, 0
    for size in quotient.fixed_bytes.tolist():
        if used + size > fleet.kinds[devices[at][1]].capacity_bytes and at + 1 < len(devices):
            at, used = at + 1, 0
        used += size
        labels.append(devices[at][0])
    return labels
