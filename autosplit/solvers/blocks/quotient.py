"""Quotient: the graph as the stage solvers see it. One block for the nodes that stay together; all else is integers.

A *downset* is a set of blocks that holds, with each block, every block before it. A contiguous plan is a chain of
downsets, from none to all: stage i is what the i-th adds to the one before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autosplit.solvers.blocks.fleet import Fleet

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Wire(NamedTuple):
    """A tensor that blocks share: paid once by the device that makes it and once by each other device that reads it.

    ``cost`` is in ns. Neither order nor direction is implied: a gradient is read by blocks that come before its
    producer. ``readers`` are distinct and without the producer.
    """

    cost: int
    producer: int
    readers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Recomputed:
    """What each block takes when its device saves less of it and computes it again for the backward.

    A block without that choice has here what it has in the quotient; none is faster here.

    Attributes:
        work_ns: [kinds of devices, blocks].
        fixed_bytes: [blocks].
        stash_bytes: [blocks].
    """

    work_ns: Ints
    fixed_bytes: Ints
    stash_bytes: Ints


@dataclass(frozen=True, eq=False)
class Quotient:
    """Blocks, numbered in a topological order.

    Attributes:
        before: for each block, the blocks that must not be in a later stage.
        wires: the tensors between blocks.
        work_ns: [kinds of devices, blocks], the time of each block there.
        fixed_bytes: [blocks], held all the time.
        stash_bytes: [blocks], held for each micro-batch in flight.
        allowed: [kinds, blocks], whether the block may run there.
        members: for each block, its nodes as positions in program order; together every node once.
        gradient_ns: [kinds, blocks], the time to send the gradients of its parameters once to another device of the
            kind, as replicas of a stage do; None: no block has any.
        recomputed: the choice to save less; None: no block has it.
    """

    before: tuple[tuple[int, ...], ...]
    wires: tuple[Wire, ...]
    work_ns: Ints
    fixed_bytes: Ints
    stash_bytes: Ints
    allowed: Bools
    members: tuple[tuple[int, ...], ...]
    gradient_ns: Ints | None = None
    recomputed: Recomputed | None = None

    @classmethod
    def of_numbers(
        cls,
        work_ns: Sequence[Sequence[int]],
        wires: Iterable[tuple[int, int, Sequence[int]]] = (),
        before: Sequence[Iterable[int]] | None = None,
        fixed_bytes: Sequence[int] | None = None,
        stash_bytes: Sequence[int] | None = None,
    ) -> Quotient:
        """A quotient from plain numbers; ``before`` defaults to what the wires say, every block allowed everywhere.

        >>> Quotient.of_numbers([[5, 7]], [(2, 0, [1])]).before
        ((), (0,))
        """
        count = len(work_ns[0])
        found = tuple(Wire(cost, producer, tuple(readers)) for cost, producer, readers in wires)
        given: list[set[int]] = [set() for _ in range(count)] if before is None else [set(b) for b in before]
        if before is None:
            for wire in found:
                for reader in wire.readers:
                    given[reader].add(wire.producer)
        return cls(
            before=tuple(tuple(sorted(blocks)) for blocks in given),
            wires=found,
            work_ns=np.array(work_ns, dtype=np.int64),
            fixed_bytes=np.array(fixed_bytes or [0] * count, dtype=np.int64),
            stash_bytes=np.array(stash_bytes or [0] * count, dtype=np.int64),
            allowed=np.ones((len(work_ns), count), dtype=np.bool_),
            members=tuple((block,) for block in range(count)),
        )

    def __len__(self) -> int:
        return len(self.before)

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """For each block, the blocks that must not be in an earlier stage."""
        after: list[list[int]] = [[] for _ in self.before]
        for block, blocks in enumerate(self.before):
            for other in blocks:
                after[other].append(block)
        return tuple(map(tuple, after))

    @cached_property
    def touching(self) -> tuple[tuple[int, ...], ...]:
        """For each block, the numbers of the wires that it makes or reads."""
        touching: list[list[int]] = [[] for _ in self.before]
        for number, wire in enumerate(self.wires):
            for block in (wire.producer, *wire.readers):
                touching[block].append(number)
        return tuple(map(tuple, touching))


class Load(NamedTuple):
    """What one device does for one micro-batch, and holds."""

    work_ns: int
    in_ns: int
    out_ns: int
    fixed_bytes: int
    stash_bytes: int


def loads(quotient: Quotient, fleet: Fleet, labels: Sequence[int]) -> dict[int, Load]:
    """What each device that is used does and holds. O(blocks + reads).

    Args:
        quotient: the blocks.
        fleet: the devices.
        labels: for each block the position of its device in the cluster.
    """
    kind_of = {device: k for k, kind in enumerate(fleet.kinds) for device in kind.devices}
    used = sorted(set(labels))
    total = {device: [0] * 5 for device in used}
    for block, device in enumerate(labels):
        row = total[device]
        row[0] += int(quotient.work_ns[kind_of[device], block])
        row[3] += int(quotient.fixed_bytes[block])
        row[4] += int(quotient.stash_bytes[block])
    for wire in quotient.wires:
        home = labels[wire.producer]
        others = {labels[reader] for reader in wire.readers} - {home}
        for device in others:
            total[device][1] += wire.cost
        if others:
            total[home][2] += wire.cost
    return {device: Load(*row) for device, row in total.items()}


def stage_ns(fleet: Fleet, kind: int, load: Load) -> int:
    """The time of one micro-batch on a device of a kind, in the fleet's cost model."""
    if not fleet.kinds[kind].pays:
        return load.work_ns
    transfers = load.in_ns + (load.out_ns if fleet.sender_pays else 0)
    return max(load.work_ns, transfers) if fleet.overlap else load.work_ns + transfers


def bottleneck(quotient: Quotient, fleet: Fleet, labels: Sequence[int]) -> int:
    """The time of the busiest device."""
    kind_of = {device: k for k, kind in enumerate(fleet.kinds) for device in kind.devices}
    found = loads(quotient, fleet, labels)
    return max((stage_ns(fleet, kind_of[device], load) for device, load in found.items()), default=0)
