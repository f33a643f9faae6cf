"""Stages: the contiguous plan of least bottleneck, and of least overhead among those, over a family of downsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np

from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Ints
from autosplit.solvers.stages.family import Family, Row
from autosplit.solvers.stages.line import NEVER, ONE_AT_A_TIME, Flight, Line, Stage
from autosplit.solvers.stages.recompute import Fitting

_ROUNDS = 60
_MANY_DEGREES = 8


@dataclass(frozen=True)
class _Terms:
    """What is asked: the arguments of best_line."""

    families: Mapping[int, Family]
    fleet: Fleet
    flight: Flight
    fitting: Mapping[int, Fitting]

    @property
    def degrees(self) -> tuple[int, ...]:
        """How many replicas a stage may have."""
        return self.flight.replication.degrees

    @property
    def length(self) -> int:
        """How many downsets there are."""
        return len(self.families[1])

    @property
    def settled(self) -> int:
        """How many stages were settled."""
        return sum(fitting.settled for fitting in self.fitting.values())


def best_line(
    family: Family,
    fleet: Fleet,
    flight: Flight = ONE_AT_A_TIME,
    upper_ns: int = NEVER,
    *,
    sharded: Mapping[int, Family] | None = None,
) -> Line | None:
    """The contiguous plan of least bottleneck whose boundaries are downsets of a family.

    A stage on r devices takes (work + transfers) / r and the exchange of its gradients; with ``fleet.overlap`` the
    longer of work / r with the exchange, and transfers / r. It holds the micro-batches of ``flight`` for
    ceil(copies of it and of those after it / r) stages. Blocks are recomputed where a stage does not fit else, in the
    choice that adds least time.

    Args:
        family: the boundaries.
        fleet: the devices; some may stay unused.
        flight: micro-batches in flight, and the replicas and the recomputation that stages may have.
        upper_ns: only plans of this value or less are looked for; the lower, the faster.
        sharded: families of the same downsets, numbered alike, by over how many devices each copy of a stage is split
            (tensor parallelism): what each of these devices then does, pays and holds.

    Returns:
        The plan, or None when there is none within ``upper_ns`` and the capacities: that is exact. The value is the
        least over the family, but for ``slack`` where blocks save different bytes and the search for the least
        choices was cut short; then the sum is least of all that is not the blocks' own work: transfers, exchanges and
        recomputation, over all devices. Ties go to fewer devices, then to earlier ends; of grids, to the lower degree.
        O(pairs of downsets x states of the fleet x degrees), and as many rows of the family, a few times.

    Source: the DP over ideals of Tarnawski et al. 2020, here backwards, so that a stage knows how many come after it
    and what it must hold for them; kinds of devices, replicas and recomputation as in Piper (Tarnawski et al. 2021),
    replicas also as in PipeDream (Narayanan et al. 2019).

    >>> from autosplit.solvers.stages.family import Prefixes
    >>> from autosplit.solvers.blocks.fleet import Kind
    >>> from autosplit.solvers.blocks.quotient import Quotient
    >>> quotient = Quotient.of_numbers([[5, 4, 6]], [(1, 0, [1]), (2, 1, [2])])
    >>> best_line(Prefixes(quotient, range(3)), Fleet((Kind((0, 1)),))).value
    11
    >>> from autosplit.solvers.stages.line import Replication
    >>> best_line(Prefixes(quotient, range(3)), Fleet((Kind((0, 1)),)), Flight(replication=Replication.up_to(2))).value
    8
    """
    if flight.replication.uniform and len(flight.replication.degrees) > 1:
        return _best_grid(family, fleet, flight, upper_ns, sharded)
    families = {1: family, **(sharded or {})}
    fitting = {shards: Fitting(family, fleet, recompute=flight.recompute) for shards, family in families.items()}
    terms = _Terms(families, fleet, flight, fitting)
    least = _first(terms, upper_ns)
    if least >= NEVER:
        return None
    has_choice = any(each.has_choice for each in fitting.values())
    least, bound = _refined(terms, least) if has_choice else (least, least)
    tidy = _Search(terms, least)
    tidy.run(peak=False)
    path = tidy.path()
    value = max(tidy.settled_ns(place) for place in path)
    return Line(value, tuple(tidy.stage(place) for place in path), value - bound)


def _best_grid(
    family: Family, fleet: Fleet, flight: Flight, upper_ns: int, sharded: Mapping[int, Family] | None
) -> Line | None:
    """The best line of those with one degree for all stages."""
    best: Line | None = None
    for degree in flight.replication.degrees:
        only = flight._replace(replication=flight.replication._replace(degrees=(degree,)))
        best = best_line(family, fleet, only, upper_ns if best is None else best.value - 1, sharded=sharded) or best
    return best


def _first(terms: _Terms, upper_ns: int) -> int:
    """The least value with recomputation that is enough: looked for below a limit that grows until there is one.

    A search is the faster, the lower its limit, and one that finds anything has found the least. Where degrees are
    many, the least with few of them is a limit.
    """
    degrees, work = terms.degrees, int(terms.families[1].least_ns[-1])
    coarse = tuple(degree for degree in degrees if not degree & degree - 1)
    if len(degrees) > _MANY_DEGREES and 0 < len(coarse) < len(degrees):
        few = terms.flight._replace(replication=terms.flight.replication._replace(degrees=coarse))
        upper_ns = min(upper_ns, _first(replace(terms, flight=few), upper_ns))
    limit = -(-13 * work // (10 * terms.fleet.size))
    while 0 < limit < min(upper_ns // 2, work):
        least = _Search(terms, limit).run()
        if least < NEVER:
            return least
        limit *= 4
    return _Search(terms, upper_ns).run()


def _refined(terms: _Terms, least: int) -> tuple[int, int]:
    """The least value and a bound of it: stages of plans that may be better are settled until none is left."""
    bound = 0
    for _ in range(_ROUNDS):
        search = _Search(terms, least - 1, bound=True)
        bound = min(least, search.run())
        if bound >= least:
            break
        before = terms.settled
        least = min(least, max(search.settled_ns(place) for place in search.path()))
        if least <= bound or terms.settled == before:
            break
    return least, bound


def _states(fleet: Fleet, *, sharded: bool) -> list[tuple[tuple[int, ...], int]]:
    """What the stages from a downset to the end use: devices of each kind, and copies of stages. Fewer come first.

    Where no stage is split over devices, each device is a copy.
    """
    if not sharded:
        return [(used, sum(used)) for used in fleet.states]
    return [(used, copies) for used in fleet.states for copies in range(sum(used) + 1)]


class _Step(NamedTuple):
    """Stages of so many replicas on a kind: the states from which they may start, and the states after them.

    Attributes:
        kind, degree, shards: of the stages.
        states: numbers of states, themselves included.
        rests: for each, the number of the state without them.
        held: distinct numbers of micro-batches that such a stage may hold.
        which: for each state, the position in ``held``.
    """

    kind: int
    degree: int
    shards: int
    states: Ints
    rests: Ints
    held: Ints
    which: Ints


class _Place(NamedTuple):
    """A stage of a plan: from which downset to which, on what, and how many micro-batches it holds."""

    start: int
    end: int
    step: _Step
    held: int


class _Costs(NamedTuple):
    """Stages from one downset to several ends; ``added_ns`` and ``time_ns`` are [held, ends], NEVER where none fits."""

    ends: Ints
    transfers_ns: Ints
    sync_ns: Ints
    added_ns: Ints
    time_ns: Ints


class _Search:
    """Backward DP: ``best[q, i]`` is the least cost of what is outside downset i, on exactly the devices of state q.

    Args:
        terms: what is asked.
        upper_ns: stages that take longer are left out.
        bound: with no more than the least time that recomputation takes, instead of a time that is enough.
    """

    def __init__(self, terms: _Terms, upper_ns: int, *, bound: bool = False) -> None:
        self.terms, self.upper_ns, self.bound = terms, upper_ns, bound
        self.states = _states(terms.fleet, sharded=len(terms.families) > 1)
        self.devices = np.array([sum(used) for used, _ in self.states], dtype=np.int64)
        shape = (len(self.states), terms.length)
        self.best = np.full(shape, NEVER, dtype=np.int64)
        self.best[0, -1] = 0
        self.end = np.full(shape, -1, dtype=np.int32)
        self.step = np.full(shape, -1, dtype=np.int32)
        choices = product(range(len(terms.fleet.kinds)), terms.degrees, terms.families)
        self.steps = [step for choice in choices if (step := self._step(*choice))]

    def _step(self, kind: int, degree: int, shards: int) -> _Step | None:
        number = {state: q for q, state in enumerate(self.states)}
        devices = degree * shards
        found = []
        for q, (used, copies) in enumerate(self.states):
            less = (*used[:kind], used[kind] - devices, *used[kind + 1 :])
            if (rest := number.get((less, copies - degree))) is not None:
                found.append((q, rest, self.terms.flight.held(copies, degree)))
        if not found:
            return None
        states, rests, holds = np.array(found, dtype=np.int64).T
        held, which = np.unique(holds, return_inverse=True)
        return _Step(kind, degree, shards, states, rests, held, which)

    def run(self, *, peak: bool = True) -> int:
        """Fill the table; the cost of a stage is its time, the costs' maximum counts, or (not peak) its overhead."""
        for start in reversed(range(self.terms.length - 1)):
            first, last, devices = self._reach(start)
            if first < last:
                rows = {shards: family.row(start, first, last) for shards, family in self.terms.families.items()}
                for number, step in enumerate(self.steps):
                    count = int(np.searchsorted(self.devices[step.states], devices, side="right"))
                    self._extend((start, number, count), rows[step.shards], peak)
        return int(self.best[:, 0].min())

    def _reach(self, start: int) -> tuple[int, int, int]:
        """Where a stage from ``start`` may end, and for how many devices from there on.

        What is before and after it must fit into ``upper_ns`` a device.
        """
        family, size = self.terms.families[1], self.terms.fleet.size
        if len(self.terms.families) > 1:  # how much time a split stage takes of its devices together is not known
            return start + 1, self.terms.length, size
        done, total = int(family.least_ns[start]), int(family.least_ns[-1])
        most_ns = min(self.upper_ns, total)
        devices = size - (-(-done // most_ns) if most_ns > 0 else size * (done > 0))
        if devices < 1:
            return 0, 0, 0
        widest = min(devices, max(self.terms.degrees))
        return *family.reach(total - (devices - 1) * most_ns, done + widest * most_ns), devices

    def _extend(self, where: tuple[int, int, int], row: Row, peak: bool) -> None:
        """The stages from a downset on the devices of a step, its first so many states, before every rest known."""
        start, number, count = where
        step = self.steps[number]
        ends = self._ends(start, row, step) if count else row.ends[:0]
        rest = self.best[step.rests[:count, None], row.ends[ends]]
        known = np.flatnonzero((rest < NEVER).any(axis=1))
        if not len(known):
            return
        held, which = np.unique(step.which[known], return_inverse=True)
        costs = self._costs(start, Row(*(column[ends] for column in row)), step._replace(held=step.held[held]))
        time, rest = costs.time_ns[which], rest[known]
        if peak:
            total = np.maximum(time, rest)
        else:
            overhead = (costs.added_ns + costs.transfers_ns + costs.sync_ns * step.degree) * step.shards
            total = np.minimum(rest, NEVER - 1) + np.minimum(overhead, NEVER)[which]
        total = np.where((rest >= NEVER) | (time > self.upper_ns), NEVER, total)
        choice = total.argmin(axis=1)
        least = total[np.arange(len(choice)), choice]
        better = least < self.best[step.states[known], start]
        states = step.states[known][better]
        self.best[states, start] = least[better]
        self.end[states, start] = costs.ends[choice[better]]
        self.step[states, start] = number

    def _ends(self, start: int, row: Row, step: _Step) -> Ints:
        """Which stages of a row are allowed there and not too long, if nothing has to be recomputed."""
        free = self._priced(start, row, step)
        banned = self.terms.families[step.shards].banned[step.kind]
        return np.flatnonzero((free.time_ns <= self.upper_ns) & (banned[row.ends] == banned[start]))

    def _costs(self, start: int, row: Row, step: _Step) -> _Costs:
        """What the stages of a row cost on the devices of a step, with what must be recomputed."""
        fitting = self.terms.fitting[step.shards]
        added = fitting.added_ns(start, row.ends, step.kind, step.held, bound=self.bound)
        return self._priced(start, row, step, added)

    def _priced(self, start: int, row: Row, step: _Step, added: Ints | int = 0) -> _Costs:
        """The time of one micro-batch of the pipeline, rounded up: each of the replicas takes its share of them."""
        family, fleet, (kind, degree) = self.terms.families[step.shards], self.terms.fleet, step[:2]
        work = family.work_ns[kind, row.ends] - family.work_ns[kind, start] + added
        sync = self.terms.flight.replication.sync_ns(
            family.gradient_ns[kind, row.ends] - family.gradient_ns[kind, start], degree
        )
        transfers = row.in_ns + row.out_ns if fleet.sender_pays else row.in_ns
        paid = transfers if fleet.kinds[kind].pays else np.zeros_like(transfers)
        if fleet.overlap:
            time = np.maximum(-(-work // degree) + sync, -(-paid // degree))
        else:
            time = -(-(work + paid) // degree) + sync
        added = np.asarray(added, dtype=np.int64)
        return _Costs(row.ends, transfers, sync, added, np.where(added >= NEVER, NEVER, time))

    def path(self) -> list[_Place]:
        """The stages of the best plan that was found."""
        state, start, found = int(self.best[:, 0].argmin()), 0, []
        while start < self.terms.length - 1:
            step, end = self.steps[self.step[state, start]], int(self.end[state, start])
            at = int(np.searchsorted(step.states, state))
            found.append(_Place(start, end, step, int(step.held[step.which[at]])))
            state, start = int(step.rests[at]), end
        return found

    def settled_ns(self, place: _Place) -> int:
        """The time of a stage with the least recomputation that makes it fit."""
        step = place.step
        self.terms.fitting[step.shards].settle(place.start, place.end, step.kind, place.held)
        row = self.terms.families[step.shards].row(place.start, place.end, place.end + 1)
        return int(self._costs(place.start, row, step._replace(held=np.array([place.held]))).time_ns[0, 0])

    def stage(self, place: _Place) -> Stage:
        """A stage of the plan, with what it recomputes."""
        step = place.step
        blocks = self.terms.families[1].blocks(place.start, place.end)
        cover = self.terms.fitting[step.shards].settle(place.start, place.end, step.kind, place.held)
        return Stage(step.kind, tuple(blocks), step.degree, cover.items, step.shards)
