"""Plain placements: what other tools would do. They are candidates, so that no answer is worse than theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from autosplit.solvers.blocks import Blocks
from autosplit.solvers.contiguous import by_order
from autosplit.solvers.fleet import Fleet
from autosplit.solvers.line import Line
from autosplit.solvers.quotient import Quotient


def plain_splits(blocks: Blocks) -> Iterator[tuple[str, list[int]]]:
    """Names and labels by block, on the blocks' own order.

    - equal compute: a boundary wherever a device has done its share of the work;
    - sequential fill: each device is filled with weights before the next, as device maps do (Accelerate);
    - block partition: the least busiest device when transfers are free (torchgpipe, Kim et al. 2020);
    - pipelined: the least busiest device when transfers overlap with compute (PipeDream, Narayanan et al. 2019).
    """
    quotient, fleet, flight, *_ = blocks
    devices = sorted((device, kind) for kind in range(len(fleet.kinds)) for device in fleet.kinds[kind].devices)
    yield "equal compute", _equal_compute(quotient, devices)
    yield "sequential fill", _sequential_fill(quotient, fleet, devices)
    for name, free, terms in (
        ("block partition", True, fleet),
        ("pipelined", False, Fleet(fleet.kinds, fleet.sender_pays, overlap=True)),
    ):
        simpler = replace(quotient, wires=()) if free else quotient
        line: Line | None = by_order(simpler, terms, flight, range(len(quotient)))
        if line is not None:
            yield name, line.labels(quotient, fleet)


def _equal_compute(quotient: Quotient, devices: list[tuple[int, int]]) -> list[int]:
    done = np.cumsum(quotient.work_ns[devices[0][1]])
    share = (done * len(devices) - 1) // max(1, int(done[-1])) if len(done) else done
    return [devices[min(max(0, part), len(devices) - 1)][0] for part in share.tolist()]


def _sequential_fill(quotient: Quotient, fleet: Fleet, devices: list[tuple[int, int]]) -> list[int]:
    labels, at, used = [], 0, 0
    for size in quotient.fixed_bytes.tolist():
        if used + size > fleet.kinds[devices[at][1]].capacity_bytes and at + 1 < len(devices):
            at, used = at + 1, 0
        used += size
        labels.append(devices[at][0])
    return labels
