"""The best of all labellings of few blocks, by branch and bound: an answer with its proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from autosplit.solvers.anywhere.shares import tied
from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Load, Quotient, bottleneck, stage_ns

_MOST_BLOCKS = 200  # the search recurses once per block
_STEPS = 10  # of the bisection, when the search for a proof did not end


class Settled(NamedTuple):
    """What a search found.

    Attributes:
        labels: for each block the position of its device.
        bound_ns: no labelling that fits has a lower bottleneck; that of ``labels`` when they are proved to be best.
    """

    labels: list[int]
    bound_ns: int


def settle(quotient: Quotient, fleet: Fleet, labels: Sequence[int], bound_ns: int = 0, visits: int = 50_000) -> Settled:
    """Try all labellings that may be better than the given ones, contiguous or not.

    Blocks are given devices one by one, large and joined ones first, empty devices of a kind being alike. A partial
    labelling is left when a device is over its memory or over the best value, or when the rest does not fit into the
    time that is left on all devices together. Wires too dear to be cut tie their blocks first. When half of the visits
    do not suffice for a proof, the other half goes to refuting lower values, by bisection.

    Args:
        quotient: the blocks; order constraints do not bind.
        fleet: the devices.
        labels: for each block the position of its device; must fit.
        bound_ns: a known bound.
        visits: at most this many partial labellings are looked at.

    Complexity: exponential in the blocks; O(visits x (devices + wires of a block)).
    Source: branch and bound (Land and Doig 1960).

    >>> from autosplit.solvers.blocks.fleet import Kind
    >>> settle(Quotient.of_numbers([[3, 3, 2, 2, 2]]), Fleet((Kind((0, 1)),)), [0, 0, 0, 1, 1])
    Settled(labels=[0, 0, 1, 1, 1], bound_ns=6)
    """
    best, value = list(labels), bottleneck(quotient, fleet, labels)
    found, whole = _search(quotient, fleet, value - 1, visits // 2)
    if found is not None:
        best, value = found, bottleneck(quotient, fleet, found)
    if whole:
        return Settled(best, value)
    low, high = bound_ns, value - 1  # no value under low is possible
    for _ in range(_STEPS):
        if low >= high:
            break
        middle = (low + high) // 2
        found, whole = _search(quotient, fleet, middle, visits // (2 * _STEPS))
        if found is None and whole:
            low = middle + 1
            continue
        if found is not None:
            best, value = found, bottleneck(quotient, fleet, found)
        if whole:
            return Settled(best, value)
        high = min(middle, value - 1)
    return Settled(best, min(low, value))


def _search(quotient: Quotient, fleet: Fleet, limit: int, visits: int) -> tuple[list[int] | None, bool]:
    """Labels with the least bottleneck up to ``limit``, if any were found, and whether the search came to its end."""
    blocks = tied(replace(quotient, members=tuple((b,) for b in range(len(quotient)))), fleet, limit)
    if len(blocks) > _MOST_BLOCKS:
        return None, False
    search = _Search(blocks, fleet, limit, visits)
    whole = search.descend(0)
    if search.found is None:
        return None, whole
    labels = [0] * len(quotient)
    for block, device in enumerate(search.found):
        for member in blocks.members[block]:
            labels[member] = search.devices[device]
    return labels, whole


class _Search:
    """A partial labelling, deepened and taken back; devices are numbered kind by kind."""

    def __init__(self, quotient: Quotient, fleet: Fleet, limit: int, visits: int) -> None:
        self.quotient, self.fleet, self.limit, self.visits = quotient, fleet, limit, visits
        self.devices = [device for kind in fleet.kinds for device in kind.devices]
        self.kind = [k for k, kind in enumerate(fleet.kinds) for _ in kind.devices]
        self.found: list[int] | None = None
        self.order = _order(quotient)
        self.work = quotient.work_ns.T.tolist()
        self.allowed = quotient.allowed.T.tolist()
        self.bytes = (quotient.fixed_bytes + quotient.stash_bytes).tolist()
        self.label = [-1] * len(quotient)
        count = len(self.devices)
        self.worked, self.paid, self.held, self.blocks = [0] * count, [0] * count, [0] * count, [0] * count
        self.there = [[0] * count for _ in quotient.wires]
        least = np.where(quotient.allowed, quotient.work_ns, np.iinfo(np.int64).max).min(axis=0).tolist()
        self.rest = [0] * (len(self.order) + 1)  # the least work of the blocks from each depth on
        for depth in range(len(self.order) - 1, -1, -1):
            self.rest[depth] = self.rest[depth + 1] + least[self.order[depth]]

    def descend(self, depth: int) -> bool:
        """Try all devices for the blocks from this depth on; False when the visits did not suffice."""
        if depth == len(self.order):
            self.found = list(self.label)
            self.limit = max(map(self._stage, range(len(self.devices)))) - 1
            return True
        block = self.order[depth]
        for device in self._choices(block):
            if self.visits <= 0:
                return False
            self.visits -= 1
            undo = self._put(block, device)
            whole = self.descend(depth + 1) if self._open(depth + 1) else True
            self._take(block, device, undo)
            if not whole:
                return False
        return True

    def _choices(self, block: int) -> list[int]:
        """Devices that may take the block, one empty one of each kind, the least busy first."""
        chosen: list[int] = []
        empty: list[int] = []  # kinds
        for device, kind in enumerate(self.kind):
            fits = self.held[device] + self.bytes[block] <= self.fleet.kinds[kind].capacity_bytes
            if not self.allowed[block][kind] or not fits or kind in empty:
                continue
            if not self.blocks[device]:
                empty.append(kind)
            chosen.append(device)
        return sorted(chosen, key=lambda device: self.worked[device] + self.work[block][self.kind[device]])

    def _open(self, depth: int) -> bool:
        """Whether the rest may still fit."""
        stages = list(map(self._stage, range(len(self.devices))))
        if max(stages) > self.limit:
            return False
        busy = self.worked if self.fleet.overlap else stages
        return self.rest[depth] <= self.limit * len(busy) - sum(busy)

    def _stage(self, device: int) -> int:
        return stage_ns(self.fleet, self.kind[device], Load(self.worked[device], self.paid[device], 0, 0, 0))

    def _put(self, block: int, device: int) -> list[tuple[int, int]]:
        """Give the block the device; which devices pay how much more for it."""
        self.label[block] = device
        self.worked[device] += self.work[block][self.kind[device]]
        self.held[device] += self.bytes[block]
        self.blocks[device] += 1
        more: list[tuple[int, int]] = []
        for number in self.quotient.touching[block]:
            more += self._paying(number, block, device)
            self.there[number][device] += 1
        for other, cost in more:
            self.paid[other] += cost
        return more

    def _paying(self, number: int, block: int, device: int) -> list[tuple[int, int]]:
        cost, producer, _ = self.quotient.wires[number]
        there = self.there[number]
        if self.fleet.sender_pays:
            if there[device]:
                return []
            others = [other for other, count in enumerate(there) if count]
            return [(other, cost) for other in (*(others if len(others) == 1 else ()), *((device,) * bool(others)))]
        if block == producer:
            return [(other, cost) for other, count in enumerate(there) if count and other != device]
        home = self.label[producer]
        return [(device, cost)] if home >= 0 and home != device and not there[device] else []

    def _take(self, block: int, device: int, paid: list[tuple[int, int]]) -> None:
        """Take the block back."""
        self.label[block] = -1
        self.worked[device] -= self.work[block][self.kind[device]]
        self.held[device] -= self.bytes[block]
        self.blocks[device] -= 1
        for number in self.quotient.touching[block]:
            self.there[number][device] -= 1
        for other, cost in paid:
            self.paid[other] -= cost


def _order(quotient: Quotient) -> list[int]:
    """Each time the block with the most work and the dearest wires to those before it."""
    pull = quotient.work_ns.min(axis=0).tolist()
    left = list(range(len(pull)))
    order: list[int] = []
    while left:
        block = max(left, key=lambda b: (pull[b], -b))
        left.remove(block)
        order.append(block)
        for number in quotient.touching[block]:
            wire = quotient.wires[number]
            for other in (wire.producer, *wire.readers):
                pull[other] += wire.cost
    return order
