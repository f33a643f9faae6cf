"""Branch and bound against trying every labelling."""

from __future__ import annotations

import random
from itertools import product

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_anneal import banned, missing, problem, start_of

from autosplit.solvers.anneal import Budget, anneal
from autosplit.solvers.quotient import bottleneck
from autosplit.solvers.settle import settle


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**9), st.booleans())
def test_settles_small_problems(seed: int, tight: bool) -> None:
    rng = random.Random(seed)
    quotient, fleet = problem(rng, rng.randint(2, 6), tight=tight)
    every = (list(labels) for labels in product(range(fleet.size), repeat=len(quotient)))
    fits = [labels for labels in every if not banned(quotient, fleet, labels) and not missing(quotient, fleet, labels)]
    assume(fits)
    found = settle(quotient, fleet, rng.choice(fits))
    assert found.proved
    assert bottleneck(quotient, fleet, found.labels) == min(bottleneck(quotient, fleet, labels) for labels in fits)
    assert missing(quotient, fleet, found.labels) == banned(quotient, fleet, found.labels) == 0


def test_proves_what_annealing_found_and_says_when_it_could_not() -> None:
    rng = random.Random(5)
    quotient, fleet = problem(rng, 11)
    labels = anneal(quotient, fleet, start_of(rng, quotient, fleet), Budget(moves=600, chains=64))
    found = settle(quotient, fleet, labels, visits=200_000)
    assert found.proved
    assert bottleneck(quotient, fleet, found.labels) == bottleneck(quotient, fleet, labels)
    assert not settle(quotient, fleet, [0] * 11, visits=3).proved
