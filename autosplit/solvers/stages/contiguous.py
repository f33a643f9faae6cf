"""Contiguous stages of least bottleneck: from a few orders, over all downsets, or near the boundaries of a plan."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Bools, Ints, Quotient
from autosplit.solvers.mincut import cheapest_boundary
from autosplit.solvers.stages.dynamic import best_line
from autosplit.solvers.stages.family import Downsets, Prefixes
from autosplit.solvers.stages.lattice import all_downsets, unpacked
from autosplit.solvers.stages.line import NEVER, Flight, Line

_MOST_CUTS = 400
_MOST_DOWNSETS = 20_000
_MOST_PAIRS = 40_000_000
_ROUNDS = 12


def by_orders(quotient: Quotient, fleet: Fleet, flight: Flight, upper_ns: int = NEVER) -> Line | None:
    """The best plan whose stages are runs of one of a few orders; None when none is within ``upper_ns``.

    Exact for each order of up to 400 blocks; beyond that boundaries are chosen among 400 places, and then once more
    among those around the chosen ones. O(orders x (reads + 400^2 x states of the fleet)).
    """
    best: Line | None = None
    for order in orders(quotient):
        found = by_order(quotient, fleet, flight, order, upper_ns if best is None else best.value - 1)
        best = found or best
    return best


def orders(quotient: Quotient) -> list[list[int]]:
    """Topological orders: as numbered, depth first from either end, and the one that keeps least alive."""
    found = [
        list(range(len(quotient))),
        _depth_first(quotient.before, quotient.after),
        _depth_first(quotient.after, quotient.before)[::-1],
        _least_alive(quotient),
    ]
    return [list(order) for order in dict.fromkeys(map(tuple, found))]


def _depth_first(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[int]:
    """A topological order that follows what became ready last."""
    missing = [len(blocks) for blocks in before]
    ready = [block for block in reversed(range(len(before))) if not missing[block]]
    order: list[int] = []
    while ready:
        block = ready.pop()
        order.append(block)
        for other in reversed(after[block]):
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return order


def _least_alive(quotient: Quotient) -> list[int]:
    """A topological order that takes next, of what is ready, the block that adds least to the cost of a cut there."""
    missing = [len(blocks) for blocks in quotient.before]
    unread = [len(wire.readers) for wire in quotient.wires]
    makes: list[list[int]] = [[] for _ in quotient.before]
    for number, wire in enumerate(quotient.wires):
        makes[wire.producer].append(number)

    def growth(block: int) -> int:
        made = sum(quotient.wires[number].cost for number in makes[block])
        ended = sum(
            quotient.wires[number].cost
            for number in quotient.touching[block]
            if quotient.wires[number].producer != block and unread[number] == 1
        )
        return made - ended

    heap = [(growth(block), block) for block in range(len(missing)) if not missing[block]]
    heapq.heapify(heap)
    order: list[int] = []
    while heap:
        stale, block = heapq.heappop(heap)
        now = growth(block)
        if now < stale:  # others have read what it reads: it is the last reader now
            heapq.heappush(heap, (now, block))
            continue
        order.append(block)
        for number in quotient.touching[block]:
            unread[number] -= quotient.wires[number].producer != block
        for other in quotient.after[block]:
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(heap, (growth(other), other))
    return order


def by_order(
    quotient: Quotient, fleet: Fleet, flight: Flight, order: Sequence[int], upper_ns: int = NEVER
) -> Line | None:
    """The best plan whose stages are runs of one order; see ``by_orders``."""
    count = len(order)
    if count <= _MOST_CUTS:
        return best_line(Prefixes(quotient, order), fleet, flight, upper_ns)
    cuts = _places(quotient, order, _MOST_CUTS)
    best = best_line(Prefixes(quotient, order, cuts), fleet, flight, upper_ns)
    if best is None:
        return None
    ends = np.cumsum([len(stage.blocks) for stage in best.stages])[:-1]
    half = max(1, _MOST_CUTS // (2 * max(1, len(ends))))
    near = {int(cut) for end in ends for cut in range(max(1, end - half), min(count, end + half))}
    return best_line(Prefixes(quotient, order, sorted({0, count, *near})), fleet, flight, best.value)


def _places(quotient: Quotient, order: Sequence[int], most: int) -> list[int]:
    """Lengths of prefixes: in each of ``most`` - 1 equal shares of the work, the one that is cheapest to cut."""
    crossing = _crossing(quotient, order)
    work = quotient.work_ns.min(axis=0)[list(order)] + 1 + quotient.work_ns.sum() // (10 * len(order))
    share = np.cumsum(work) * (most - 1) // (work.sum() + 1)
    chosen: dict[int, int] = {}
    for length, part in enumerate(share.tolist(), start=1):
        if part not in chosen or crossing[length] < crossing[chosen[part]]:
            chosen[part] = length
    return sorted({0, len(order), *chosen.values()})


def _crossing(quotient: Quotient, order: Sequence[int]) -> Ints:
    """What it costs to cut the order after each of its prefixes."""
    position = np.empty(len(order), dtype=np.int64)
    position[list(order)] = np.arange(len(order))
    change = np.zeros(len(order) + 2, dtype=np.int64)
    for wire in quotient.wires:
        ends = [int(position[block]) for block in (wire.producer, *wire.readers)]
        change[min(ends) + 1] += wire.cost
        change[max(ends) + 1] -= wire.cost
    crossing: Ints = np.cumsum(change)
    return crossing


def by_all_downsets(quotient: Quotient, fleet: Fleet, flight: Flight, upper_ns: int) -> tuple[Line | None, bool]:
    """The optimum, where there are at most 20,000 downsets in all.

    Returns:
        The plan (None: there is none within ``upper_ns``), and whether that is proved.
    """
    members = all_downsets(quotient, min(_MOST_DOWNSETS, _MOST_PAIRS // max(1, len(quotient.wires))))
    if members is None:
        return None, False
    return best_line(Downsets(quotient, members), fleet, flight, upper_ns), True


def by_neighbours(quotient: Quotient, fleet: Fleet, flight: Flight, line: Line, may_go_on: Callable[[], bool]) -> Line:
    """A plan that no other is better than among those whose boundaries are near its own.

    Each round: the downsets a few moves from each boundary and the cheapest cuts around it; the best plan over all
    of these; until a round finds nothing better.
    """
    for width in (0.03, 0.1, 0.3):
        for _ in range(_ROUNDS):
            if not may_go_on():
                return line
            family = Downsets(quotient, _near(quotient, line, width))
            found = best_line(family, fleet, flight, line.value - 1)
            if found is None:
                break
            line = found
    return line


def _near(quotient: Quotient, line: Line, width: float) -> Bools:
    """Downsets near the boundaries of a plan."""
    count, inside = len(quotient), np.zeros(len(quotient), dtype=np.bool_)
    found: list[Bools] = []
    most = max(8, min(400, 2_000_000 // max(1, count * len(line.stages))))
    for stage in line.stages[:-1]:
        inside = inside.copy()
        inside[list(stage.blocks)] = True
        found += [inside, *_cuts_around(quotient, inside, width)]
        found += _moves_around(quotient, inside, most)
    return np.array(found, dtype=np.bool_).reshape(-1, count)


def _moves_around(quotient: Quotient, inside: Bools, most: int) -> list[Bools]:
    """Downsets that differ from one in few blocks, fewest first."""
    masks = [
        (sum(1 << other for other in before), sum(1 << other for other in after))
        for before, after in zip(quotient.before, quotient.after, strict=True)
    ]

    def may_move(block: int, downset: int) -> bool:
        before, after = masks[block]
        return not after & downset if downset >> block & 1 else before & downset == before

    start = sum(1 << block for block in np.flatnonzero(inside).tolist())
    found = {start: [block for block in range(len(quotient)) if may_move(block, start)]}
    queue = deque(found)
    while queue and len(found) <= most:
        downset = queue.popleft()
        for block in found[downset]:
            moved = downset ^ 1 << block
            if moved not in found:
                near = dict.fromkeys((*found[downset], *quotient.before[block], *quotient.after[block]))
                found[moved] = [other for other in near if may_move(other, moved)]
                queue.append(moved)
    return list(unpacked(list(found)[1 : most + 1], len(quotient)))


def _cuts_around(quotient: Quotient, inside: Bools, width: float) -> list[Bools]:
    """The cheapest boundary that agrees with a downset outside a window of the work around it, in three windows."""
    order = [*np.flatnonzero(inside).tolist(), *np.flatnonzero(~inside).tolist()]
    done = np.cumsum(quotient.work_ns.min(axis=0)[order] + 1)
    at = int(inside.sum())
    found = []
    for low, high in ((width, width), (2 * width, 0.0), (0.0, 2 * width)):
        first = int(np.searchsorted(done, done[at - 1] - low * done[-1]))
        last = int(np.searchsorted(done, done[at - 1] + high * done[-1], side="right"))
        taken = cheapest_boundary(quotient, set(order[:first]), set(order[last:]))
        cut = np.zeros(len(quotient), dtype=np.bool_)
        cut[list(taken)] = True
        found.append(cut)
    return found
