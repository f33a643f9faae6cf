"""The wires of a quotient as arrays."""

from __future__ import annotations

import numpy as np

from autosplit.solvers.blocks.quotient import Bools, Ints, Quotient
from autosplit.solvers.certificate.spans import Closure


class Wires:
    """The wires of a quotient as arrays; the readers of wire t are ``readers[starts[t] : starts[t] + sizes[t]]``."""

    def __init__(self, quotient: Quotient, closure: Closure) -> None:
        kept = [(number, wire) for number, wire in enumerate(quotient.wires) if wire.cost and wire.readers]
        wires = [wire for _, wire in kept]
        self.numbers = np.array([number for number, _ in kept], dtype=np.int64)
        self.cost = np.array([wire.cost for wire in wires], dtype=np.float64)
        self.producer = np.array([wire.producer for wire in wires], dtype=np.int64)
        self.sizes = np.array([len(wire.readers) for wire in wires], dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.readers = np.array([reader for wire in wires for reader in wire.readers], dtype=np.int64)
        # A reader that need not come after the producer may be in an earlier stage: a gradient.
        self.back = np.zeros(len(wires), dtype=np.bool_)
        for number, wire in enumerate(wires):
            if not all(wire.producer in quotient.before[reader] for reader in wire.readers):
                after = closure.after(self.producer[number : number + 1])[0]
                self.back[number] = not after[list(wire.readers)].all()

    def __len__(self) -> int:
        return len(self.cost)

    def some(self, blocks: Bools) -> Bools:
        """[wires], whether some reader is among the blocks."""
        found: Bools = np.logical_or.reduceat(blocks[self.readers], self.starts)
        return found

    def every(self, blocks: Bools) -> Bools:
        """[wires], whether every reader is among the blocks."""
        found: Bools = np.logical_and.reduceat(blocks[self.readers], self.starts)
        return found

    def readers_in(self, members: Bools, chosen: Ints) -> Ints:
        """[rows of members, chosen wires], how many readers are in each."""
        sizes = self.sizes[chosen]
        starts = np.cumsum(sizes) - sizes
        index = np.repeat(self.starts[chosen] - starts, sizes) + np.arange(sizes.sum())
        counts: Ints = np.add.reduceat(members[:, self.readers[index]], starts, axis=1, dtype=np.int64)
        return counts

    def moved(self, stage: Ints, stages: int) -> tuple[Ints, Ints]:
        """What each stage of a plan receives and sends, given the stage of each block."""
        home, which = stage[self.producer], np.repeat(np.arange(len(self)), self.sizes)
        read = stage[self.readers]
        away = np.flatnonzero(read != home[which])
        cost = self.cost.astype(np.int64)
        received, sent = np.zeros(stages, dtype=np.int64), np.zeros(stages, dtype=np.int64)
        copies = np.unique(which[away] * stages + read[away])
        np.add.at(received, copies % stages, cost[copies // stages])
        crossing = np.unique(which[away])
        np.add.at(sent, home[crossing], cost[crossing])
        return received, sent

    def ranks(self, chosen: Ints) -> tuple[Ints, Ints]:
        """For every read of the chosen wires: which of them, and its rank from 0 among the wire's reads."""
        sizes = self.sizes[chosen]
        which = np.repeat(np.arange(len(chosen)), sizes)
        return which, np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
