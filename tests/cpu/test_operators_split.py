"""Every operator and module of torch on another device than its inputs computes what it computes in the unsplit model.

``python tests/bench/operators_split.py`` runs the same samples and prints the counts of docs/reliability.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from operators import MAY_BE_REFUSED, MODULES, SUPPORTED, Case, in_place_names, module_cases, operator_cases, outcomes

# Deprecated and experimental operators say so on any device.
pytestmark = pytest.mark.filterwarnings("ignore")


def check(name: str, cases: Iterable[Case]) -> None:
    for case, outcome, reason in outcomes(cases):
        assert outcome not in ("different", "raw error"), (case, outcome, reason)
        assert outcome != "refused" or name in MAY_BE_REFUSED, (case, reason)


@pytest.mark.parametrize("name", SUPPORTED[::3])
def test_an_operator_on_another_device(name: str) -> None:
    check(name, itertools.islice(operator_cases(name), 1))


@pytest.mark.parametrize("name", in_place_names()[::8])
def test_an_operator_in_place_on_another_device(name: str) -> None:
    check(name, itertools.islice(operator_cases(name, in_place=True), 1))


@pytest.mark.parametrize(("number", "name"), list(enumerate(MODULES))[::2])
def test_a_module_on_another_device(number: int, name: str) -> None:
    check(name, itertools.islice(module_cases(name, training=number % 4 == 0), 1))


def test_the_lists_cover_what_torch_has() -> None:
    assert len(SUPPORTED) >= 680
    assert len(MODULES) >= 110
    assert set(MAY_BE_REFUSED) <= {*SUPPORTED, *MODULES}


@pytest.mark.long
@pytest.mark.parametrize("name", SUPPORTED)
def test_all_samples_of_an_operator(name: str) -> None:
    check(name, operator_cases(name))


@pytest.mark.long
@pytest.mark.parametrize("name", in_place_names())
def test_all_samples_of_an_operator_in_place(name: str) -> None:
    check(name, operator_cases(name, in_place=True))


@pytest.mark.long
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_all_samples_of_a_module(name: str, training: bool) -> None:
    check(name, module_cases(name, training))
