"""The certificate against every chain of downsets: never above the optimum, and exact on what is small."""

from __future__ import annotations

import numpy as np
import pytest
from chains import optimum, random_quotient
from hard_cases import GRAPHS, fleet

import autosplit.solvers.certificate.certify
import autosplit.solvers.certificate.cuts
from autosplit.solvers.blocks.contract import grouped
from autosplit.solvers.blocks.fleet import Fleet, Kind
from autosplit.solvers.blocks.quotient import Load, Quotient, bottleneck, stage_ns
from autosplit.solvers.certificate.certify import Certificate, certify
from autosplit.solvers.certificate.spans import Closure, Spans, never_apart, spans_of_groups
from autosplit.solvers.certificate.tolls import Tolls
from autosplit.solvers.stages.contiguous import by_orders
from autosplit.solvers.stages.dynamic import Flight

PLENTY = 10**6


def check(seed: int, most: int) -> None:
    quotient, devices, flight = random_quotient(seed, most)
    best = optimum(quotient, devices, flight)
    if best is None:
        found = certify(quotient, devices, PLENTY, flight=flight)
        assert (found.bound_ns, found.labels) == (PLENTY, None), "nothing fits, and that is proved"
        return
    for known in (best, (best + 1, best * 13 // 10 + 3, PLENTY)[seed % 3]):
        found = certify(quotient, devices, known, flight=flight)
        assert found.bound_ns == best == found.best_ns, (seed, known, found, best)
        assert found.proved
        if found.labels is None:
            assert known == best
        else:
            assert bottleneck(quotient, devices, found.labels) == best


@pytest.mark.parametrize("part", range(8))
def test_exact_on_random_graphs(part: int) -> None:
    for seed in range(60 * part, 60 * (part + 1)):
        check(seed, 10)


@pytest.mark.long
@pytest.mark.parametrize("part", range(100))
def test_exact_on_many_random_graphs(part: int) -> None:
    for seed in range(10_000 + 80 * part, 10_000 + 80 * (part + 1)):
        check(seed, 13)


@pytest.mark.parametrize("reach", [0.0, 2.0])
def test_whatever_counts_as_near(reach: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autosplit.solvers.certificate.cuts, "_REACH", reach)
    for seed in range(5000, 5030):
        check(seed, 10)


@pytest.mark.parametrize("part", range(4))
def test_exact_where_few_spans_are_cut_and_blocks_are_merged_at_once(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autosplit.solvers.certificate.certify, "_MANY", 0)
    monkeypatch.setattr(autosplit.solvers.certificate.certify, "_FEWER", 0.95)
    for seed in range(60 * part, 60 * (part + 1)):
        check(seed, 10)


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_exact_where_few_spans_are_cut_and_blocks_are_merged_on_many_graphs(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autosplit.solvers.certificate.certify, "_MANY", 0)
    monkeypatch.setattr(autosplit.solvers.certificate.certify, "_FEWER", 0.95)
    for seed in range(20_000 + 80 * part, 20_000 + 80 * (part + 1)):
        check(seed, 13)


def test_groups_are_what_no_downset_of_any_span_takes_apart() -> None:
    merged = 0
    for seed in range(100):
        quotient, devices, _ = random_quotient(seed, 12)
        ends = np.array([[False] * len(quotient), [True] * len(quotient)])
        spans, inside = whole(quotient, devices, np.random.default_rng(seed))
        spans = spans.take(np.arange(seed % 4))
        lower, upper = (np.concatenate([ends[:1], rows, ends[1:]]) for rows in (spans.lower, spans.upper))
        size, none = len(lower), np.zeros(len(lower), dtype=np.int64)
        alive = np.eye(len(devices.states), size, dtype=np.bool_)
        spans = Spans(lower, upper, alive, none, none.astype(np.bool_))
        groups = np.array(never_apart(spans))
        together = groups[:, None] == groups
        apart = np.logical_or.reduce(upper[:, :, None] & ~lower[:, None, :])
        np.fill_diagonal(apart, False)
        assert (together == ~(apart | apart.T)).all(), seed
        fewer = grouped(quotient, groups.tolist())
        assert all(other < block for block, others in enumerate(fewer.before) for other in others)
        found = spans_of_groups(spans, groups.tolist(), fewer)
        merged += len(fewer) < len(quotient)
        for number, downsets in enumerate(inside[: seed % 4]):
            for downset in downsets:  # each is one of groups, and in a span of the same states
                kept = np.array([downset[groups == group].all() for group in range(len(fewer))])
                assert (kept[groups] == downset).all(), seed
                holds = (found.lower <= kept).all(axis=1) & (kept <= found.upper).all(axis=1)
                assert (found.alive[:, holds].any(axis=1) >= alive[:, number + 1]).all(), seed
    assert merged > 50


def test_little_effort_gives_a_bound_that_holds() -> None:
    below = 0
    for seed in range(6000, 6150):
        quotient, devices, flight = random_quotient(seed, 10)
        best = optimum(quotient, devices, flight)
        if best is not None:
            found = certify(quotient, devices, best * 2 + 5, flight=flight, effort=seed % 4)
            assert found.bound_ns <= best <= found.best_ns
            below += found.bound_ns < best
    assert below > 10, "some must have stopped before the proof"


def test_wire_that_jumps_over_a_stage_is_paid_once_on_each_side() -> None:
    """A boundary weight of cost / boundaries crossed would prove 10 999 here."""
    wires = [(0, 0, [1]), (0, 1, [2]), (0, 0, [3]), (0, 3, [2]), (4000, 0, [2])]
    quotient = Quotient.of_numbers([[6000, 10_000, 6000, 1]], wires, [[], [0], [0, 1, 3], [0]])
    assert certify(quotient, Fleet((Kind((0, 1, 2)),)), 22_001)[:2] == (10_001, 10_001)


def whole(quotient: Quotient, devices: Fleet, rng: np.random.Generator) -> tuple[Spans, list[np.ndarray]]:
    """Random spans, and two downsets of each."""
    closure = Closure(quotient)
    n, lower, upper, inside = len(quotient), [], [], []
    for _ in range(12):
        low = closure.before(rng.integers(0, n, 2)).any(axis=0)
        high = low | closure.before(rng.integers(0, n, 3)).any(axis=0)
        lower.append(low)
        upper.append(high)
        some = closure.before(np.flatnonzero(high)[rng.integers(0, high.sum(), 2)]).any(axis=0)
        inside.append(np.stack([low | some, low | closure.before(np.flatnonzero(high)[:1])[0]]))
    alive = np.ones((len(devices.states), 12), dtype=np.bool_)
    spans = Spans(np.array(lower), np.array(upper), alive, np.zeros(12, dtype=np.int64), np.zeros(12, dtype=np.bool_))
    order = np.argsort(spans.lower @ quotient.work_ns.min(axis=0), kind="stable")
    return spans.take(order), [inside[number] for number in order]


def stage(quotient: Quotient, inside: np.ndarray) -> Load:
    """What a stage of these blocks does and holds, by definition."""
    received = sent = 0
    for wire in quotient.wires:
        readers = inside[list(wire.readers)]
        if inside[wire.producer]:
            sent += wire.cost * (not readers.all())
        else:
            received += wire.cost * bool(readers.any())
    return Load(0, received, sent, int(quotient.fixed_bytes[inside].sum()), int(quotient.stash_bytes[inside].sum()))


def test_no_stage_costs_less_than_its_toll() -> None:
    compared = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        quotient, devices, _ = random_quotient(seed, 14)
        tolls = Tolls(quotient, devices, quotient.work_ns, Closure(quotient))
        spans, inside = whole(quotient, devices, rng)
        if seed % 3:
            spans = tolls.cuts.refresh(spans, int(rng.integers(0, 200)), int(rng.integers(4, 12)))
        pairs = tolls.pairs(spans, 10**9, 1e12, 10**9)
        assert pairs is not None
        toll = {(i, j): p for p, (i, j) in enumerate(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))}
        for i in range(spans.size):
            for j in range(spans.size):
                for start in inside[i]:
                    for end in inside[j]:
                        if (start & ~end).any() or (start == end).all():
                            continue
                        load = stage(quotient, end & ~start)
                        if load.fixed_bytes + load.stash_bytes > max(kind.capacity_bytes for kind in devices.kinds):
                            continue
                        moved = load.in_ns + (load.out_ns if devices.sender_pays else 0)
                        assert pairs.transfers_ns[toll[i, j]] <= moved, (seed, i, j)
                        for kind in range(len(devices.kinds)):
                            work = int(quotient.work_ns[kind, end & ~start].sum())
                            true = stage_ns(devices, kind, load._replace(work_ns=work))
                            assert pairs.load_ns[kind, toll[i, j]] <= true, (seed, i, j)
                        compared += 1
    assert compared > 20_000


@pytest.mark.parametrize(
    ("name", "devices"),
    [("gpt-24", 8), ("unet-3x1", 16), ("moe-16", 8), ("irregular-40", 8)],
)
def test_shapes_of_models(name: str, devices: int) -> None:
    quotient = GRAPHS[name]().quotient()
    line = by_orders(quotient, fleet(quotient, devices), Flight())
    assert line is not None
    found = certify(quotient, fleet(quotient, devices), line.value)
    assert found.proved
    if found.labels is not None:
        assert bottleneck(quotient, fleet(quotient, devices), found.labels) == found.best_ns < line.value


def test_same_input_same_certificate() -> None:
    quotient = GRAPHS["unet-3x1"]().quotient()
    once, again = (certify(quotient, fleet(quotient, 4), int(quotient.work_ns.sum())) for _ in range(2))
    assert once == again


def test_stopping_at_once_still_gives_the_trivial_bound() -> None:
    quotient = Quotient.of_numbers([[4, 4, 4]], [(1, 0, [1]), (1, 1, [2])])
    found = certify(quotient, Fleet((Kind((0, 1)),)), 100, stop=lambda: True)
    assert found == Certificate(6, 100, None, 0)


def test_memory_by_place_in_the_pipeline() -> None:
    """Three equal blocks, each with a stash: the first of three stages holds three micro-batches."""
    wires = [(0, 0, [1]), (0, 1, [2])]
    quotient = Quotient.of_numbers([[5, 5, 5]], wires, stash_bytes=[2, 2, 2])
    devices = Fleet((Kind((0, 1, 2), 5),))
    assert certify(quotient, devices, 99, flight=Flight(1)).best_ns == 5
    assert certify(quotient, devices, 99, flight=Flight(3)).best_ns == 10, "the first of three would hold 6"
    tighter = Fleet((Kind((0, 1, 2), 3),))
    assert certify(quotient, tighter, 99, flight=Flight(3))[:3] == (99, 99, None)
