"""The lattice of downsets: all of them where they are few, else those near good boundaries."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from autosplit.solvers.blocks.quotient import Bools, Quotient


def all_downsets(
    quotient: Quotient, most: int, inside: Collection[int] = (), outside: Collection[int] = ()
) -> Bools | None:
    """Every downset that holds ``inside`` and nothing of ``outside``.

    Args:
        quotient: the blocks.
        most: give up beyond this many.
        inside: closed under predecessors.
        outside: closed under successors.

    Returns:
        [downsets, blocks]; None when there are more than ``most``. O(downsets x free blocks).

    >>> all_downsets(Quotient.of_numbers([[1, 1, 1]], before=[[], [0], [0]]), 10).sum().item()
    8
    """
    if len(quotient) >= most and not inside and not outside:
        return None  # there is one at least for each length
    start = 0
    for block in inside:
        start |= 1 << block
    closed = start
    for block in outside:
        closed |= 1 << block
    needs = [sum(1 << other for other in blocks) for blocks in quotient.before]
    # Blocks are taken one after the other in topological order: each downset that has what a block needs is
    # kept without it and doubled with it, so that none is made twice.
    found = [start]
    for block, need in enumerate(needs):
        bit = 1 << block
        if closed & bit:
            continue
        found += [downset | bit for downset in found if downset & need == need]
        if len(found) > most:
            return None
    return unpacked(found, len(quotient))


def unpacked(downsets: Iterable[int], count: int) -> Bools:
    """Downsets given as integers, bit by bit: [downsets, count]."""
    width = -(-count // 8)
    data = b"".join(downset.to_bytes(width, "little") for downset in downsets)
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    return np.unpackbits(rows, axis=1, count=count, bitorder="little").astype(np.bool_)
