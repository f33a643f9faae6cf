"""The least bottleneck of any labelling, contiguous or not: population annealing from given labels.

Chains of labellings are cooled together; after each sweep the good ones are copied over the bad ones. What is cooled
is the log of a norm of the loads: a low power minds what the devices do in all (transfers included), a high power
minds the busiest one. Problems differ in which of them to mind first, and how hot to start, so the chains are divided
into lanes that differ in both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autosplit.solvers.anywhere.chunks import draw_chunk
from autosplit.solvers.anywhere.population import Costs, Floats, Group, Population
from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Ints, Quotient, bottleneck, loads


class Lane(NamedTuple):
    """Where some of the chains start: the weight is an inverse temperature, the power is the norm's."""

    weight: float
    power: float


_HOT = (Lane(2, 4), Lane(10, 8), Lane(30, 4), Lane(100, 2), Lane(100, 1))
_COLD = (Lane(500, 1), Lane(2_000, 1), Lane(3_000, 16))
_END = Lane(100_000, 128)
_FIRST_SWEEPS = 60  # of the first round; each later round has twice as many
_MOST_BYTES = 1 << 27  # of a population; fewer chains when they would take more
_CHUNKS_PER_BLOCK = 0.5  # in a sweep, besides each block by itself
_SWAPS_PER_BLOCK = 0.4
_NEAR = 4  # ranks by which the two blocks of a swap differ at most
_LIBRARY = 4  # chunks to draw from, per block


class Budget(NamedTuple):
    """How much to try.

    Attributes:
        moves: array operations in all; each weighs all devices for one set of blocks in every chain.
        chains: labellings that are moved at once, a multiple of 8.
        seed: of all random choices.
        stop_ns: a value that is good enough, such as a proved bound.
        expired: asked after each sweep; True ends the search early.
    """

    moves: int = 10_000
    chains: int = 256
    seed: int = 0
    stop_ns: int = 0
    expired: Callable[[], bool] | None = None


USUAL = Budget()


def anneal(quotient: Quotient, fleet: Fleet, labels: Sequence[int], budget: Budget = USUAL) -> list[int]:
    """Labels at least as good as those given; order constraints do not bind. Heuristic: no bound comes with them.

    Fewer missing bytes are better than more, and among labels that fit, a lower bottleneck is better. Memory is what
    blocks hold plus one stash. Same input, same labels: no clock is read here.

    Args:
        quotient: the blocks.
        fleet: the devices; each that ``labels`` uses is one of it.
        labels: for each block the position of its device; need not fit, nor respect ``allowed``.
        budget: how much to try.

    Returns:
        For each block the position of its device. A block stays off the devices that it is not allowed on, unless it
        is allowed on none.

    Complexity: moves x chains x devices x (wires of a block).
    Source: population annealing: Hukushima and Iba 2003; Machta 2010. Heat bath: Geman and Geman 1984.

    >>> quotient = Quotient.of_numbers([[4, 4, 4, 4]], [(1, 0, [2]), (1, 1, [3])])
    >>> from autosplit.solvers.blocks.fleet import Kind
    >>> found = anneal(quotient, Fleet((Kind((0, 1)),)), [0, 0, 1, 1])
    >>> bottleneck(quotient, Fleet((Kind((0, 1)),)), found)
    8
    """
    best = _Best(quotient, fleet, _admit(quotient, fleet, labels))
    sweep = int(len(quotient) * (1 + _CHUNKS_PER_BLOCK + _SWAPS_PER_BLOCK))
    if fleet.size < 2 or not sweep:
        return best.labels
    sweeps = max(1, budget.moves // sweep)
    rounds = max(1, (sweeps // _FIRST_SWEEPS + 1).bit_length() - 1)
    rng = random.Random(budget.seed)
    for number in range(rounds):
        lanes = _HOT + _COLD if sweeps >= _FIRST_SWEEPS else _COLD[1:]
        share = max(1, sweeps * 2**number // (2**rounds - 1))
        if _Round(best, lanes, budget, rng).run(share):
            break
    return best.labels


class _Best:
    """The best labels so far, judged exactly: missing bytes, then the bottleneck."""

    def __init__(self, quotient: Quotient, fleet: Fleet, labels: list[int]) -> None:
        self.quotient, self.fleet, self.labels = quotient, fleet, labels
        self._capacity = {device: kind.capacity_bytes for kind in fleet.kinds for device in kind.devices}
        self.score = self._judge(labels)

    def _judge(self, labels: Sequence[int]) -> tuple[int, int]:
        found = loads(self.quotient, self.fleet, labels)
        missing = sum(
            max(0, load.fixed_bytes + load.stash_bytes - self._capacity[device]) for device, load in found.items()
        )
        return missing, bottleneck(self.quotient, self.fleet, labels)

    def offer(self, labels: list[int]) -> None:
        """Take these labels when they are better."""
        score = self._judge(labels)
        if score < self.score:
            self.score, self.labels = score, labels


class _Round:
    """One cooling of a population that starts from the best labels."""

    def __init__(self, best: _Best, lanes: Sequence[Lane], budget: Budget, rng: random.Random) -> None:
        self.best, self.budget, self.rng = best, budget, rng
        self.costs = costs = Costs.of(best.quotient, best.fleet, max(1.0, float(best.score[1])))
        touching = costs.touching()
        blocks = range(len(touching))
        self.singles = [costs.group([block], touching) for block in blocks]
        most = len(blocks) / len(costs.devices)
        drawn = (draw_chunk(costs.wires, touching, most, rng) for _ in range(_LIBRARY * len(blocks)))
        self.chunks = [costs.group(chunk, touching) for chunk in drawn if len(chunk) > 1]
        bytes_per_chain = len(costs.devices) * (2 * len(costs.wires) + len(blocks)) + 8 * len(blocks)
        self.size = max(1, min(budget.chains, _MOST_BYTES // bytes_per_chain) // len(lanes))  # chains of a lane
        self.ranked = [sorted(blocks, key=sizes.__getitem__) for sizes in (costs.work[:, 0], costs.memory)]
        row = {device: i for i, device in enumerate(costs.devices)}
        start = np.array([[row[device]] for device in best.labels], dtype=np.int64)
        self.population = Population(costs, np.repeat(start, self.size * len(lanes), axis=1), rng.randrange(1 << 30))
        self.weight = np.repeat([lane.weight for lane in lanes], self.size)
        self.power = np.repeat([lane.power for lane in lanes], self.size)

    def run(self, sweeps: int) -> bool:
        """Cool in so many sweeps; True when there is no reason to go on."""
        warmer = (_END.weight / self.weight) ** (1 / sweeps), (_END.power / self.power) ** (1 / sweeps)
        for _ in range(sweeps):
            for group in self._sweep():
                self.population.move(group, self.weight, self.power)
            for pair in self._pairs():
                self.population.swap(pair, self.weight, self.power)
            self._offer()
            if self._done():
                return True
            energy = self.population.energy(self.power)
            rise = self.weight * (warmer[0] - 1)
            self.population.keep(self._survivors(energy * rise))
            self.weight, self.power = self.weight * warmer[0], self.power * warmer[1]
        return False

    def _sweep(self) -> list[Group]:
        count = min(len(self.chunks), int(len(self.singles) * _CHUNKS_PER_BLOCK))
        groups = self.singles + self.rng.sample(self.chunks, count)
        self.rng.shuffle(groups)
        return groups

    def _pairs(self) -> list[tuple[Group, Group]]:
        """Blocks to swap: nearly alike in work, or in memory when it binds; no wire joins them."""
        pairs: list[tuple[Group, Group]] = []
        for _ in range(int(len(self.singles) * _SWAPS_PER_BLOCK)):
            ranked = self.ranked[self.rng.randrange(2) if len(self.costs.capacity) else 0]
            place = self.rng.randrange(len(ranked))
            other = min(len(ranked) - 1, place + self.rng.randint(1, _NEAR))
            one, two = self.singles[ranked[place]], self.singles[ranked[other]]
            if place != other and not np.intersect1d(one.wires, two.wires).size:
                pairs.append((one, two))
        return pairs

    def _offer(self) -> None:
        value = self.population.bottleneck()
        if self.best.score[0]:
            value = np.where(np.isinf(value), self.population.missing() * 1e9, value)
        chain = int(value.argmin())
        if self.best.score[0] or value[chain] * self.costs.scale_ns < self.best.score[1]:
            self.best.offer([self.costs.devices[row] for row in self.population.labels[:, chain].tolist()])

    def _done(self) -> bool:
        if self.best.score <= (0, self.budget.stop_ns):
            return True
        return self.budget.expired is not None and self.budget.expired()

    def _survivors(self, loss: Floats) -> Ints:
        """Which chains go on, in each lane as often as exp(-loss) says (systematic resampling)."""
        chosen: list[Ints] = []
        for start in range(0, len(loss), self.size):
            lane = loss[start : start + self.size]
            share = np.cumsum(np.exp(lane.min() - lane))
            ticks = (np.arange(self.size) + self.rng.random()) * (share[-1] / self.size)
            chosen.append(start + np.minimum(np.searchsorted(share, ticks), self.size - 1))
        return np.concatenate(chosen)


def _admit(quotient: Quotient, fleet: Fleet, labels: Sequence[int]) -> list[int]:
    """The labels, blocks on forbidden devices moved to the first allowed one."""
    kind_of = {device: k for k, kind in enumerate(fleet.kinds) for device in kind.devices}
    admitted = list(labels)
    for block, device in enumerate(labels):
        allowed = quotient.allowed[:, block]
        if not allowed[kind_of[device]] and allowed.any():
            admitted[block] = fleet.kinds[int(allowed.argmax())].devices[0]
    return admitted
