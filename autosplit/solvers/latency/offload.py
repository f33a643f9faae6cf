"""Offload: the least latency of one request when accelerators are offered whole pieces of the graph by a host.

The model of Tarnawski et al. 2020 (Efficient algorithms for device placement of DNN graph operators), latency:

- a node on the host runs as soon as its inputs exist; the host has as many cores as it takes;
- an accelerator takes one piece: it starts when all that the piece reads from outside exists, works for its load
  (``quotient.Load``: work, and transfers through the host's memory), and gives out its results at the end;
- so pieces and host nodes must not wait on each other in a circle, which makes each piece contiguous.

Search: pieces that are runs of a topological order, by dynamic programming; then simulated annealing on the simulator.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Quotient
from autosplit.solvers.latency.offload_start import runs
from autosplit.solvers.latency.offload_state import Offer, State

_MOVES = 40_000
_EDGE_VISITS = 36_000_000
_FEW_PLACEMENTS = 4096
_HEATS, _COLD = (0.03, 0.3, 0.1, 0.03), 1e-5
_TIE = 0.002
"""What all that is done anywhere counts beside the makespan, so that ties go to less work."""

_EXCHANGE, _CLEAR = 0.02, 0.08


class Offloading(NamedTuple):
    """A placement on accelerators and the host.

    Attributes:
        labels: for each block the position of its device in the cluster.
        latency_ns: its makespan.
        bound_ns: no placement is below.
    """

    labels: tuple[int, ...]
    latency_ns: int
    bound_ns: int


def offload(
    quotient: Quotient, fleet: Fleet, together: Sequence[Sequence[int]] = (), *, moves: int = _MOVES
) -> Offloading:
    """Pieces for the accelerators so that one request is done soonest.

    Args:
        quotient: blocks; on the host each runs by itself.
        fleet: kinds that pay are accelerators, one piece for each device; the first device that does not is the host.
        together: blocks that must be on one device, though on the host they run apart.
        moves: of the annealing, at most; fewer where the graph is large.

    Returns:
        The best placement found, within every accelerator's capacity; the same each time. Never worse than all on
        the host. Exact for up to 4,096 placements, else a heuristic with a proved bound. O(moves * reads).

    Raises:
        ValueError: the fleet has no host, or a block may not be on it.

    Source: model, Tarnawski et al. 2020; annealing, Kirkpatrick, Gelatt, Vecchi 1983.

    >>> from autosplit.solvers.blocks.fleet import Kind
    >>> fleet = Fleet((Kind((0,), 8), Kind((1,), pays=False)))
    >>> numbers = Quotient.of_numbers([[1, 1, 1], [9, 2, 9]], [(1, 0, [1]), (1, 1, [2])], fixed_bytes=[6, 6, 6])
    >>> offload(numbers, fleet).labels, offload(numbers, fleet).latency_ns
    ((0, 1, 1), 13)
    """
    if all(kind.pays for kind in fleet.kinds):
        raise ValueError("offload: every kind of device pays for transfers; give the host a kind with pays=False")
    offer = Offer(quotient, fleet, together)
    if not all(offer.allowed[offer.host]):
        raise ValueError(f"offload: unit {offer.allowed[offer.host].index(False)} may not be on the host; all must")
    state, bound = State(offer), lower_bound(offer)
    best = _Best(state)
    if (offer.pieces + 1) ** len(offer.units) <= _FEW_PLACEMENTS:
        bound = _enumerate(state, best)
    else:
        for labels in runs(offer):
            state.load(labels)
            best.note(state)
        moves = min(moves, moves * _EDGE_VISITS // (_MOVES * max(1, offer.edges + offer.count)))
        for restart, hot in enumerate(_HEATS):
            if best.value > bound:
                state.load(best.labels)
                _anneal(state, best, moves // len(_HEATS), hot, random.Random(restart))
    return Offloading(tuple(offer.device(label) for label in best.labels), best.value, bound)


def _enumerate(state: State, best: _Best) -> int:
    """Try every placement; the least value, which is then the bound."""
    offer = state.offer
    for labels in product(range(offer.pieces + 1), repeat=len(offer.units)):
        if all(offer.allowed[label][unit] for unit, label in enumerate(labels)):
            for unit, label in enumerate(labels):
                state.move(unit, label)
            best.note(state)
    return best.value


class _Best:
    """The best labels so far; the first of equals stays."""

    def __init__(self, state: State) -> None:
        self.value, self.labels = state.makespan(), list(state.labels)

    def note(self, state: State, value: int | None = None) -> None:
        """Keep the state's labels if they are better."""
        value = state.makespan() if value is None else value
        if 0 <= value < self.value and state.fits:
            self.value, self.labels = value, list(state.labels)


def _anneal(state: State, best: _Best, moves: int, hot: float, rng: random.Random) -> None:
    """Moves of units and small runs of them, worse ones less and less often."""
    current = best.value + _TIE * state.total()
    scale = best.value
    for step in range(moves):
        heat = hot * (_COLD / hot) ** (step / moves) * scale
        change = _propose(state, rng)
        if not change:
            continue
        undo = [(unit, state.labels[state.offer.units[unit][0]]) for unit, _ in change]
        for unit, label in change:
            state.move(unit, label)
        rest = _TIE * state.total()
        value = state.makespan(current - rest - heat * math.log(1.0 - rng.random())) if state.fits else -1
        if value >= 0:
            current = value + rest
            best.note(state, value)
            continue
        for unit, label in reversed(undo):
            state.move(unit, label)


def _propose(state: State, rng: random.Random) -> list[tuple[int, int]]:
    """Units and their new labels: a run of units goes to a neighbour's device or any, and what it displaces goes back.

    Now and then the whole piece that is there makes room, or two pieces change places.
    """
    offer = state.offer
    start, draw = rng.randrange(len(offer.units)), rng.random()
    here = state.labels[offer.units[start][0]]
    there = _target(state, start, here, rng)
    if there == here:
        return []
    if draw < _EXCHANGE and offer.host not in (here, there):
        change = [(unit, there) for unit in _members(state, here)] + [(unit, here) for unit in _members(state, there)]
        return change if all(offer.allowed[label][unit] for unit, label in change) else []
    run = _run(state, start, rng)
    size = sum(offer.unit_bytes[unit] for unit in run)
    if size > offer.capacity[there] or not all(offer.allowed[there][unit] for unit in run):
        return []
    if draw < _CLEAR and there != offer.host:
        displaced = _members(state, there)
    else:
        displaced = _displaced(state, there, state.bytes_on(there) + size - offer.capacity[there], rng)
    back = here if rng.random() < 0.5 else offer.host
    return [(unit, there) for unit in run] + [
        (unit, back if offer.allowed[back][unit] else offer.host) for unit in displaced
    ]


def _members(state: State, label: int) -> list[int]:
    """The units of a piece, in the order of their first block."""
    return sorted({state.offer.unit_of[v] for v in state.members[label]})


def _target(state: State, unit: int, here: int, rng: random.Random) -> int:
    offer = state.offer
    draw = rng.random()
    if draw < 0.15:
        return rng.randrange(offer.pieces + 1)
    if draw < 0.3:
        return offer.host
    near = [state.labels[v] for v in offer.near[unit] if state.labels[v] != here]
    return rng.choice(near) if near else rng.randrange(offer.pieces + 1)


def _run(state: State, start: int, rng: random.Random) -> list[int]:
    """``start`` and units next to it, all with one label."""
    offer, labels = state.offer, state.labels
    here = labels[offer.units[start][0]]
    wanted = rng.choice((1, 1, 1, 2, 2, 3, 4, 6, 8, 16, 32))
    run, seen, front = [start], {start}, 0
    while len(run) < wanted and front < len(run):
        around = [offer.unit_of[v] for v in offer.near[run[front]] if labels[v] == here]
        front += 1
        for unit in around:
            if unit not in seen and len(run) < wanted:
                seen.add(unit)
                run.append(unit)
    return run


def _displaced(state: State, label: int, over: int, rng: random.Random) -> list[int]:
    """Units of a piece, from its first or its last on, that hold at least ``over`` bytes."""
    offer = state.offer
    if over <= 0:
        return []
    members = _members(state, label)
    taken: list[int] = []
    for unit in members if rng.random() < 0.5 else reversed(members):
        if over <= 0:
            break
        if offer.unit_bytes[unit]:
            taken.append(unit)
            over -= offer.unit_bytes[unit]
    return taken


def lower_bound(offer: Offer) -> int:
    """The longest path, for the best choice of host or accelerator node by node. O(reads).

    A path pays the tensor where it enters or leaves a piece; two nodes that no accelerator can hold at once are never
    in one piece. Between two nodes the cheaper choice counts, so the bound is below every placement.
    """
    host, accelerated = [0] * offer.count, [0] * offer.count
    never = 2**62
    for v in range(offer.count):
        ready_host, ready_piece = 0, 0
        for u, out_ns, in_ns, together in offer.reads[v]:
            to_host = min(host[u], accelerated[u] + out_ns)
            apart = min(host[u], accelerated[u] + out_ns) + in_ns
            ready_host = max(ready_host, to_host)
            ready_piece = max(ready_piece, min(apart, accelerated[u]) if together else apart)
        host[v] = min(never, ready_host + offer.host_ns[v])
        least = offer.least_ns[v]
        accelerated[v] = never if least is None else min(never, ready_piece + least)
    return max(map(min, host, accelerated), default=0)
