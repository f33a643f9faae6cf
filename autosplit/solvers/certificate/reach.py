"""Reach: which chains of spans a plan within a bottleneck may follow, by what its stages surely cost.

Two bounds run along every chain. Forwards, the most work that the blocks before a boundary can have: each stage adds
at most what its device does in the time that its transfers leave. Backwards, the least that they must have, so that
the devices after it can do the rest. A boundary where the least is above the most is on no plan. This is where a
tensor that skips many stages counts: it is paid where it is made and where it is read, whatever lies between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Bools, Ints
from autosplit.solvers.certificate.tolls import Pairs
from autosplit.solvers.stages.line import Flight

_NEVER = 2**62
RATE = 1024


class Scene(NamedTuple):
    """What does not change from one bottleneck to the next.

    Attributes:
        pairs: the stages between the spans.
        low: [spans], the work of the lower downset, each block on its fastest kind, in ns.
        high: [spans], that of the upper.
        alive: [states, spans], where boundaries may be.
        fleet: the devices.
        slow: [kinds], no block takes less than slow / RATE of its time on its fastest kind.
        flight: micro-batches in flight.
    """

    pairs: Pairs
    low: Ints
    high: Ints
    alive: Bools
    fleet: Fleet
    slow: tuple[int, ...]
    flight: Flight


class _Step(NamedTuple):
    """Stages that a device of one kind may have, with the devices of ``rest`` after it, from spans to spans."""

    state: int
    rest: int
    first: Ints
    second: Ints
    load_ns: Ints


class Reach:
    """The chains of spans that a plan of at most ``most_ns`` may follow. O(pairs x states).

    Attributes:
        most: [states, spans], the most work before the boundary, with these devices after it; -1 where there is none.
        least: [states, spans], the least that is needed.
        alive: [states, spans], where least <= most.
    """

    def __init__(self, scene: Scene, most_ns: int) -> None:
        self._scene, self.most_ns = scene, most_ns
        pairs = scene.pairs
        self._starts = np.searchsorted(pairs.first, np.arange(len(scene.low) + 1))
        self._gain = [self._work_left(kind) for kind in range(len(scene.slow))]
        self._fits = [load <= most_ns for load in pairs.load_ns]
        self.most = np.full(scene.alive.shape, -1, dtype=np.int64)
        self.least = np.full(scene.alive.shape, _NEVER, dtype=np.int64)
        self._forwards()
        self._backwards()
        self.alive = (self.most >= 0) & (self.least <= self.most)

    @property
    def possible(self) -> bool:
        """Whether there is a chain from none to all."""
        return bool(self.alive[:, 0].any())

    @property
    def size(self) -> int:
        """How many stages there are between the spans."""
        return self._scene.pairs.size

    def _work_left(self, kind: int) -> Ints:
        """For each pair, the most work (each block on its fastest kind) that a stage on a device of a kind has."""
        scene = self._scene
        free = np.full(scene.pairs.size, self.most_ns, dtype=np.int64)
        if scene.fleet.kinds[kind].pays and not scene.fleet.overlap:
            free -= scene.pairs.transfers_ns
        return free * RATE // scene.slow[kind]

    def _steps(self, state: int) -> Iterator[tuple[int, int]]:
        """The kinds of which the state has a device, and the state without it."""
        for kind in range(len(self._scene.slow)):
            rest = self._scene.fleet.less(self._scene.fleet.states[state], kind)
            if rest is not None:
                yield kind, rest

    def _stages(self, state: int, kind: int, rest: int, rows: Bools, ends: Bools) -> Ints:
        """The pairs for a stage on a device of a kind, with the devices of ``rest`` after it."""
        pairs = self._scene.pairs
        there = np.flatnonzero(rows)
        if not len(there):
            return there
        window = slice(self._starts[there[0]], self._starts[there[-1] + 1])
        good = self._fits[kind][window] & rows[pairs.first[window]] & ends[pairs.second[window]]
        if len(pairs.fixed_bytes):
            held = self._scene.flight.held(sum(self._scene.fleet.states[state]))
            needs = pairs.fixed_bytes[window] + held * pairs.stash_bytes[window]
            good &= needs <= self._scene.fleet.kinds[kind].capacity_bytes
        used: Ints = np.flatnonzero(good) + window.start
        return used

    def _forwards(self) -> None:
        scene, most = self._scene, self.most
        most[:, 0] = np.where(scene.alive[:, 0], 0, -1)
        for state in reversed(range(len(most))):
            most[state] = np.where(most[state] < scene.low, -1, np.minimum(most[state], scene.high))
            for kind, rest in self._steps(state):
                used = self._stages(state, kind, rest, most[state] >= 0, scene.alive[rest])
                value = most[state][scene.pairs.first[used]] + self._gain[kind][used]
                np.maximum.at(most[rest], scene.pairs.second[used], value)

    def _backwards(self) -> None:
        scene, least = self._scene, self.least
        least[0, -1] = scene.low[-1] if self.most[0, -1] >= 0 else _NEVER
        for state in range(1, len(least)):
            for kind, rest in self._steps(state):
                used = self._stages(state, kind, rest, self.most[state] >= 0, least[rest] < _NEVER)
                value = least[rest][scene.pairs.second[used]] - self._gain[kind][used]
                np.minimum.at(least[state], scene.pairs.first[used], value)
            least[state] = np.where(least[state] > self.most[state], _NEVER, np.maximum(least[state], scene.low))

    def critical(self, single: Bools) -> Bools:
        """[spans], those to know more of before any other; where there is none, all that are more than one downset.

        Among the chains that are left there is one whose largest load is least. Every chain has a stage of at least
        that load, where it leaves what is reached from none at less, and one where it enters what reaches all at less.
        The spans at the ends of these stages are chosen: as long as nothing more is known of them, the bound does not
        rise. Loads between single downsets are exact, and count as none.

        Args:
            single: [spans], which are one downset.
        """
        steps = list(self._left(single))
        from_none = np.full(self.alive.shape, _NEVER, dtype=np.int64)
        to_all = from_none.copy()
        from_none[:, 0], to_all[0, -1] = np.where(self.alive[:, 0], 0, _NEVER), 0
        for step in steps:
            np.minimum.at(
                from_none[step.rest], step.second, np.maximum(from_none[step.state][step.first], step.load_ns)
            )
        for step in reversed(steps):
            np.minimum.at(to_all[step.state], step.first, np.maximum(to_all[step.rest][step.second], step.load_ns))
        most = from_none[0, -1]
        chosen = np.zeros(len(single), dtype=np.bool_)
        for step in steps:
            leaves = (from_none[step.state][step.first] < most) & (from_none[step.rest][step.second] >= most)
            enters = (to_all[step.rest][step.second] < most) & (to_all[step.state][step.first] >= most)
            here = (leaves | enters) & (step.load_ns >= most)
            chosen[step.first[here]] = chosen[step.second[here]] = True
        chosen &= ~single
        return chosen if most and chosen.any() else ~single

    def _left(self, single: Bools) -> Iterator[_Step]:
        """The stages of chains that are left."""
        pairs = self._scene.pairs
        for state in reversed(range(len(self.alive))):
            for kind, rest in self._steps(state):
                used = self._stages(state, kind, rest, self.alive[state], self.alive[rest])
                reached = self.most[state][pairs.first[used]] + self._gain[kind][used]
                used = used[reached >= self.least[rest][pairs.second[used]]]
                first, second = pairs.first[used], pairs.second[used]
                load_ns = np.where(single[first] & single[second], 0, pairs.load_ns[kind][used])
                yield _Step(state, rest, first, second, load_ns)

    def chain(self) -> list[tuple[int, int]]:
        """One chain: (kind, span at which the stage ends) of each stage; of the least loads, greedily."""
        pairs = self._scene.pairs
        state, span, found = int(self.alive[:, 0].argmax()), 0, []
        have = 0
        while state:
            choices = []
            row = np.zeros(len(self._scene.low), dtype=np.bool_)
            row[span] = True
            for kind, rest in self._steps(state):
                used = self._stages(state, kind, rest, row, self.least[rest] < _NEVER)
                reached = np.minimum(have + self._gain[kind][used], self._scene.high[pairs.second[used]])
                good = reached >= self.least[rest][pairs.second[used]]
                if good.any():
                    at = np.flatnonzero(good)[pairs.load_ns[kind][used[good]].argmin()]
                    choices.append((int(pairs.load_ns[kind][used[at]]), kind, rest, int(used[at]), int(reached[at])))
            _, kind, state, pair, have = min(choices)
            span = int(pairs.second[pair])
            found.append((kind, span))
        return found
