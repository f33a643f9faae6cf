"""Lines: contiguous plans, and the terms on which they are looked for."""

from __future__ import annotations

from typing import NamedTuple

from autosplit.solvers.blocks.fleet import Fleet
from autosplit.solvers.blocks.quotient import Ints, Quotient

NEVER = 2**62


class Replication(NamedTuple):
    """Stages on several devices of one kind: each has the weights, and takes its share of the micro-batches.

    Attributes:
        degrees: how many replicas a stage may have, ascending.
        microbatches: between two exchanges of the gradients; None: each replica one (PipeDream).
        passes: how often the gradients pass a replica's link in one exchange by a ring of many: sent twice and received
            twice, 4, where both count, as in PipeDream and Piper; r replicas take (r - 1) / r of it.
        uniform: all stages have the same number of replicas: a grid of degree x stages.
    """

    degrees: tuple[int, ...] = (1,)
    microbatches: int | None = None
    passes: int = 4
    uniform: bool = False

    @classmethod
    def up_to(cls, most: int, microbatches: int | None = None) -> Replication:
        """Every degree up to ``most`` that deals out the micro-batches evenly.

        >>> Replication.up_to(6, 8).degrees
        (1, 2, 4)
        """
        return cls(tuple(r for r in range(1, most + 1) if (microbatches or 0) % r == 0), microbatches)

    def sync_ns(self, gradient_ns: Ints, replicas: int) -> Ints:
        """The exchange's part in the time of one micro-batch of the pipeline, rounded up."""
        often = self.microbatches or replicas
        sync: Ints = -(-self.passes * (replicas - 1) * gradient_ns // (replicas * often))
        return sync


ALONE = Replication()


class Flight(NamedTuple):
    """How a pipeline runs: what is on the way, and what its stages may do.

    Attributes:
        microbatches: of one step.
        all_at_once: whether every stage holds what all of them saved (GPipe); else a stage holds no more than there
            are stages from it to the end (1F1B).
        replication: how many copies of a stage there may be.
        recompute: whether blocks with that choice may save less and compute again.
    """

    microbatches: int = 1
    all_at_once: bool = False
    replication: Replication = ALONE
    recompute: bool = False

    def held(self, copies_to_end: int, replicas: int = 1) -> int:
        """How many micro-batches each replica of a stage holds; its copies and those of later stages are counted."""
        own = -(-self.microbatches // replicas)
        return own if self.all_at_once else min(-(-copies_to_end // replicas), own)


ONE_AT_A_TIME = Flight()


class Stage(NamedTuple):
    """A run of blocks on devices of one kind.

    Attributes:
        kind: of the devices.
        blocks: what they run.
        replicas: how many copies of the stage share the micro-batches.
        recomputed: those of the blocks that save less and compute again.
        shards: over how many devices each copy is split.
    """

    kind: int
    blocks: tuple[int, ...]
    replicas: int = 1
    recomputed: tuple[int, ...] = ()
    shards: int = 1


class Line(NamedTuple):
    """A contiguous plan: its stages in order, none of them empty.

    Attributes:
        value: the time of the busiest stage for one micro-batch.
        stages: in order.
        slack: how much less than ``value`` the least over the family may be; 0: it is the least.
    """

    value: int
    stages: tuple[Stage, ...]
    slack: int = 0

    def devices(self, fleet: Fleet) -> tuple[tuple[int, ...], ...]:
        """For each stage the positions of its devices; devices of a kind are taken in their order."""
        free = [iter(kind.devices) for kind in fleet.kinds]
        return tuple(
            tuple(next(free[stage.kind]) for _ in range(stage.replicas * stage.shards)) for stage in self.stages
        )

    def labels(self, quotient: Quotient, fleet: Fleet) -> list[int]:
        """For each block the position of its device, the first of them where its stage has replicas."""
        labels = [-1] * len(quotient)
        for stage, devices in zip(self.stages, self.devices(fleet), strict=True):
            for block in stage.blocks:
                labels[block] = devices[0]
        return labels
