"""``offload`` against every labelling of small graphs, on a simulator of its own."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from autosplit.solvers.blocks.fleet import Fleet, Kind
from autosplit.solvers.blocks.quotient import Quotient
from autosplit.solvers.latency import offload as module
from autosplit.solvers.latency.offload import lower_bound, offload
from autosplit.solvers.latency.offload_state import Offer, State

HOST = 9
"""The host's position among the devices."""


class Published:
    """The published model, from sets: what can start, starts; no numbers are kept from one step to the next."""

    def __init__(self, quotient: Quotient, fleet: Fleet, together: list[list[int]]) -> None:
        self.quotient, self.fleet, self.together = quotient, fleet, together
        self.kind = {device: k for k, kind in enumerate(fleet.kinds) for device in kind.devices}

    def may(self, labels: tuple[int, ...]) -> bool:
        for device in set(labels) - {HOST}:
            blocks = [b for b, label in enumerate(labels) if label == device]
            if (
                sum(int(self.quotient.fixed_bytes[b]) for b in blocks)
                > self.fleet.kinds[self.kind[device]].capacity_bytes
            ):
                return False
        if any(len({labels[b] for b in group}) > 1 for group in self.together):
            return False
        return all(self.quotient.allowed[self.kind[label], b] for b, label in enumerate(labels))

    def load(self, blocks: set[int], device: int) -> int:
        total = sum(int(self.quotient.work_ns[self.kind[device], b]) for b in blocks)
        for wire in self.quotient.wires:
            readers = set(wire.readers)
            if wire.producer in blocks:
                total += wire.cost if readers - blocks and self.fleet.sender_pays else 0
            elif readers & blocks:
                total += wire.cost
        return total

    def makespan(self, labels: tuple[int, ...]) -> int | None:
        tasks = [({b}, HOST) for b, label in enumerate(labels) if label == HOST]
        tasks += [({b for b, label in enumerate(labels) if label == d}, d) for d in sorted(set(labels) - {HOST})]
        end: dict[int, int] = {}
        while tasks:
            able = [
                (blocks, device)
                for blocks, device in tasks
                if all(u in end or u in blocks for b in blocks for u in self.quotient.before[b])
            ]
            if not able:
                return None
            blocks, device = able[0]
            tasks.remove((blocks, device))
            ready = [end[u] for b in blocks for u in self.quotient.before[b] if u not in blocks]
            one = next(iter(blocks))
            took = int(self.quotient.work_ns[self.kind[HOST], one]) if device == HOST else self.load(blocks, device)
            for block in blocks:
                end[block] = max(ready, default=0) + took
        return max(end.values(), default=0)


def random_offer(rng: random.Random, count: int) -> tuple[Quotient, Fleet, list[list[int]]]:
    wires = []
    for u in range(count - 1):
        readers = sorted(rng.sample(range(u + 1, count), min(count - u - 1, rng.choice((1, 1, 2, 3)))))
        wires.append((rng.randrange(0, 6), u, readers))
    kinds = [Kind(tuple(range(rng.randrange(1, 3))), rng.randrange(4, 20))]
    if rng.random() < 0.4:
        kinds.append(Kind((len(kinds[0].devices),), rng.randrange(4, 20)))
    fast = [rng.randrange(0, 4) for _ in range(count)]
    work = [[t + rng.randrange(0, 2) for t in fast] for _ in kinds]
    work.append([t * rng.choice((5, 10)) for t in fast])
    fleet = Fleet((*kinds, Kind((HOST,), pays=False)), sender_pays=rng.random() < 0.8)
    quotient = Quotient.of_numbers(work, wires, fixed_bytes=[rng.randrange(0, 7) for _ in range(count)])
    if rng.random() < 0.3:
        quotient.allowed[0, rng.randrange(count)] = False
    together = [sorted(rng.sample(range(count), 2))] if count > 3 and rng.random() < 0.4 else []
    return quotient, fleet, together


@pytest.mark.parametrize("seed", range(100))
def test_the_simulator_is_the_published_model(seed):
    rng = random.Random(seed)
    quotient, fleet, together = random_offer(rng, rng.randrange(1, 14))
    offer = Offer(quotient, fleet, together)
    state, model = State(offer), Published(quotient, fleet, together)
    for _ in range(20):  # moves, not fresh states: what is kept up must stay right
        state.move(rng.randrange(len(offer.units)), rng.randrange(offer.pieces + 1))
        labels = tuple(offer.device(label) for label in state.labels)
        found = state.makespan()
        assert (None if found < 0 else found) == model.makespan(labels)
        again = State(offer)
        again.load(state.labels)
        assert (again.makespan(), again.total(), again.fits) == (found, state.total(), state.fits)
        if found >= 0 and model.may(labels):
            assert lower_bound(offer) <= found


def compare(seed: int) -> str:
    rng = random.Random(seed)
    quotient, fleet, together = random_offer(rng, rng.randrange(1, 8))
    model = Published(quotient, fleet, together)
    devices = [device for kind in fleet.kinds for device in kind.devices]
    values = [
        value
        for labels in itertools.product(devices, repeat=len(quotient))
        if model.may(labels) and (value := model.makespan(labels)) is not None
    ]
    found = offload(quotient, fleet, together, moves=2000)
    assert model.may(found.labels), seed
    assert model.makespan(found.labels) == found.latency_ns
    assert found.bound_ns <= min(values) <= found.latency_ns, seed
    return "optimal" if found.latency_ns == min(values) else "feasible"


def test_small_problems_are_solved_exactly():
    outcomes = Counter(compare(seed) for seed in range(120))
    assert outcomes["optimal"] >= 118  # the rest have more than 4,096 placements


def test_annealing_alone_is_near_the_optimum(monkeypatch):
    monkeypatch.setattr(module, "_FEW_PLACEMENTS", 0)
    outcomes = Counter(compare(seed) for seed in range(120))
    assert outcomes["optimal"] >= 0.96 * 120


def test_the_same_each_time():
    quotient, fleet, together = random_offer(random.Random(5), 40)
    assert offload(quotient, fleet, together, moves=3000) == offload(quotient, fleet, together, moves=3000)


def test_nothing_to_place():
    fleet = Fleet((Kind((0,), 8), Kind((HOST,), pays=False)))
    assert offload(Quotient.of_numbers([[], []]), fleet) == ((), 0, 0)


def test_no_accelerator_means_the_host():
    quotient = Quotient.of_numbers([[3, 4]], [(1, 0, [1])])
    assert offload(quotient, Fleet((Kind((HOST,), pays=False),))) == ((HOST, HOST), 7, 7)


def test_a_host_is_needed():
    with pytest.raises(ValueError, match="pays=False"):
        offload(Quotient.of_numbers([[1]]), Fleet((Kind((0,)),)))


def test_two_accelerators_run_side_by_side():
    """Two branches between a fork and a join: no chain of pieces has them at the same time."""
    quotient = Quotient.of_numbers(
        [[1, 10, 10, 1], [1, 100, 100, 1]], [(1, 0, [1, 2]), (1, 1, [3]), (1, 2, [3])], fixed_bytes=[0, 5, 5, 0]
    )
    found = offload(quotient, Fleet((Kind((0, 1), 5), Kind((HOST,), pays=False))), moves=2000)
    assert found.latency_ns == 1 + 12 + 1
    assert np.unique(found.labels).tolist() == [0, 1, HOST]
