"""Branch and bound against trying every labelling."""

from __future__ import annotations

import random
from itertools import product

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_anneal import banned, missing, problem, start_of

from autosplit.solvers.anywhere.anneal import Budget, anneal
from autosplit.solvers.anywhere.settle import settle
from autosplit.solvers.blocks.fleet import Fleet, Kind
from autosplit.solvers.blocks.quotient import Quotient, bottleneck


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**9), st.booleans())
def test_settles_small_problems(seed: int, tight: bool) -> None:
    rng = random.Random(seed)
    quotient, fleet = problem(rng, rng.randint(2, 6), tight=tight)
    every = (list(labels) for labels in product(range(fleet.size), repeat=len(quotient)))
    fits = [labels for labels in every if not banned(quotient, fleet, labels) and not missing(quotient, fleet, labels)]
    assume(fits)
    found = settle(quotient, fleet, rng.choice(fits))
    best = min(bottleneck(quotient, fleet, labels) for labels in fits)
    assert bottleneck(quotient, fleet, found.labels) == best == found.bound_ns
    hurried = settle(quotient, fleet, fits[0], visits=rng.randint(1, 300))
    assert hurried.bound_ns <= best <= bottleneck(quotient, fleet, hurried.labels)
    assert bottleneck(quotient, fleet, hurried.labels) <= bottleneck(quotient, fleet, fits[0])
    assert missing(quotient, fleet, found.labels) == banned(quotient, fleet, found.labels) == 0


def test_proves_what_annealing_found() -> None:
    rng = random.Random(5)
    quotient, fleet = problem(rng, 11)
    labels = anneal(quotient, fleet, start_of(rng, quotient, fleet), Budget(moves=600, chains=64))
    found = settle(quotient, fleet, labels, visits=400_000)
    assert found.bound_ns == bottleneck(quotient, fleet, found.labels) == bottleneck(quotient, fleet, labels)


def test_a_bound_without_a_proof() -> None:
    """Equal blocks cannot be told apart by the search; halves of the work can be refuted all the same."""
    quotient = Quotient.of_numbers([[10] * 24 + [7]])
    fleet = Fleet((Kind((0, 1, 2, 3)),))
    labels = [i % 4 for i in range(25)]
    found = settle(quotient, fleet, labels, visits=2_000)
    assert 62 <= found.bound_ns < 67 == bottleneck(quotient, fleet, found.labels)
