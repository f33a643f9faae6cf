"""Lower bounds of the bottleneck of any labelling: dear wires tie blocks together, and work has to go somewhere."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from autosplit.solvers.anywhere.population import Floats
from autosplit.solvers.blocks.fleet import UNLIMITED, Fleet
from autosplit.solvers.blocks.quotient import Quotient, Wire

_PASSES = 2
_STEPS = 50
_WIDEST = 20.0  # prices differ by at most exp of this
_UNIT = 1 << 20  # the price of the first kind in the exact sum
_COUNTED = 128  # blocks, the largest ones, that are counted into devices


def share_bound(quotient: Quotient, fleet: Fleet) -> int:
    """No labelling, contiguous or not, has a bottleneck under this, in ns. Memory is left out.

    Under a bottleneck of T, a wire that costs more than T ties its blocks together, when some device pays wherever it
    is cut. On the blocks tied so, the largest of three bounds: the least work of a block; the work shared out as if
    blocks could be divided; and the largest m blocks counted into devices, each of which takes only so many of the
    smallest of them.

    Returns:
        The bound; ``UNLIMITED`` when a block is allowed nowhere.

    Complexity: O(log(wires) x (reads + blocks x kinds^2)), with 100 rounds.
    Source: shares: Lagrangian dual of scheduling on unrelated machines (Lenstra, Shmoys, Tardos 1990); counts: the
    k + 1 largest jobs (Graham 1969).

    >>> from autosplit.solvers.blocks.fleet import Kind
    >>> share_bound(Quotient.of_numbers([[5, 4, 3]]), Fleet((Kind((0, 1)),)))
    7
    """
    costs = sorted({0, *(wire.cost for wire in quotient.wires)}) if _ties(fleet) else [0]
    found: dict[int, int] = {}

    def from_here(number: int) -> bool:
        """Whether a bottleneck in [costs[number], the next cost) is not refuted."""
        last = number + 1 == len(costs)
        found[number] = _tied_bound(quotient if last else tied(quotient, fleet, costs[number]), fleet)
        return last or found[number] < costs[number + 1]

    first = _first(len(costs), from_here)
    return max(costs[first], found[first])


def _ties(fleet: Fleet) -> bool:
    """Whether some device pays for a wire wherever it is cut."""
    hosts = sum(len(kind.devices) for kind in fleet.kinds if not kind.pays)
    return hosts <= (1 if fleet.sender_pays else 0)


def tied(quotient: Quotient, fleet: Fleet, bottleneck_ns: int) -> Quotient:
    """The quotient with those blocks merged that no labelling with this bottleneck parts; no order constraints.

    They are the blocks of each wire that costs more, when some device pays for a wire wherever it is cut.
    """
    head = list(range(len(quotient)))

    def find(block: int) -> int:
        while head[block] != block:
            head[block] = block = head[head[block]]
        return block

    for wire in quotient.wires if _ties(fleet) else ():
        if wire.cost > bottleneck_ns:
            for reader in wire.readers:
                head[find(reader)] = find(wire.producer)
    heads = sorted({find(block) for block in head})
    place = {block: i for i, block in enumerate(heads)}
    block_of = [place[find(block)] for block in range(len(head))]
    members: list[list[int]] = [[] for _ in heads]
    for block, i in enumerate(block_of):
        members[i].append(block)
    return Quotient(
        before=((),) * len(heads),
        wires=tuple(_kept(quotient, block_of)),
        work_ns=np.stack([quotient.work_ns[:, m].sum(axis=1) for m in members], axis=1),
        fixed_bytes=np.array([quotient.fixed_bytes[m].sum() for m in members]),
        stash_bytes=np.array([quotient.stash_bytes[m].sum() for m in members]),
        allowed=np.stack([quotient.allowed[:, m].all(axis=1) for m in members], axis=1),
        members=tuple(tuple(node for b in m for node in quotient.members[b]) for m in members),
    )


def _kept(quotient: Quotient, block_of: list[int]) -> list[Wire]:
    kept = []
    for wire in quotient.wires:
        home = block_of[wire.producer]
        readers = sorted({block_of[reader] for reader in wire.readers} - {home})
        if readers:
            kept.append(Wire(wire.cost, home, tuple(readers)))
    return kept


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """A number under ``count`` that holds and whose predecessor does not; the last one always holds."""
    return bisect_left(range(count), True, key=holds)


def _tied_bound(quotient: Quotient, fleet: Fleet) -> int:
    if not len(quotient):
        return 0
    counts = np.array([len(kind.devices) for kind in fleet.kinds], dtype=np.float64)
    usable = quotient.allowed & (counts > 0)[:, None]
    if not usable.any(axis=0).all():
        return UNLIMITED
    work = np.where(usable, quotient.work_ns, np.inf)
    prices = [max(1, round(_UNIT * float(price))) for price in _prices(work, counts)]
    total = 0
    for block, allowed in zip(quotient.work_ns.T.tolist(), usable.T.tolist(), strict=True):
        total += min(p * w for p, w, ok in zip(prices, block, allowed, strict=True) if ok)
    devices = sum(price * len(kind.devices) for price, kind in zip(prices, fleet.kinds, strict=True))
    return max(-(-total // devices), int(work.min(axis=0).max()), _counted(work, counts))


def _counted(work: Floats, counts: Floats) -> int:
    """The least time in which, for each m, all devices together can hold the m largest blocks, by counts alone."""
    largest = np.argsort(-work.min(axis=0), kind="stable")[:_COUNTED]
    sums = np.full((len(work), len(largest), len(largest)), np.inf)  # [kind, m - 1, i]: the i + 1 smallest of m
    for kind, row in enumerate(work[:, largest]):
        for m in range(1, len(largest) + 1):
            sums[kind, m - 1, :m] = np.cumsum(np.sort(row[:m]))
    needed = np.arange(1, len(largest) + 1)
    times = np.unique(sums[np.isfinite(sums)])
    return int(times[_first(len(times), lambda i: bool((counts @ (sums <= times[i]).sum(axis=2) >= needed).all()))])


def _prices(work: Floats, counts: Floats) -> Floats:
    """Prices of the kinds that make the bound large, the first kind's 1: one at a time by ternary search."""
    logs = np.zeros(len(work))

    def bound(kind: int, log: float) -> float:
        tried = np.exp(np.where(np.arange(len(work)) == kind, log, logs))
        return float((work * tried[:, None]).min(axis=0).sum() / (counts @ tried))

    for _ in range(_PASSES if len(work) > 1 else 0):
        for kind in range(1, len(work)):
            low, high = -_WIDEST, _WIDEST
            for _ in range(_STEPS):
                left, right = (2 * low + high) / 3, (low + 2 * high) / 3
                low, high = (left, high) if bound(kind, left) < bound(kind, right) else (low, right)
            logs[kind] = (low + high) / 2
    prices: Floats = np.exp(logs)
    return prices
