"""Alike: branches that can be exchanged, as the experts of a mixture, are told apart by the order of their stages.

A *branch* is a run of blocks, each of which has only the one before it before it, and only the next after it. Two
branches are alike when an automorphism exchanges them and leaves all other blocks where they are. It makes of every
contiguous plan another one with the same loads; so there is an optimal plan in which the first blocks of alike
branches are in ascending order of stage. That is what one more constraint between them says, and there are far fewer
downsets that keep it. The first blocks only: exchanging whole branches cannot also put their other blocks in order.
Groups of alike branches have no block in common, so that each can be put in order without touching the others.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from autosplit.solvers.blocks.quotient import Quotient


def in_order(quotient: Quotient) -> Quotient:
    """The quotient with alike branches in order: the same blocks, loads and least bottleneck, and fewer plans.

    Args:
        quotient: the blocks, numbered in a topological order.

    Returns:
        The quotient with one more block before the first one of each branch that is like an earlier one. O(reads).

    >>> twins = Quotient.of_numbers([[1, 5, 5, 1]], [(2, 0, [1, 2]), (3, 1, [3]), (3, 2, [3])])
    >>> in_order(twins).before
    ((), (0,), (0, 1), (1, 2))
    """
    before = list(quotient.before)
    last: dict[Hashable, int] = {}
    for branch in _alike(quotient):
        first = branch.blocks[0]
        earlier = last.get(branch.key)
        if earlier is not None:
            before[first] = tuple(sorted({*before[first], earlier}))
        last[branch.key] = first
    return replace(quotient, before=tuple(before))


def in_order_still(ordered: Quotient, plain: Quotient) -> Quotient:
    """The quotient with alike branches in order, those too that are alike only now that blocks were merged.

    An order that is there hides that more branches are alike than those which it joins. So the branches are looked for
    in the quotient without any order, where every plan can be sorted; if the order found implies the one that is there,
    the sorted plans keep both. If not, only what is alike beside the order that is there is put in order.

    Args:
        ordered: blocks merged from a quotient in order.
        plain: the same blocks, merged from that quotient without the order.
    """
    found = in_order(plain)
    needs: list[int] = []
    for block, others in enumerate(found.before):
        needs.append(1 << block)
        for other in others:
            needs[block] |= needs[other]
    implied = all(needs[block] >> other & 1 for block, others in enumerate(ordered.before) for other in others)
    return found if implied else in_order(ordered)


class _Branch:
    """A branch, and what a branch must have in common with it to be alike: ``key``."""

    def __init__(self, quotient: Quotient, blocks: tuple[int, ...]) -> None:
        self.blocks = blocks
        figures = tuple(
            (
                *quotient.work_ns[:, block].tolist(),
                *quotient.allowed[:, block].tolist(),
                int(quotient.fixed_bytes[block]),
                int(quotient.stash_bytes[block]),
            )
            for block in blocks
        )
        self.key: Hashable = (quotient.before[blocks[0]], frozenset(quotient.after[blocks[-1]]), figures)


def _alike(quotient: Quotient) -> list[_Branch]:
    """All branches by their first blocks, with keys that are equal where two are alike."""
    branches = [_Branch(quotient, blocks) for blocks in _runs(quotient)]
    found = {block: branch for branch in branches for block in branch.blocks}
    keys = [(branch.key, _wires(quotient, branch, found)) for branch in branches]
    for branch, key in zip(branches, keys, strict=True):
        branch.key = key
    return branches


def _runs(quotient: Quotient) -> list[tuple[int, ...]]:
    """The longest runs of blocks without a fork or a join inside, by their first blocks."""
    found = []
    for first, before in enumerate(quotient.before):
        if len(before) == 1 and len(quotient.after[before[0]]) == 1:
            continue  # it goes on with the run of what is before it
        run = [first]
        while len(quotient.after[run[-1]]) == 1 and len(quotient.before[quotient.after[run[-1]][0]]) == 1:
            run.append(quotient.after[run[-1]][0])
        found.append(tuple(run))
    return found


def _wires(quotient: Quotient, branch: _Branch, branch_of: dict[int, _Branch]) -> Hashable:
    """The wires at a branch, its own blocks by place.

    A wire that other branches of the same key touch, too, must be the very same one, touched at the same places. Any
    other wire needs a counterpart of the same cost, with the same ends outside.
    """
    place = {block: f"{number}" for number, block in enumerate(branch.blocks)}
    found: list[Hashable] = []
    for number in sorted({number for block in branch.blocks for number in quotient.touching[block]}):
        wire = quotient.wires[number]
        ends = [place.get(end, end) for end in (wire.producer, *wire.readers)]
        outside = [end for end in ends if isinstance(end, int)]
        if any(branch_of[end].key == branch.key for end in outside):
            own = [end for end in ends[1:] if isinstance(end, str)]
            found.append((number, ends[0] if isinstance(ends[0], str) else None, *sorted(own)))
        else:
            found.append((wire.cost, ends[0], *sorted(ends[1:], key=repr)))
    return tuple(sorted(found, key=repr))
