"""Certify: a proved lower bound of the bottleneck over all contiguous plans, and often the proof of an optimum.

Every boundary of every contiguous plan is a downset. Spans that hold all downsets, and what stages between spans surely
cost, show that no plan stays within a bottleneck T: there is no chain of spans. Where there is one, its spans are cut
in two, and those on no chain are left out. This goes on until no chain is left, which is the proof, or until the chain
is one of single downsets, which is a better plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, auto
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from autosplit.solvers.blocks.alike import in_order, in_order_still
from autosplit.solvers.blocks.contract import contracted, grouped
from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Ints, Load, Quotient, stage_ns
from autosplit.solvers.certificate.reach import RATE, Reach, Scene
from autosplit.solvers.certificate.spans import (
    Closure,
    Floats,
    Spans,
    all_downsets,
    never_apart,
    spans_of_groups,
    split,
)
from autosplit.solvers.certificate.tolls import Tolls
from autosplit.solvers.stages.dynamic import best_line
from autosplit.solvers.stages.family import Downsets
from autosplit.solvers.stages.line import ONE_AT_A_TIME, Flight

_MOST_BLOCKS = 20_000
_LARGE = 20
_MOST_CUTS = 800
_FIRST = 400_000
_CUT = 300
_MOST_ENDS, _END = 1_500, 100
_MOST_SPANS = 40_000
_MANY = 20_000
_ALIKE = 1_024
_MOST_CELLS = 60_000_000
_MOST_PAIRS = 6_000_000
_EXACT = 2**51
_FEWER = 0.75
_NEAR, _FAR, _STEP, _FINE = 20, (4, 5), 12, 2**14


class Certificate(NamedTuple):
    """What is known of the least bottleneck.

    Attributes:
        bound_ns: no contiguous plan has a smaller one.
        best_ns: of the best plan known: the given one, or a better one that was found.
        labels: for each block the position of its device in the better plan; None when none was found.
        effort: what was spent: the number of stages between spans that were looked at, 300 for each cut, and
            100 for each downset among which better plans were looked for.
    """

    bound_ns: int
    best_ns: int
    labels: tuple[int, ...] | None
    effort: int

    @property
    def proved(self) -> bool:
        """Whether the best plan known is optimal."""
        return self.bound_ns == self.best_ns


def certify(
    quotient: Quotient,
    fleet: Fleet,
    best_ns: int,
    *,
    flight: Flight = ONE_AT_A_TIME,
    effort: int = 8_000_000,
    stop: Callable[[], bool] = lambda: False,
    merged: bool = False,
) -> Certificate:
    """A lower bound of the bottleneck over all contiguous plans, and a better plan when one turns up.

    Args:
        quotient: the blocks.
        fleet: the devices; some may stay unused.
        best_ns: the bottleneck of a plan that is known, in ns.
        flight: micro-batches in flight; the memory of a stage depends on how many stages come after it.
        effort: about what to spend; see ``Certificate``. A million is a few seconds.
        stop: asked before each round; when true, what is proved so far is returned. A ceiling only: with it the result
            depends on the clock.
        merged: whether ``contracted`` was called already.

    Returns:
        The certificate. Its bound holds for every choice of used devices and their order. When it is below the best
        plan, the effort was spent, or the graph is larger than 20,000 blocks and only the trivial bound was tried.

    Source: the lattice of downsets and its DP are those of Tarnawski et al. 2020; covering it by intervals and cutting
    those that matter is abstraction refinement (Clarke et al. 2000), here with sums that stay exact in integers.

    >>> from autosplit.solvers.blocks.fleet import Kind
    >>> quotient = Quotient.of_numbers([[6, 10, 6]], [(4, 0, [2])])
    >>> certify(quotient, Fleet((Kind((0, 1, 2)),)), 22)[:3]
    (10, 10, (0, 1, 2))
    """
    groups = list(range(len(quotient)))
    if not merged:
        quotient, groups = contracted(quotient, fleet, flight)
    plain, quotient = quotient, in_order(quotient)
    proof = _Proof(quotient, fleet, flight, Certificate(0, best_ns, None, 0))
    while True:
        found = proof.run(effort, stop)
        if proof.labels is not None:
            found = found._replace(labels=tuple(proof.labels[group] for group in groups))
        if proof.fewer is None:
            return found
        # What all better plans have in one stage is one block now; only plans that keep the order are in the spans.
        quotient, again = contracted(grouped(quotient, proof.fewer), fleet, flight)
        fewer = [again[group] for group in proof.fewer]
        plain, groups = grouped(plain, fewer), [fewer[group] for group in groups]
        quotient = in_order_still(quotient, plain)
        spans = spans_of_groups(proof.left, fewer, quotient)
        proof = _Proof(quotient, fleet, flight, found, spans)


class _Outcome(Enum):
    """How an attempt to prove that there is no better plan ended."""

    PROVED = auto()
    SPENT = auto()
    FULL = auto()
    FEWER = auto()


class _Proof:
    """The search for one certificate."""

    def __init__(
        self, quotient: Quotient, fleet: Fleet, flight: Flight, known: Certificate, spans: Spans | None = None
    ) -> None:
        self.quotient, self.fleet, self.flight, self.known = quotient, fleet, flight, known
        self.best_ns, self.bound_ns, self.spent = known.best_ns, known.bound_ns, known.effort
        self.labels: tuple[int, ...] | None = None
        self.open: list[tuple[int, Spans]] = []  # attempts to go on with, for falling bottlenecks
        if spans is not None:
            self.open.append((self.best_ns - 1, spans))
        self.fewer: list[int] | None = None  # groups of blocks that are never apart, where these are many
        self.left = spans or all_downsets(len(quotient), len(fleet.states))  # what boundaries of better plans may be
        self.last: tuple[Scene, int] | None = None
        self.ends: Spans | None = None  # the latest that are few enough to try all plans between them
        self.asked = 0
        self.work = np.where(quotient.allowed, quotient.work_ns, self.best_ns + 1)
        self.least = self.work.min(axis=0)
        self.slow = tuple(_slowness(row, self.least) for row in self.work)

    def run(self, effort: int, stop: Callable[[], bool]) -> Certificate:
        """The whole search."""
        self.bound_ns = max(self.bound_ns, min(self.best_ns, self._trivial()))
        sums = self.work.sum() + 2 * sum(wire.cost * (1 + len(wire.readers)) for wire in self.quotient.wires)
        if self.bound_ns < self.best_ns and len(self.quotient) <= _MOST_BLOCKS and sums < _EXACT:
            self.closure = Closure(self.quotient)
            self.tolls = Tolls(self.quotient, self.fleet, self.work, self.closure)
            self.weight = self._weight()
            self._search(effort, stop)
        return Certificate(self.bound_ns, self.best_ns, self.known.labels, self.spent)

    def _search(self, effort: int, stop: Callable[[], bool]) -> None:
        """Close in on the least bottleneck, with little effort for each first, then with more; then prove it.

        Where the effort or the limits end before a proof, the bound is raised as far as the rest allows.
        """
        self.asked, effort = effort, effort and max(effort, _FIRST)
        ceiling, share, most_ns = self.best_ns, _FIRST, self.best_ns - 1
        while self.bound_ns < self.best_ns and self.spent < effort and not stop():
            outcome = self._refine(most_ns, min(self.spent + share, effort), stop)
            if outcome is _Outcome.FEWER:
                return
            at_top = most_ns >= ceiling - 1
            ceiling = min(ceiling, self.best_ns)
            if outcome is _Outcome.FULL:
                ceiling = min(ceiling, most_ns)
            elif outcome is _Outcome.SPENT:
                share *= 4
            near = ceiling - self.bound_ns <= ceiling // _NEAR  # then the rest is for the proof
            if ceiling < self.best_ns and ceiling - self.bound_ns <= ceiling // 100:
                return
            to_top = (near and outcome is not _Outcome.FULL) or (outcome is _Outcome.SPENT and not at_top)
            far = self.bound_ns * _FAR[1] < ceiling * _FAR[0]  # then a higher bound is worth more than a proof
            if far and outcome is _Outcome.SPENT and not at_top:
                continue
            middle_ns = (self.bound_ns + ceiling) // 2
            if far and outcome is _Outcome.PROVED:
                middle_ns = min(middle_ns, self.bound_ns + self.bound_ns // _STEP)
            most_ns = ceiling - 1 if to_top else middle_ns

    def _trivial(self) -> int:
        """The work shared out by speed, and the largest block."""
        rate = sum(
            Fraction(len(kind.devices) * RATE, slow) for kind, slow in zip(self.fleet.kinds, self.slow, strict=True)
        )
        shared = math.ceil(int(self.least.sum()) / rate)
        return max(shared, int(self.least.max(initial=0)))

    def _weight(self) -> Floats:
        """What it is worth to know on which side a block is: its time, and that of its wires."""
        weight: Floats = self.least.astype(np.float64) + 1
        for wire in self.quotient.wires:
            weight[wire.producer] += wire.cost
            weight[list(wire.readers)] += wire.cost / max(1, len(wire.readers))
        return weight

    def _refine(self, most_ns: int, budget: int, stop: Callable[[], bool]) -> _Outcome:
        """Cut spans until it is proved that no plan of at most ``most_ns`` exists, or the budget is spent."""
        outcome = self._cut(most_ns, budget, stop)
        if outcome is not _Outcome.PROVED and self.last is not None:
            self._bisect(*self.last)
            if self.asked >= _FIRST:
                self._from_ends()
        return outcome

    def _from_ends(self) -> None:
        """Look for the best plan whose boundaries are ends of spans: those that were not shown to be on no plan."""
        if self.ends is None:
            return
        family = Downsets(self.quotient, np.concatenate([self.ends.lower, self.ends.upper]))
        self.spent, self.ends = self.spent + _END * len(family), None
        line = best_line(family, self.fleet, self.flight, self.best_ns - 1)
        if line is not None:
            self.best_ns, self.labels = line.value, tuple(line.labels(self.quotient, self.fleet))

    def _cut(self, most_ns: int, budget: int, stop: Callable[[], bool]) -> _Outcome:
        """The same without the bound that the last spans prove in any case."""
        self.last = None
        spans = self._resumed(most_ns)
        most_spans = min(_MOST_SPANS, _MOST_CELLS // len(self.quotient))
        while not stop():
            cuts = self.tolls.cuts.count
            spans, low, high = self._ordered(spans)
            spans = self._with_cuts(spans, most_ns)
            scene = self._scene(spans, low, high, most_ns)
            if scene is None:
                return _Outcome.FULL
            self.spent += scene.pairs.size + _CUT * (self.tolls.cuts.count - cuts)
            reach = Reach(scene, most_ns)
            while reach.possible and self._concrete(spans, reach.chain()):
                if self.best_ns <= most_ns:
                    most_ns = self.best_ns - 1
                    reach = Reach(scene, most_ns)
            if not reach.possible:
                self.bound_ns = max(self.bound_ns, most_ns + 1)
                return _Outcome.PROVED
            self.last = scene, most_ns
            spans, chosen = self._chosen(spans, reach)
            if self.fewer is not None:
                return _Outcome.FEWER
            if not len(chosen) or spans.size + len(chosen) > most_spans:
                return _Outcome.FULL
            spans = split(spans, chosen, self.closure, self.weight)
            if self.spent > budget:
                self.open = [*[known for known in self.open if known[0] > most_ns][:1], (most_ns, spans)]
                break
        return _Outcome.SPENT

    def _with_cuts(self, spans: Spans, most_ns: int) -> Spans:
        """With cuts of their own for some of the spans; the first cuts are large, and often not needed."""
        large = spans.size * _LARGE <= len(self.quotient)
        return spans if large else self.tolls.cuts.refresh(spans, most_ns, _MOST_CUTS)

    def _chosen(self, spans: Spans, reach: Reach) -> tuple[Spans, Ints]:
        """The spans on some chain, and those of them to cut; or, if there is no better plan but these, fewer blocks."""
        if spans.size <= _MOST_ENDS:
            self.ends = spans
        left = np.flatnonzero(reach.alive.any(axis=0))
        single, at_top = spans.single, reach.most_ns == self.best_ns - 1
        chosen = reach.critical(single) if at_top and reach.size > _MANY else ~single
        spans = spans._replace(alive=reach.alive).take(left)
        if at_top:
            groups = never_apart(spans)
            if max(groups) + 1 <= _FEWER * len(groups):
                self.fewer, self.left = groups, spans
        return spans, np.flatnonzero(chosen[left])

    def _resumed(self, most_ns: int) -> Spans:
        """Where an attempt at this bottleneck, or one a little above, stopped; else all downsets in one span.

        What was cut with a much higher bottleneck in view is cut too finely where it does not matter for this one.
        """
        found = [rest for limit, rest in self.open if most_ns <= limit <= most_ns + most_ns // 50]
        return found[-1] if found else all_downsets(len(self.quotient), len(self.fleet.states))

    def _ordered(self, spans: Spans) -> tuple[Spans, Ints, Ints]:
        """The empty downset first, all blocks last; near each other what is alike; and the lower and upper works.

        By work roughly, then by which blocks do it: ``Tolls`` looks at rows of neighbours at once.
        """
        # No stage is empty: between the ends no boundary holds nothing or all.
        between = np.flatnonzero(spans.upper.any(axis=1) & ~spans.lower.all(axis=1))
        low, high = spans.lower @ self.least, spans.upper @ self.least
        ends = [0], [int(spans.alive[0].argmax())]
        by_work = between[np.argsort(low[between] + high[between], kind="stable")]
        place = spans.lower[by_work] @ np.arange(len(self.least), dtype=np.float64)
        alike = np.lexsort((place, np.arange(len(place)) // _ALIKE))
        order = np.concatenate([ends[0], by_work[alike], ends[1]])
        return spans.take(order), low[order], high[order]

    def _scene(self, spans: Spans, low: Ints, high: Ints, most_ns: int) -> Scene | None:
        """The stages between spans; None when they are too many."""
        reach_ns = most_ns * RATE / min(self.slow)
        pairs = self.tolls.pairs(spans, most_ns, reach_ns, _MOST_PAIRS)
        if pairs is None:
            return None
        return Scene(pairs, low, high, spans.alive, self.fleet, self.slow, self.flight)

    def _bisect(self, scene: Scene, most_ns: int) -> None:
        """Raise the bound to the least bottleneck for which there is a chain of these spans, or a little below it."""
        low, high = self.bound_ns, most_ns
        while high - low > low // _FINE:
            middle = (low + high) // 2
            if Reach(scene, middle).possible:
                high = middle
            else:
                low = middle + 1
        self.bound_ns = max(self.bound_ns, low)

    def _concrete(self, spans: Spans, chain: list[tuple[int, int]]) -> bool:
        """Try to make a plan of a chain; whether it is better than the best known."""
        ends, kinds = [end for _, end in chain], [kind for kind, _ in chain]
        upwards = np.logical_or.accumulate(spans.lower[ends], axis=0)
        downwards = np.logical_and.accumulate(spans.upper[ends][::-1], axis=0)[::-1]
        better = False
        for members in (upwards, downwards):
            stage = (~members).sum(axis=0)
            value = self._value(stage, kinds)
            if value is not None and value < self.best_ns:
                free = [list(kind.devices) for kind in self.fleet.kinds]
                devices = [free[kind].pop(0) for kind in kinds]
                self.best_ns, self.labels, better = value, tuple(devices[s] for s in stage.tolist()), True
        return better

    def _value(self, stage: Ints, kinds: list[int]) -> int | None:
        """The bottleneck of a plan, given the stage of each block; None when one may not be where it is."""
        quotient, blocks = self.quotient, np.arange(len(stage))
        kind = np.array(kinds, dtype=np.int64)[stage]
        if not quotient.allowed[kind, blocks].all():
            return None
        sums = np.zeros((5, len(kinds)), dtype=np.int64)
        sums[1:3] = self.tolls.wires.moved(stage, len(kinds))
        for row, values in ((0, quotient.work_ns[kind, blocks]), (3, quotient.fixed_bytes), (4, quotient.stash_bytes)):
            np.add.at(sums[row], stage, values)
        worst, used = 0, np.unique(stage).tolist()
        for place, number in enumerate(used):
            load = Load(*sums[:, number].tolist())
            needs = load.fixed_bytes + self.flight.held(len(used) - place) * load.stash_bytes
            if needs > self.fleet.kinds[kinds[number]].capacity_bytes:
                return None
            worst = max(worst, stage_ns(self.fleet, kinds[number], load))
        return worst


def _slowness(work: Ints, least: Ints) -> int:
    """The most s such that no block takes less than s / RATE of its time on its fastest kind."""
    busy = least > 0
    if not busy.any():
        return RATE
    pairs = zip(work[busy].tolist(), least[busy].tolist(), strict=True)  # Python's integers have no end
    return min(int(takes) * RATE // int(shortest) for takes, shortest in pairs)
