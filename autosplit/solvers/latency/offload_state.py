"""What ``offload`` searches over: the problem as plain lists, and one placement of it with its simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from autosplit.solvers.blocks.fleet import UNLIMITED, Fleet
from autosplit.solvers.blocks.quotient import Load, Quotient, stage_ns


class Offer:
    """A quotient and a fleet as lists. A label is 0, 1, ... for an accelerator and ``host``, one more, for the host.

    A *unit* is a set of blocks that must have one label.
    """

    def __init__(self, quotient: Quotient, fleet: Fleet, together: Sequence[Sequence[int]]) -> None:
        self.quotient, self.fleet = quotient, fleet
        self.count = len(quotient)
        kinds = [(k, device) for k, kind in enumerate(fleet.kinds) if kind.pays for device in kind.devices]
        self.kind_of, self.positions = [k for k, _ in kinds], [device for _, device in kinds]
        self.pieces = self.host = len(kinds)
        host_kind = next(k for k, kind in enumerate(fleet.kinds) if not kind.pays)
        self.positions.append(fleet.kinds[host_kind].devices[0])
        self.host_ns: list[int] = quotient.work_ns[host_kind].tolist()
        self.work_ns: list[list[int]] = [quotient.work_ns[k].tolist() for k in self.kind_of]
        self.capacity = [fleet.kinds[k].capacity_bytes for k in self.kind_of] + [UNLIMITED]
        self.units = _units(self.count, together)
        self.unit_of = [0] * self.count
        for unit, blocks in enumerate(self.units):
            for block in blocks:
                self.unit_of[block] = unit
        held = (quotient.fixed_bytes + quotient.stash_bytes).tolist()
        self.bytes: list[int] = held
        self.unit_bytes = [sum(held[block] for block in blocks) for blocks in self.units]
        self.allowed = [
            [all(quotient.allowed[k, block] for block in blocks) for blocks in self.units]
            for k in (*self.kind_of, host_kind)
        ]
        self.after = quotient.after
        self.indegree = [len(blocks) for blocks in quotient.before]
        self.sources = [block for block, degree in enumerate(self.indegree) if not degree]
        self.edges = sum(self.indegree)

    def device(self, label: int) -> int:
        """The position in the cluster of the device that a label means."""
        return self.positions[label]

    @cached_property
    def near(self) -> list[list[int]]:
        """For each unit the blocks before and after its own."""
        near = []
        for unit, blocks in enumerate(self.units):
            around = dict.fromkeys(v for block in blocks for v in (*self.quotient.before[block], *self.after[block]))
            near.append([v for v in around if self.unit_of[v] != unit])
        return near

    @cached_property
    def least_ns(self) -> list[int | None]:
        """For each block its time on the fastest accelerator that it may be on; None when there is none."""
        found: list[int | None] = []
        for block in range(self.count):
            unit = self.unit_of[block]
            times = [
                self.work_ns[label][block]
                for label in range(self.pieces)
                if self.allowed[label][unit] and self.unit_bytes[unit] <= self.capacity[label]
            ]
            found.append(min(times, default=None))
        return found

    @cached_property
    def reads(self) -> list[list[tuple[int, int, int, bool]]]:
        """For each block those before it: what sending costs, what receiving costs, and if one piece can hold both."""
        cost: dict[tuple[int, int], int] = {}
        for wire in self.quotient.wires:
            for reader in wire.readers:
                cost[wire.producer, reader] = max(wire.cost, cost.get((wire.producer, reader), 0))
        room = max(self.capacity[: self.pieces], default=0)
        found: list[list[tuple[int, int, int, bool]]] = []
        for block, blocks in enumerate(self.quotient.before):
            rows = []
            for u in blocks:
                paid = 0 if self.fleet.overlap else cost.get((u, block), 0)
                units = {self.unit_of[u], self.unit_of[block]}
                together = sum(self.unit_bytes[unit] for unit in units) <= room
                rows.append((u, paid * self.fleet.sender_pays, paid, together))
            found.append(rows)
        return found


def _units(count: int, together: Sequence[Sequence[int]]) -> list[list[int]]:
    """The groups, merged where they share a block, and every other block; in the order of their first block."""
    parent = list(range(count))

    def root(block: int) -> int:
        while parent[block] != block:
            block = parent[block]
        return block

    for group in together:
        for block in group[1:]:
            a, b = sorted((root(group[0]), root(block)))
            parent[b] = a
    units: dict[int, list[int]] = {}
    for block in range(count):
        units.setdefault(root(block), []).append(block)
    return list(units.values())


class State:
    """One placement; moves cost the reads that they touch, a simulation all of them.

    Attributes:
        labels: for each block its label.
        members: for each accelerator its blocks.
        entering: for each accelerator the edges that enter its piece.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.wires = [(wire.cost, wire.producer) for wire in offer.quotient.wires]
        self.load([offer.host] * offer.count)

    def load(self, labels: Sequence[int]) -> None:
        """Take other labels. O(reads)."""
        offer = self.offer
        self.labels = [offer.host] * offer.count
        self.members: list[set[int]] = [set() for _ in range(offer.pieces)]
        self.work, self.held = [0] * (offer.pieces + 1), [0] * (offer.pieces + 1)
        self.received, self.sent = [0] * (offer.pieces + 1), [0] * (offer.pieces + 1)
        self.entering = [0] * offer.pieces
        # reads of each wire by label: the producer's own label does not pay for receiving
        self.reads = [[0] * (offer.pieces + 1) for _ in self.wires]
        for number, wire in enumerate(offer.quotient.wires):
            self.reads[number][offer.host] = len(wire.readers)
        for block, label in enumerate(labels):
            if label != offer.host:
                self._move(block, label)

    @property
    def fits(self) -> bool:
        """Whether every accelerator holds its piece."""
        return all(held <= has for held, has in zip(self.held, self.offer.capacity, strict=True))

    def bytes_on(self, label: int) -> int:
        """What a piece holds; the host's bytes are not counted."""
        return self.held[label] if label != self.offer.host else 0

    def total(self) -> int:
        """Everything that is done anywhere, transfers too."""
        return sum(self.work) + sum(self.received) + sum(self.sent)

    def move(self, unit: int, label: int) -> None:
        """Give a unit another label."""
        for block in self.offer.units[unit]:
            self._move(block, label)

    def _move(self, block: int, label: int) -> None:
        here, offer = self.labels[block], self.offer
        if here == label:
            return
        for number in offer.quotient.touching[block]:
            self._charge(number, -1)
        self._account(block, here, -1)
        self.labels[block] = label
        self._account(block, label, 1)
        for number in offer.quotient.touching[block]:
            if self.wires[number][1] != block:
                row = self.reads[number]
                row[here] -= 1
                row[label] += 1
            self._charge(number, 1)

    def _account(self, block: int, label: int, sign: int) -> None:
        """Work, bytes and edges of a block that comes to a label, or leaves it."""
        offer, labels = self.offer, self.labels
        if label == offer.host:
            self.work[label] += sign * offer.host_ns[block]
            return
        self.work[label] += sign * offer.work_ns[label][block]
        self.held[label] += sign * offer.bytes[block]
        before, after = offer.quotient.before[block], offer.after[block]
        for u in before:
            self.entering[label] += sign * (labels[u] != label)
        for w in after:
            self.entering[label] -= sign * (labels[w] == label)
        if sign > 0:
            self.members[label].add(block)
        else:
            self.members[label].discard(block)

    def _charge(self, number: int, sign: int) -> None:
        """What a wire costs the accelerators at its ends."""
        cost, producer = self.wires[number]
        home, host = self.labels[producer], self.offer.host
        crosses = False
        for label, count in enumerate(self.reads[number]):
            if count and label != home:
                crosses = True
                if label != host:
                    self.received[label] += sign * cost
        if crosses and home != host:
            self.sent[home] += sign * cost

    def loads(self) -> list[int]:
        """Nanoseconds of each accelerator's piece."""
        offer = self.offer
        return [
            stage_ns(offer.fleet, offer.kind_of[p], Load(self.work[p], self.received[p], self.sent[p], 0, 0))
            for p in range(offer.pieces)
        ]

    def makespan(self, limit: float = math.inf) -> int:
        """Nanoseconds until all is done; -1 if that is more than ``limit`` or pieces wait on each other. O(edges)."""
        offer, labels, after = self.offer, self.labels, self.offer.after
        host, host_ns = offer.host, offer.host_ns
        waits, entering = offer.indegree.copy(), self.entering.copy()
        start, begin, loads = [0] * offer.count, [0] * offer.pieces, self.loads()
        ready = [v for v in offer.sources if labels[v] == host]
        ready += [-1 - p for p, blocks in enumerate(self.members) if blocks and not entering[p]]
        left = offer.count - sum(map(len, self.members)) + sum(map(bool, self.members))
        last = 0
        while ready:
            left -= 1
            done = ready.pop()
            here = host if done >= 0 else -1 - done
            end = start[done] + host_ns[done] if done >= 0 else begin[here] + loads[here]
            if end > last:
                if end > limit:
                    return -1
                last = end
            for v in (done,) if done >= 0 else self.members[here]:
                for w in after[v]:
                    label = labels[w]
                    if label == host:
                        waits[w] -= 1
                        start[w] = max(start[w], end)
                        if not waits[w]:
                            ready.append(w)
                    elif label != here:
                        entering[label] -= 1
                        begin[label] = max(begin[label], end)
                        if not entering[label]:
                            ready.append(-1 - label)
        return last if not left else -1
