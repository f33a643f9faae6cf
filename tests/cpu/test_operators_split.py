"""Every operator and module of torch on another device than its inputs computes what it computes in the unsplit model.

``python tests/bench/operators_split.py`` runs the same samples and prints the counts of docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from operators import (
    MAY_FALL,
    MODULES,
    RAISES,
    SUPPORTED,
    Case,
    case_of,
    in_place_names,
    module_cases,
    operator_cases,
    outcomes,
)

# Deprecated and experimental operators say so on any device.
pytestmark = pytest.mark.filterwarnings("ignore")


def check(name: str, cases: Iterable[Case]) -> None:
    for case, outcome, reason in outcomes(cases):
        assert outcome != "different", (case, reason)
        assert outcome != "raw error" or RAISES.get(name, "listed in RAISES") in reason, (case, reason)
        assert outcome not in ("refused", "fell") or name in MAY_FALL, (case, reason)


@pytest.mark.parametrize("name", SUPPORTED[::3])
def test_an_operator_on_another_device(name: str) -> None:
    check(name, operator_cases(name, most=1))


@pytest.mark.parametrize("name", in_place_names()[::8])
def test_an_operator_in_place_on_another_device(name: str) -> None:
    check(name, operator_cases(name, in_place=True, most=1))


@pytest.mark.parametrize(("number", "name"), list(enumerate(MODULES))[::2])
def test_a_module_on_another_device(number: int, name: str) -> None:
    check(name, module_cases(name, training=number % 4 == 0, most=1))


@pytest.mark.parametrize(
    ("cases", "number", "outcome"),
    [
        pytest.param(operator_cases("unravel_index"), 10, "equal", id="a literal whose value a fake knows"),
        pytest.param(module_cases("nn.Transformer", False), 33, "fell", id="a part that runs as under a compiler"),
    ],
)
def test_samples_that_were_refused_or_different(cases: Iterable[Case], number: int, outcome: str) -> None:
    assert [found for _, found, _ in outcomes([list(cases)[number]])] == [outcome]


def test_the_lists_cover_what_torch_has() -> None:
    assert len(SUPPORTED) >= 680
    assert len(MODULES) >= 110
    assert set(MAY_FALL) <= {*SUPPORTED, *MODULES}


@pytest.mark.parametrize(
    ("function", "outcome"),
    [
        (lambda x: x * (3 if torch.compiler.is_compiling() else 2), "different"),
        (lambda x: x * (2.000001 if torch.compiler.is_compiling() else 2.0), "close"),
        (lambda x: x * 2, "equal"),
        (lambda x: x if x.sum() > 0 else -x, "fell"),
        (lambda x: x @ torch.ones(5, 5), "undefined"),
    ],
)
def test_the_comparison_sees_a_difference(function: Callable[..., torch.Tensor], outcome: str) -> None:
    case = case_of("own", function, ((torch.ones(3, 4, requires_grad=True),), {}))
    assert [found for _, found, _ in outcomes([case])] == [outcome]


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
