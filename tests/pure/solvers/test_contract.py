"""Contraction: never another optimum, and an order and a plan that hold for the blocks themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from chains import optimum, random_quotient
from hard_cases import GRAPHS, fleet

from autosplit.solvers.blocks.contract import contracted
from autosplit.solvers.blocks.fleet import Fleet, Kind
from autosplit.solvers.blocks.quotient import Quotient, Wire
from autosplit.solvers.stages.line import Flight


def check(seed: int, factor: int, most: int) -> int:
    """Compare optima; wires cost ``factor`` times as much as random ones. Returns how many blocks were merged."""
    quotient, devices, flight = random_quotient(seed, most)
    wires = tuple(Wire(wire.cost * factor, wire.producer, wire.readers) for wire in quotient.wires)
    quotient = replace(quotient, wires=wires)
    if seed % 2:
        quotient = replace(quotient, fixed_bytes=quotient.fixed_bytes * 0, stash_bytes=quotient.stash_bytes * 0)
    fewer, groups = contracted(quotient, devices, flight)
    assert all(other < block for block, others in enumerate(fewer.before) for other in others)
    assert sorted(node for members in fewer.members for node in members) == list(range(len(quotient)))
    assert [block in fewer.members[group] for block, group in enumerate(groups)] == [True] * len(quotient)
    assert optimum(fewer, devices, flight) == optimum(quotient, devices, flight), seed
    return len(quotient) - len(fewer)


@pytest.mark.parametrize("factor", [1, 5])
def test_same_optimum_on_random_graphs(factor: int) -> None:
    assert sum(check(seed, factor, 9) for seed in range(1000, 1400)) > 100


@pytest.mark.long
@pytest.mark.parametrize("part", range(50))
def test_same_optimum_on_many_random_graphs(part: int) -> None:
    for seed in range(20_000 + 100 * part, 20_000 + 100 * (part + 1)):
        check(seed, 1 + seed % 7, 12)


def test_a_weight_stays_where_memory_may_bind() -> None:
    chain = Quotient.of_numbers([[5, 1, 5]], [(9, 0, [1]), (2, 1, [2])], fixed_bytes=[1, 3, 0])
    assert contracted(chain, Fleet((Kind((0, 1), 3),)), Flight())[1] == [0, 1, 2]
    assert contracted(chain, Fleet((Kind((0, 1), 4),)), Flight())[1] == [0, 0, 1]


def test_host_that_does_not_pay_takes_nothing_over() -> None:
    chain = Quotient.of_numbers([[5, 1, 5]] * 2, [(9, 0, [1]), (2, 1, [2])])
    assert len(contracted(chain, Fleet((Kind((0,)), Kind((1,), pays=False))), Flight())[0]) == 3


def test_mixture_of_experts_gets_smaller() -> None:
    quotient = GRAPHS["moe-8"]().quotient()
    fewer, groups = contracted(quotient, fleet(quotient, 8), Flight())
    assert (len(quotient), len(fewer), max(groups)) == (541, 349, 348)
    assert int(fewer.work_ns.sum()) == int(quotient.work_ns.sum())
    assert np.array_equal(np.bincount(groups), [len(members) for members in fewer.members])
