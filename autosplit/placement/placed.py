"""Placement: what a solver returns, and the cost model that it is good under."""

from __future__ import annotations

from typing import Literal

import msgspec

Objective = Literal["latency", "throughput", "memory"]


class CostModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a transfer costs, and how many micro-batches are on the way.

    Attributes:
        transfers: who pays, once for each tensor. "direct": the sender for each device that it sends to, and each of
            these, over the link of the pair. "host": through the memory of the host; the sender once, and each device
            that reads it, over its own link to the host; devices of kind "cpu" are the host and pay nothing.
            "receiver": only the devices that read it, over the link of the pair.
        overlap: transfers run beside compute: the load of a device is the longer of the two, not their sum.
        microbatches: of one step, in a pipeline.
        schedule: "1f1b" holds what is saved of as many micro-batches as there are stages from it to the end, "gpipe"
            that of all.
    """

    transfers: Literal["direct", "host", "receiver"] = "direct"
    overlap: bool = False
    microbatches: int = 1
    schedule: Literal["1f1b", "gpipe"] = "1f1b"

    def __post_init__(self) -> None:
        if self.transfers not in ("direct", "host", "receiver") or self.schedule not in ("1f1b", "gpipe"):
            raise ValueError(
                f"transfers {self.transfers!r}, schedule {self.schedule!r}: expected direct, host or receiver, and "
                "1f1b or gpipe"
            )
        if self.microbatches < 1:
            raise ValueError(f"microbatches is {self.microbatches}; it must be 1 or more")

    def in_flight(self, stages_to_end: int) -> int:
        """Micro-batches that a stage holds; it and those after it are ``stages_to_end``."""
        return min(self.microbatches, stages_to_end) if self.schedule == "1f1b" else self.microbatches


DIRECT = CostModel()
"""Each device pays for what it sends and receives; one micro-batch."""


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stage of a pipeline whose micro-batches its r devices share.

    It takes (compute + transfers) / r for each micro-batch of the pipeline; a transfer goes over the slowest link
    between its two stages. In training its devices exchange the gradients of their parameters once a step, in a ring:
    that is 4 (r - 1) / r of the time of sending them once, shared by the micro-batches of the step. With transfers that
    overlap it takes the longer of compute / r + exchange, and transfers / r. Each share is rounded up.

    Each device holds what is saved of as many micro-batches as come to it: of n in a step n / r, and with "1f1b" no
    more than (devices of this and of all later stages) / r; both rounded up.

    Attributes:
        devices: names; each has all nodes of the stage, and runs its share of the micro-batches.
        nodes: names, in program order.
        recomputed: those of them that save less and are computed again for the backward.
    """

    devices: tuple[str, ...]
    nodes: tuple[str, ...]
    recomputed: tuple[str, ...] = ()


class Placement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a solver returns: a device for each node, and how good that is known to be.

    Attributes:
        devices: device name by node name, in program order.
        objective: what was minimised.
        value: its value for this placement (ns, or bytes for "memory").
        bound: proved lower bound of the value over all placements that fit, in the same unit.
        method: the algorithm that found it, for people.
        stages: of a pipeline with replicas or recomputation, in order; ``devices`` then has the first device of each
            node's stage. Empty: each device is for itself, and nothing is recomputed.
    """

    devices: dict[str, str]
    objective: Objective
    value: int
    bound: int
    method: str
    stages: tuple[Stage, ...] = ()

    @property
    def gap(self) -> float:
        """(value - bound) / value: 0.0 means proved optimal."""
        return 0.0 if self.value == 0 else (self.value - self.bound) / self.value
