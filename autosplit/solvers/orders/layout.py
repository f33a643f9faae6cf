"""Layouts: orders of the nodes, and the places in them where a stage may end.

Three orders are tried: program order; the order that nested min cuts give (the layers between one cut and the next,
program order inside); and depth first, branch by branch. A stage boundary never separates a group whose members are
near each other. A group that spans much of the program (tied weights at both ends) is *loose*: its nodes are left out
of the order and pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from autosplit.solvers.blocks.quotient import Wire
from autosplit.solvers.mincut import boundary_cut
from autosplit.solvers.problem import Problem

_CENTRES = 32
_MOST_CUTS = 400
_HALF_WINDOW = 160


class Layout(NamedTuple):
    """An order of all nodes and the boundaries that a stage may have.

    Attributes:
        order: node positions of the program, in the order of the layout.
        cuts: sorted boundaries, from 0 to n: a boundary j is before the j-th node of the order.
        loose: bundles that belong to no stage and are pinned to a device.
        name: for people.
    """

    order: tuple[int, ...]
    cuts: tuple[int, ...]
    loose: tuple[tuple[int, ...], ...]
    name: str


def layouts(problem: Problem) -> list[Layout]:
    """The layouts to try, program order first. O(nodes + reads) and some 32 small maximum flows."""
    loose = loose_groups(problem)
    blocks = _blocks(problem, loose)
    layers = nested_cuts(problem, blocks)
    ends, done = [], 0
    for layer in layers:
        done += sum(map(len, layer))
        ends.append(done)
    found = [
        _layout(problem, blocks, (), loose, "program order"),
        _layout(problem, [block for layer in layers for block in layer], ends, loose, "min-cut order"),
        _layout(problem, _depth_first(problem, blocks), (), loose, "depth-first order"),
    ]
    unique: dict[tuple[int, ...], Layout] = {}
    for layout in found:
        unique.setdefault(layout.order, layout)
    return list(unique.values())


def _depth_first(problem: Problem, blocks: Sequence[list[int]]) -> list[list[int]]:
    """Blocks in a topological order that follows one branch to its end before it starts the next. O(reads)."""
    after: list[set[int]] = [set() for _ in blocks]
    for wire in wires(problem, blocks):
        after[wire.producer].update(wire.readers)
    seen = [False] * len(blocks)
    finished: list[int] = []
    read = set().union(*after)
    stack = [(block, False) for block in range(len(blocks)) if block not in read]
    while stack:
        block, done = stack.pop()
        if done:
            finished.append(block)
        elif not seen[block]:
            seen[block] = True
            stack.append((block, True))
            stack.extend((reader, False) for reader in sorted(after[block]))
    return [blocks[b] for b in reversed(finished)]


def loose_groups(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """Groups that would swallow more than a sixteenth of the program if everything between them stayed together.

    Backward nodes that a graph names are far from their forward nodes, and swallow nothing.
    """
    allowed = max(2, problem.n // 16)
    backward = [node.is_backward for node in problem.graph.nodes.values()]
    found = []
    for bundle in problem.bundles:
        own = [i for i in bundle if not backward[i]]
        if own and own[-1] - own[0] + 1 - len(own) > allowed:
            found.append(tuple(bundle))
    return tuple(found)


def _blocks(problem: Problem, loose: Sequence[Sequence[int]]) -> list[list[int]]:
    """Runs of program order that no boundary may separate: merged spans of the other groups, else single nodes."""
    pinned = {i for bundle in loose for i in bundle}
    reach = list(range(problem.n))
    for bundle in problem.bundles:
        if bundle[0] not in pinned:
            reach[bundle[0]] = bundle[-1]
    blocks: list[list[int]] = []
    end = -1
    for i in range(problem.n):
        if i > end:
            blocks.append([])
        blocks[-1].append(i)
        end = max(end, reach[i])
    return blocks


def wires(problem: Problem, blocks: Sequence[Sequence[int]]) -> list[Wire]:
    """The tensors between blocks, at the cost of going from the first device to the second."""
    block_of = {i: b for b, block in enumerate(blocks) for i in block}
    found = []
    for item in problem.judge.items:
        producer = block_of[item.producer]
        readers = dict.fromkeys(block_of[reader] for reader in item.readers)
        readers.pop(producer, None)
        if readers:
            found.append(Wire(problem.judge.move_ns(item, 0, problem.k - 1), producer, tuple(readers)))
    return found


def nested_cuts(problem: Problem, blocks: list[list[int]]) -> list[list[list[int]]]:
    """The blocks in layers, such that every union of first layers is closed under predecessors and cheap to cut.

    One boundary cut in a window around each of up to 32 centres of work; what an earlier cut took in stays in.
    """
    count = len(blocks)
    all_wires = wires(problem, blocks)
    touching: list[list[int]] = [[] for _ in blocks]
    for w, wire in enumerate(all_wires):
        for b in (wire.producer, *wire.readers):
            touching[b].append(w)
    inside: set[int] = set()
    layers: list[list[list[int]]] = []
    half = min(_HALF_WINDOW, max(2, count // 10))
    for centre in _centres(problem, blocks):
        low, high = max(1, centre - half), min(count - 1, centre + half)
        forced_in = inside.union(range(low))
        free = [b for b in range(low, high) if b not in forced_in]
        chosen = dict.fromkeys(w for b in free for w in touching[b])
        _, taken = boundary_cut([all_wires[w] for w in chosen], forced_in, set(range(high, count)) - forced_in)
        layers.append([blocks[b] for b in sorted(taken - inside)])
        inside = taken
    layers.append([blocks[b] for b in range(count) if b not in inside])
    return [layer for layer in layers if layer]


def _centres(problem: Problem, blocks: Sequence[Sequence[int]]) -> list[int]:
    """Block numbers at equal shares of the work: time, bytes and number of nodes count alike."""
    judge = problem.judge
    size = [0] * problem.n
    for item in judge.items:
        size[item.producer] += item.size + item.state
    time = judge.node_ns[0]
    all_time, all_size = max(1, sum(time)), max(1, sum(size))
    total = 0.0
    centres: list[int] = []
    for b, block in enumerate(blocks[:-1]):
        total += sum(time[i] / all_time + size[i] / all_size + 1 / problem.n for i in block) / 3
        if total * (_CENTRES + 1) >= len(centres) + 1:
            centres.append(b + 1)
    return centres if len(blocks) > _CENTRES else list(range(1, len(blocks)))


def _layout(
    problem: Problem,
    blocks: Sequence[Sequence[int]],
    always: Sequence[int],
    loose: tuple[tuple[int, ...], ...],
    name: str,
) -> Layout:
    order = tuple(i for block in blocks for i in block)
    ends, done = [0], 0
    for block in blocks:
        done += len(block)
        ends.append(done)
    cuts = _cheapest(ends, crossing_costs(problem, order), always) if len(ends) > _MOST_CUTS else ends
    return Layout(order, tuple(cuts), loose, name)


def crossing_costs(problem: Problem, order: Sequence[int]) -> list[int]:
    """For each boundary of the order the cost of the tensors that cross it."""
    position = {node: p for p, node in enumerate(order)}
    delta = [0] * (problem.n + 2)
    for item in problem.judge.items:
        if item.readers:
            cost = problem.judge.move_ns(item, 0, problem.k - 1)
            delta[position[item.producer] + 1] += cost
            delta[max(position[reader] for reader in item.readers) + 1] -= cost
    costs, running = [], 0
    for change in delta[: problem.n + 1]:
        running += change
        costs.append(running)
    return costs


def _cheapest(ends: Sequence[int], costs: Sequence[int], always: Sequence[int]) -> list[int]:
    """The cheapest boundary of each of 400 equal buckets, the two ends, and those that are always kept."""
    size = -(-len(ends) // _MOST_CUTS)
    starts = [*range(0, len(ends), size), len(ends)]
    kept = {min(ends[a:b], key=lambda end: (costs[end], end)) for a, b in pairwise(starts)}
    return sorted(kept | {0, ends[-1]} | set(always))
