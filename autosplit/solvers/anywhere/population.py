"""A population of labellings, moved together: one array operation weighs a move in every labelling at once.

Arrays end in the axis of chains (one labelling each). A set of blocks that share a device moves from it to the best
drawn one (a heat bath: Gibbs sampling), and only the two devices' loads change, because a wire that other devices
touch is paid by them wherever the moved blocks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autosplit.solvers.blocks.fleet import UNLIMITED, Fleet
from autosplit.solvers.blocks.quotient import Ints, Quotient

Floats = npt.NDArray[np.float64]
_OVERFULL, _OVERFULL_AT_ALL = 4.0, 0.05  # a device without memory for its blocks is this much slower
_TINY, _LARGEST_EXPONENT = 1e-12, 60.0  # beyond that, one move is as bad as another
_POOL = 1 << 18  # random numbers drawn once and read from random places


class Group(NamedTuple):
    """Blocks to move together, with what a move needs of them.

    Attributes:
        blocks: [g], the blocks; in each chain those move that share the first one's device.
        wires: [t], the wires that they touch.
        incidence: [t, g], 1 where a block touches a wire.
        makes: [t, g], 1 where a block makes a wire.
        cost: [t], of the wires, in units of the scale.
    """

    blocks: Ints
    wires: Ints
    incidence: npt.NDArray[np.float32]
    makes: npt.NDArray[np.float32]
    cost: Floats


@dataclass(frozen=True, eq=False)
class Costs:
    """A quotient and a fleet as a population reads them: rows per device, times in units of ``scale_ns``.

    Attributes:
        scale_ns: the unit of time.
        devices: for each row, the device's position in the cluster.
        work: [blocks, rows].
        banned: [blocks, rows], 1 where the block may not run; empty when every block may run everywhere.
        pays: [rows, 1], 1 where transfers occupy the device.
        wires: distinct wires that cost something: cost in ns, then the blocks that touch it, its producer first.
        memory: [blocks], bytes.
        capacity: [rows, 1], bytes; empty when memory cannot bind.
    """

    scale_ns: float
    fleet: Fleet
    devices: tuple[int, ...]
    work: Floats
    banned: npt.NDArray[np.float32]
    pays: Floats
    wires: tuple[tuple[int, tuple[int, ...]], ...]
    memory: Floats
    capacity: Floats

    @classmethod
    def of(cls, quotient: Quotient, fleet: Fleet, scale_ns: float) -> Costs:
        """The costs of placing a quotient on a fleet."""
        kinds = [k for k, kind in enumerate(fleet.kinds) for _ in kind.devices]
        banned = ~quotient.allowed[kinds].T
        memory = (quotient.fixed_bytes + quotient.stash_bytes).astype(np.float64)
        capacity = np.array([[float(max(1, fleet.kinds[k].capacity_bytes))] for k in kinds])
        binds = bool((memory.sum() > capacity).any()) and float(capacity.min()) < UNLIMITED
        return cls(
            scale_ns=scale_ns,
            fleet=fleet,
            devices=tuple(device for kind in fleet.kinds for device in kind.devices),
            work=quotient.work_ns[kinds].T / scale_ns,
            banned=banned.astype(np.float32) if banned.any() else np.zeros((0, 0), dtype=np.float32),
            pays=np.array([[float(fleet.kinds[k].pays)] for k in kinds]),
            wires=_merged(quotient, fleet.sender_pays),
            memory=memory,
            capacity=capacity if binds else np.zeros((0, 1)),
        )

    def group(self, blocks: Sequence[int], touching: Sequence[Sequence[int]]) -> Group:
        """What a move of these blocks needs; ``touching`` lists the numbers of ``wires`` for each block."""
        found = sorted({wire for block in blocks for wire in touching[block]})
        member = [[block in self.wires[wire][1] for block in blocks] for wire in found]
        makes = [[block == self.wires[wire][1][0] for block in blocks] for wire in found]
        shape = (len(found), len(blocks))
        return Group(
            blocks=np.array(blocks, dtype=np.int64),
            wires=np.array(found, dtype=np.int64),
            incidence=np.array(member, dtype=np.float32).reshape(shape),
            makes=np.array(makes, dtype=np.float32).reshape(shape),
            cost=np.array([self.wires[wire][0] / self.scale_ns for wire in found], dtype=np.float64),
        )

    def touching(self) -> list[list[int]]:
        """For each block, the numbers of the wires that it touches."""
        touching: list[list[int]] = [[] for _ in range(len(self.work))]
        for number, (_, blocks) in enumerate(self.wires):
            for block in blocks:
                touching[block].append(number)
        return touching


def _merged(quotient: Quotient, sender_pays: bool) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Wires between the same blocks as one. When both ends pay alike it does not matter which end is which."""
    cost: dict[tuple[int, ...], int] = {}
    for wire in quotient.wires:
        blocks = (wire.producer, *wire.readers)
        key = tuple(sorted(blocks)) if sender_pays else blocks
        cost[key] = cost.get(key, 0) + wire.cost
    return tuple((total, blocks) for blocks, total in cost.items() if total > 0)


class Population:
    """Chains of labellings and what each costs, kept up to date move by move.

    Attributes:
        labels: [blocks, chains], the row of each block's device.
        loads: [parts, rows, chains]; one part, or compute and transfers apart when they overlap.
        used: [rows, chains], bytes.
    """

    def __init__(self, costs: Costs, labels: Ints, seed: int) -> None:
        self.costs = costs
        self.rows = np.arange(len(costs.devices))[:, None]
        random = np.random.default_rng(seed)
        self._pool = -np.log(random.standard_exponential(_POOL))  # Gumbel: its argmax draws from softmax
        self._places = random.integers(0, 1 << 40, size=1 << 12).tolist()
        self._drawn = 0
        self.start(labels)

    def start(self, labels: Ints) -> None:
        """Count everything anew. O(chains x (blocks + reads) x devices)."""
        costs = self.costs
        self.labels = labels.copy()
        self._on = (labels[:, None, :] == self.rows).view(np.int8)  # [blocks, rows, chains]
        chains = labels.shape[1]
        self._count = np.zeros((len(costs.wires), len(costs.devices), chains), dtype=np.int16)
        transfers = np.zeros((len(costs.devices), chains))
        for number, (cost, blocks) in enumerate(costs.wires):
            count = self._on[list(blocks)].sum(axis=0, dtype=np.int16)
            self._count[number] = count
            there = count > 0
            paying = there & (there.sum(axis=0) > 1) if costs.fleet.sender_pays else there & (self._on[blocks[0]] == 0)
            transfers += paying * (cost / costs.scale_ns)
        work = np.einsum("br,brc->rc", costs.work, self._on)
        parts = (work, transfers * costs.pays) if costs.fleet.overlap else (work + transfers * costs.pays,)
        self.loads = np.stack(parts)
        self.used = np.einsum("b,brc->rc", costs.memory, self._on)

    def bottleneck(self) -> Floats:
        """[chains], the largest load where memory suffices, else infinite."""
        value: Floats = self.loads.max(axis=(0, 1))
        if len(self.costs.capacity):
            value = np.where((self.used <= self.costs.capacity).all(axis=0), value, np.inf)
        return value

    def missing(self) -> Floats:
        """[chains], the bytes that devices lack."""
        if not len(self.costs.capacity):
            return np.zeros(self.labels.shape[1])
        missing: Floats = np.maximum(self.used - self.costs.capacity, 0).sum(axis=0)
        return missing

    def energy(self, power: Floats) -> Floats:
        """[chains], what the moves make small: the log of the loads' norm of this power, and a price for overfull."""
        logs = np.log(np.maximum(self.loads.max(axis=0), _TINY))
        most = logs.max(axis=0)
        energy: Floats = most + np.log(np.exp(power * (logs - most)).sum(axis=0)) / power
        return energy + self._overfull(self.used).sum(axis=0) if len(self.costs.capacity) else energy

    def keep(self, chains: Ints) -> None:
        """Go on with these chains, repeated as they are listed."""
        self.labels, self._on = self.labels[:, chains], self._on[:, :, chains]
        self._count, self.loads, self.used = self._count[:, :, chains], self.loads[:, :, chains], self.used[:, chains]

    def move(self, group: Group, weight: Floats, power: Floats) -> None:
        """Draw, in every chain, a device for those blocks of a group that share the first one's.

        The probability of a device falls with exp(-weight x change of the ``energy``), to first order.

        Args:
            group: the blocks.
            weight: [chains].
            power: [chains].
        """
        first = int(group.blocks[0])
        home, on = self.labels[first], self._on[first]
        moves = (self.labels[group.blocks] == home).astype(np.float32) if len(group.blocks) > 1 else None
        adds, moved = self._added(group, on, moves)
        away = self.loads - adds * on
        score = self._score(away, adds, power) * (weight / power)
        mass = self.costs.memory[first] if moves is None else self.costs.memory[group.blocks] @ moves
        if len(self.costs.capacity):
            rest = self.used - mass * on
            score += (self._overfull(rest) - self._overfull(rest + mass)) * weight
        if len(self.costs.banned):
            score[self._banned(group, moves)] = -np.inf
        target = (score + self._noise(score.shape)).argmax(axis=0)
        if (target == home).all():
            return
        now = (self.rows == target).view(np.int8)
        change = now - on
        self.loads = away + adds * now
        self.used = self.used + mass * change
        self._count[group.wires] += moved * change
        self._label(group, moves, target, now)

    def swap(self, pair: tuple[Group, Group], weight: Floats, power: Floats) -> None:
        """Exchange, in every chain, the devices of two blocks that no wire joins, or leave them; drawn as a move is.

        Args:
            pair: the blocks, each by itself.
            weight: [chains].
            power: [chains].
        """
        blocks = [int(group.blocks[0]) for group in pair]
        homes, ons = [self.labels[block].copy() for block in blocks], [self._on[block] for block in blocks]
        adds = [self._added(group, on, None)[0] for group, on in zip(pair, ons, strict=True)]
        turn = ons[1] - ons[0]  # where the first goes: 1, where it leaves: -1
        swapped = self.loads + (adds[0] - adds[1]) * turn
        logs = np.log(np.maximum(np.stack((self.loads, swapped)).max(axis=1), _TINY))
        norms = np.exp(np.minimum(power * (logs - logs[0].max(axis=0)), _LARGEST_EXPONENT)).sum(axis=1)
        gain = np.log(norms[0] / norms[1]) * (weight / power)
        heavier = (self.costs.memory[blocks[0]] - self.costs.memory[blocks[1]]) * turn
        if len(self.costs.capacity):
            change = self._overfull(self.used) - self._overfull(self.used + heavier)
            gain += change.sum(axis=0) * weight
        if len(self.costs.banned):
            gain[self.costs.banned[blocks[0], homes[1]] + self.costs.banned[blocks[1], homes[0]] > 0] = -np.inf
        noise = self._noise((2, len(gain)))
        taken = gain + noise[0] > noise[1]
        taken &= homes[0] != homes[1]
        if not taken.any():
            return
        turn = turn * taken
        self.loads = self.loads + (adds[0] - adds[1]) * turn
        self.used = self.used + heavier * taken
        self._count[pair[0].wires] += turn
        self._count[pair[1].wires] -= turn
        self._on[blocks[0]], self._on[blocks[1]] = ons[0] + turn, ons[1] - turn
        self.labels[blocks[0]] = np.where(taken, homes[1], homes[0])
        self.labels[blocks[1]] = np.where(taken, homes[0], homes[1])

    def _label(
        self, group: Group, moves: npt.NDArray[np.float32] | None, target: Ints, now: npt.NDArray[np.int8]
    ) -> None:
        if moves is None:
            self.labels[group.blocks[0]], self._on[group.blocks[0]] = target, now
            return
        labels = np.where(moves > 0, target, self.labels[group.blocks])
        self.labels[group.blocks] = labels
        self._on[group.blocks] = labels[:, None, :] == self.rows

    def _banned(self, group: Group, moves: npt.NDArray[np.float32] | None) -> npt.NDArray[np.bool_]:
        """[rows, chains or 1], whether a block that moves may not run there."""
        banned = self.costs.banned[group.blocks].T
        found: npt.NDArray[np.bool_] = (banned if moves is None else banned @ moves) > 0
        return np.broadcast_to(found, self.used.shape)

    def _overfull(self, used: Floats) -> Floats:
        """[rows, chains], the price of the memory that is missing, in the unit of ``energy``."""
        missing = np.maximum(used / self.costs.capacity - 1, 0)
        price: Floats = _OVERFULL * missing + _OVERFULL_AT_ALL * (missing > 0)
        return price

    def _added(
        self, group: Group, on: npt.NDArray[np.int8], moves: npt.NDArray[np.float32] | None
    ) -> tuple[Floats, npt.NDArray[np.int16]]:
        """[parts, rows, chains] what the blocks add to each device's load there, and how often each wire moves."""
        costs, count = self.costs, self._count[group.wires]
        if moves is None:
            moved = np.ones((1, 1, 1), dtype=np.int16)
            work = costs.work[group.blocks[0]][:, None]
        else:
            moved = (group.incidence @ moves).astype(np.int16)[:, None, :]
            work = costs.work[group.blocks].T @ moves
        there = count > moved * on
        if costs.fleet.sender_pays:
            alone = there.sum(axis=1, dtype=np.int16)[:, None, :] > there
            paid = alone.view(np.int8) - there.view(np.int8)
        else:
            makes = group.makes if moves is None else group.makes @ moves
            paid = 1 - there.view(np.int8) - (makes > 0)[:, None, :]
        if moves is not None:
            paid *= moved > 0
        rows, chains = self.used.shape
        transfers = (group.cost @ paid.reshape(len(group.cost), rows * chains).astype(np.float64)).reshape(rows, chains)
        transfers *= costs.pays
        if costs.fleet.overlap:
            return np.stack((np.broadcast_to(work, transfers.shape), transfers)), moved
        return (transfers + work)[None], moved

    @staticmethod
    def _score(away: Floats, adds: Floats, power: Floats) -> Floats:
        """[rows, chains], how much the blocks there add to the sum of load^power, relative and negative."""
        logs = np.log(np.maximum(np.stack((away, away + adds)).max(axis=1), _TINY))
        least = np.maximum(logs[0].max(axis=0), logs[1].min(axis=0))  # the best that the busiest device can be
        without, there = np.exp(np.minimum(power * (logs - least), _LARGEST_EXPONENT))
        score: Floats = (without - there) / (without.sum(axis=0) + there.min(axis=0))
        return score

    def _noise(self, shape: tuple[int, ...]) -> Floats:
        size = shape[0] * shape[1]
        place = self._places[self._drawn & 4095] + self._drawn * 7919
        self._drawn += 1
        place %= _POOL - size
        return self._pool[place : place + size].reshape(shape)
