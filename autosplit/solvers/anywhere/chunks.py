"""Chunks: sets of blocks worth moving together, grown at random along the wires or along the order."""

from __future__ import annotations

import random
from collections.abc import Sequence

_ALONG_ORDER = 0.3  # of the chunks; the others grow along wires
_WHOLE_WIRE = 0.5  # how often a chunk takes all blocks of a wire, not one
_TRIES = 4  # per block of a chunk


def draw_chunk(
    wires: Sequence[tuple[int, tuple[int, ...]]], touching: Sequence[Sequence[int]], most: float, rng: random.Random
) -> list[int]:
    """A chunk of 2 to ``most`` blocks (sizes: log-uniform), the one that it grew from first; rarely of one.

    Args:
        wires: their costs (positive) and blocks.
        touching: for each block, the numbers of its wires.
        most: blocks of the largest chunk.
        rng: the source of all choices.
    """
    size = round(2 * (max(2.5, most) / 2) ** rng.random())
    seed = rng.randrange(len(touching))
    if rng.random() < _ALONG_ORDER:
        start = max(0, seed - int(rng.random() * size))
        return [seed, *(block for block in range(start, min(len(touching), start + size)) if block != seed)]
    chunk, inside = [seed], {seed}
    for _ in range(_TRIES * size):
        if len(chunk) >= size:
            break
        for block in _next(wires, touching[rng.choice(chunk)], size, rng):
            if block not in inside:
                inside.add(block)
                chunk.append(block)
    return chunk


def _next(
    wires: Sequence[tuple[int, tuple[int, ...]]], numbers: Sequence[int], size: int, rng: random.Random
) -> Sequence[int]:
    """Blocks of one of these wires; the dearer a wire, the likelier."""
    if not numbers:
        return ()
    chosen = rng.choices(numbers, [wires[number][0] for number in numbers])[0]
    blocks = wires[chosen][1]
    return blocks if len(blocks) <= size and rng.random() < _WHOLE_WIRE else (rng.choice(blocks),)
