"""Alike branches in order: fewer downsets, the same optimum."""

from __future__ import annotations

import numpy as np
import pytest
from chains import optimum, random_quotient
from hard_cases import GRAPHS, fleet

import autosplit.solvers.certificate.certify
from autosplit.solvers.blocks.alike import in_order, in_order_still
from autosplit.solvers.blocks.contract import contracted, grouped
from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Quotient
from autosplit.solvers.certificate.certify import certify
from autosplit.solvers.stages.lattice import all_downsets
from autosplit.solvers.stages.line import Flight


def twins(seed: int, most: int) -> tuple[Quotient, Fleet, Flight]:
    """Random blocks, and between some of them a few branches that are alike, or nearly."""
    rng = np.random.default_rng(seed)
    _, devices, flight = random_quotient(seed, 6)
    kinds, n = len(devices.kinds), int(rng.integers(2, 5))
    before: list[set[int]] = [{v - 1} if v and rng.random() < 0.8 else set() for v in range(n)]
    work = [rng.integers(0, 20, n).tolist() for _ in range(kinds)]
    wires = [(int(rng.integers(0, 12)), v - 1, [v]) for v in range(1, n) if before[v]]
    sources, shared = rng.permutation(n)[: int(rng.integers(0, 3))].tolist(), rng.random() < 0.6
    length, copies = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    places = [[n + length * copy + i for i in range(length)] for copy in range(copies)]
    costs, times = rng.integers(0, 15, 4).tolist(), rng.integers(0, 20, (kinds, length)).tolist()
    end = n + length * copies
    for branch in places:
        before += [set(sources) if i == 0 else {branch[i - 1]} for i in range(length)]
        for kind in range(kinds):
            work[kind] += times[kind]
        wires += [(costs[2], branch[i - 1], [branch[i]]) for i in range(1, length)]
        wires += [(costs[3], branch[-1], [end])]
        wires += [(costs[0], source, [branch[0]]) for source in sources if not shared]
    wires += [(costs[0], source, [branch[0] for branch in places]) for source in sources if shared]
    if rng.random() < 0.3:  # a wire that one branch only has, or two branches at different places
        wires.append((5, places[0][-1], [places[1][0] if rng.random() < 0.5 else 0]))
    before.append({branch[-1] for branch in places})
    for kind in range(kinds):
        work[kind].append(int(rng.integers(0, 9)))
    if rng.random() < 0.2:
        work[0][places[1][0]] += 1
    order = _order(before)
    number = {old: new for new, old in enumerate(order)}
    return (
        Quotient.of_numbers(
            [[row[old] for old in order] for row in work],
            [(cost, number[made], [number[reader] for reader in readers]) for cost, made, readers in wires],
            [{number[other] for other in before[old]} for old in order],
        ),
        devices,
        flight,
    )


def _order(before: list[set[int]]) -> list[int]:
    order: list[int] = []
    while len(order) < len(before):
        order.append(next(v for v in range(len(before)) if v not in order and before[v] <= set(order)))
    return order


def check(seed: int) -> int:
    """Compare optima; returns how many constraints there are more."""
    quotient, devices, flight = twins(seed, 8)
    ordered = in_order(quotient)
    assert all(other < block for block, others in enumerate(ordered.before) for other in others)
    best = optimum(quotient, devices, flight)
    assert optimum(ordered, devices, flight) == best, seed
    if best is not None:
        assert certify(quotient, devices, best + seed % 5, flight=flight)[:2] == (best, best)
    return sum(map(len, ordered.before)) - sum(map(len, quotient.before))


def test_same_optimum_on_random_graphs() -> None:
    assert sum(check(seed) > 0 for seed in range(250)) > 120


def test_same_optimum_where_blocks_are_merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autosplit.solvers.certificate.certify, "_MANY", 0)
    monkeypatch.setattr(autosplit.solvers.certificate.certify, "_FEWER", 0.95)
    assert sum(check(seed) > 0 for seed in range(500, 700)) > 90


@pytest.mark.long
@pytest.mark.parametrize("part", range(40))
def test_same_optimum_on_many_random_graphs(part: int) -> None:
    for seed in range(1000 + 150 * part, 1000 + 150 * (part + 1)):
        check(seed)


def test_a_difference_anywhere_keeps_branches_apart() -> None:
    work, before = [[1, 5, 5, 1]], [[], [0], [0], [1, 2]]
    plain = [(2, 0, [1, 2]), (3, 1, [3]), (3, 2, [3])]
    assert in_order(Quotient.of_numbers(work, plain, before)).before[2] == (0, 1)
    for quotient in (
        Quotient.of_numbers([[1, 5, 6, 1]], plain, before),
        Quotient.of_numbers(work, plain, before, fixed_bytes=[0, 1, 0, 0]),
        Quotient.of_numbers(work, [*plain[:2], (4, 2, [3])], before),
        Quotient.of_numbers(work, [*plain, (1, 1, [2])], before),
        Quotient.of_numbers(work, [*plain, (1, 2, [0])], before),
    ):
        assert in_order(quotient).before == quotient.before


def test_branches_that_are_alike_once_others_are_merged() -> None:
    """Two blocks that read the first and are read each by one of two blocks in a row."""
    wires = [(1, 0, [1, 3]), (9, 0, [2]), (2, 1, [2]), (9, 2, [4]), (2, 3, [4])]
    quotient = Quotient.of_numbers([[5, 3, 20, 3, 20]], wires)
    assert in_order(quotient).before == quotient.before
    merged = grouped(quotient, [0, 1, 3, 2, 3])
    assert in_order_still(merged, merged).before == ((), (0,), (0, 1), (0, 1, 2))


def test_an_order_that_is_there_is_kept() -> None:
    """Of three alike branches two are in order; then all are, and where the first two differ only the old order is."""
    before = [[], [0], [0], [0], [1, 2, 3]]
    wires = [(1, 0, [1, 2, 3]), *((2, branch, [4]) for branch in (1, 2, 3))]
    ordered = [[], [0], [0, 1], [0], [1, 2, 3]]
    for work, expected in (
        ([1, 5, 5, 5, 1], ((), (0,), (0, 1), (0, 2), (1, 2, 3))),
        ([1, 5, 6, 6, 1], ((), (0,), (0, 1), (0,), (1, 2, 3))),
    ):
        plain = Quotient.of_numbers([work], wires, before)
        assert in_order_still(Quotient.of_numbers([work], wires, ordered), plain).before == expected


def test_experts_of_a_mixture_in_order() -> None:
    whole = GRAPHS["moe-8"]().quotient()
    quotient, _ = contracted(whole, fleet(whole, 8), Flight())
    layer = Quotient.of_numbers([[1] * 10], [(1, 0, range(1, 9))] + [(1, i, [9]) for i in range(1, 9)])
    found = all_downsets(in_order(layer), 1000), all_downsets(layer, 1000)
    assert [len(rows) for rows in found if rows is not None] == [11, 258]
    assert sum(map(len, in_order(quotient).before)) - sum(map(len, quotient.before)) == 96
