"""Contract: blocks that share a stage in some plan of least bottleneck become one, so that there is less to search.

Block u, from which the only block that may not come before it is v, moves from its own stage A to the stage B of v,
later or the same. The plan stays contiguous. A wire between u and v alone is no longer paid, on either side; a wire
that touches u and not v is paid at most once more by A and once more by B; one that touches u, v and others is paid
by nobody who did not pay it; no other stage pays more or less, as it counts once there however many read it. So
where the wires between the two cost at least u's time and its other wires, neither A nor B takes longer, and an
optimal plan is left that has u and v together. The same holds for a block that has only u before it, which moves to
the stage of u. Blocks that weigh nothing are moved whatever the capacities are, others only where no capacity can bind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Ints, Quotient, Recomputed, Wire
from autosplit.solvers.stages.line import Flight


def contracted(quotient: Quotient, fleet: Fleet, flight: Flight) -> tuple[Quotient, list[int]]:
    """The quotient with fewer blocks and the same least bottleneck over contiguous plans.

    Args:
        quotient: the blocks, numbered in a topological order.
        fleet: the devices; each of its stages runs on one.
        flight: micro-batches in flight.

    Returns:
        The quotient of groups of blocks, again in a topological order, and for each block the number of its group.
        About O(blocks + reads); each merge costs the reads of the smaller of its blocks' wires.

    >>> from autosplit.solvers.blocks.fleet import Kind
    >>> chain = Quotient.of_numbers([[5, 1, 5]], [(9, 0, [1]), (2, 1, [2])])
    >>> contracted(chain, Fleet((Kind((0, 1)),)), Flight())[1]
    [0, 0, 1]
    """
    search = _Contraction(quotient, fleet, flight)
    search.run()
    return search.result()


class _Contraction:
    """Blocks and wires while some are merged; a block that was merged is known by the one that took it."""

    def __init__(self, quotient: Quotient, fleet: Fleet, flight: Flight) -> None:
        self._quotient, self._fleet = quotient, fleet
        self._before = [set(blocks) for blocks in quotient.before]
        self._after = [set(blocks) for blocks in quotient.after]
        self._producer = [wire.producer for wire in quotient.wires]
        self._ends = [{wire.producer, *wire.readers} for wire in quotient.wires]
        self._touching = [set(numbers) for numbers in quotient.touching]
        self._taker = list(range(len(quotient)))
        work = np.where(quotient.allowed, quotient.work_ns, 0)
        self._most_ns: list[int] = work.max(axis=0).tolist()
        self._least_ns: list[int] = np.where(quotient.allowed, quotient.work_ns, self._most_ns).min(axis=0).tolist()
        self._only_idle = fleet.overlap or not all(kind.pays for kind in fleet.kinds)
        self._weighs: list[bool] = _weighs(quotient, fleet, flight).tolist()
        self._allowed = [tuple(column) for column in quotient.allowed.T.tolist()]

    def run(self) -> None:
        """Merge until no block can be."""
        queue, waiting = deque(range(len(self._taker))), [True] * len(self._taker)
        while queue:
            block = queue.popleft()
            waiting[block] = False
            taker = self._taker_of(block) if self._taker[block] == block else None
            if taker is None:
                continue
            self._merge(block, taker)
            for other in (taker, *self._before[taker], *self._after[taker], *self._beside(taker)):
                if not waiting[other]:
                    waiting[other] = True
                    queue.append(other)

    def _taker_of(self, block: int) -> int | None:
        """The block whose stage this one can be in without loss."""
        for others in (self._after[block], self._before[block]):
            if len(others) == 1:
                (other,) = others
                if self._may_join(block, other):
                    return other
        return None

    def _beside(self, block: int) -> Iterable[int]:
        """The other ends of its wires between two blocks."""
        return [end for wire in self._touching[block] if len(self._ends[wire]) == 2 for end in self._ends[wire]]

    def _may_join(self, block: int, other: int) -> bool:
        """Whether no stage takes longer, or holds more than it can, when the block moves to the stage of the other."""
        work = self._most_ns[block]
        if self._weighs[block] or (work and self._only_idle):
            return False
        if any(there and not here for here, there in zip(self._allowed[block], self._allowed[other], strict=True)):
            return False
        if not self._fleet.sender_pays:
            left, joined = self._received(block, other)
            return joined + work <= 0 and left - self._least_ns[block] * (not self._only_idle) <= 0
        saved = 0
        for number in self._touching[block]:
            cost, ends = self._quotient.wires[number].cost, self._ends[number]
            saved += (cost if len(ends) == 2 else 0) if other in ends else -cost
        return saved >= work

    def _received(self, block: int, other: int) -> tuple[int, int]:
        """By how much more at most the stage that the block leaves, and the one that it joins, receive."""
        left = joined = 0
        for number in self._touching[block]:
            cost, ends = self._quotient.wires[number].cost, self._ends[number]
            makes = self._producer[number] == block
            if makes:
                joined -= cost if other in ends else 0
                left += cost if len(ends) > 2 or other not in ends else 0
            elif self._producer[number] == other:
                left -= cost if len(ends) == 2 else 0
            else:
                joined += 0 if other in ends else cost
        return left, joined

    def _merge(self, block: int, taker: int) -> None:
        """Let the taker have all that the block has."""
        self._taker[block] = taker
        self._most_ns[taker] += self._most_ns[block]
        self._least_ns[taker] += self._least_ns[block]
        self._weighs[taker] = self._weighs[taker] or self._weighs[block]
        for here, there in ((self._before, self._after), (self._after, self._before)):
            for other in here[block]:
                there[other].discard(block)
                if other != taker:
                    there[other].add(taker)
                    here[taker].add(other)
        for number in self._touching[block]:
            ends = self._ends[number]
            ends.discard(block)
            ends.add(taker)
            if self._producer[number] == block:
                self._producer[number] = taker
            self._touching[taker].add(number)
            if len(ends) == 1:
                self._touching[taker].discard(number)

    def _last_taker(self, block: int) -> int:
        while self._taker[block] != block:
            block = self._taker[block]
        return block

    def result(self) -> tuple[Quotient, list[int]]:
        """The quotient of what is left, and for each block its number there."""
        taker, left = self._taker, [block for block, other in enumerate(self._taker) if block == other]
        number = {block: i for i, block in enumerate(left)}
        groups = [number[self._last_taker(block)] for block in range(len(taker))]
        return (self._quotient if len(left) == len(taker) else grouped(self._quotient, groups)), groups


def _weighs(quotient: Quotient, fleet: Fleet, flight: Flight) -> Ints:
    """Whether it matters to memory where a block is."""
    fixed, stash = np.maximum(quotient.fixed_bytes, 0), np.maximum(quotient.stash_bytes, 0)
    most = sum(fixed.tolist()) + flight.held(fleet.size) * sum(stash.tolist())
    if most <= min(kind.capacity_bytes for kind in fleet.kinds):
        return np.zeros(len(quotient), dtype=np.int64)
    return np.asarray((quotient.fixed_bytes != 0) | (quotient.stash_bytes != 0), dtype=np.int64)


def grouped(quotient: Quotient, groups: Sequence[int]) -> Quotient:
    """The quotient of groups of blocks: those of one group are in one stage.

    Args:
        quotient: the blocks.
        groups: for each block the number of its group; every number from 0 up, in a topological order of the groups.
    """
    count, into = max(groups, default=-1) + 1, np.array(groups, dtype=np.int64)
    before: list[set[int]] = [set() for _ in range(count)]
    for block, others in enumerate(quotient.before):
        before[groups[block]].update(groups[other] for other in others)
    wires = []
    for cost, producer, readers in quotient.wires:
        ends = {groups[reader] for reader in readers} - {groups[producer]}
        if ends:
            wires.append(Wire(cost, groups[producer], tuple(sorted(ends))))

    def total(values: Ints) -> Ints:
        sums = np.zeros((*values.shape[:-1], count), dtype=np.int64)
        np.add.at(sums.T, into, values.T)
        return sums

    allowed = np.ones((len(quotient.allowed), count), dtype=np.bool_)
    np.logical_and.at(allowed.T, into, quotient.allowed.T)
    members: list[list[int]] = [[] for _ in range(count)]
    for block, group in enumerate(groups):
        members[group] += quotient.members[block]
    again = quotient.recomputed
    return replace(
        quotient,
        before=tuple(tuple(sorted(others - {group})) for group, others in enumerate(before)),
        wires=tuple(wires),
        work_ns=total(quotient.work_ns),
        fixed_bytes=total(quotient.fixed_bytes),
        stash_bytes=total(quotient.stash_bytes),
        allowed=allowed,
        members=tuple(tuple(sorted(nodes)) for nodes in members),
        gradient_ns=None if quotient.gradient_ns is None else total(quotient.gradient_ns),
        recomputed=again and Recomputed(total(again.work_ns), total(again.fixed_bytes), total(again.stash_bytes)),
    )
