"""Schedule: in which order the stages of a pipeline run the passes of their micro-batches. No torch here.

The names and the orders are those of torch.distributed.pipelining, which runs them across processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

ScheduleName = Literal["gpipe", "1f1b", "interleaved1f1b", "loopedbfs", "interleavedzerobubble", "zbvzerobubble"]
"""As torch.distributed.pipelining names them, in small letters."""


class Pass(NamedTuple):
    """The forward ("F") or backward ("B") pass of one micro-batch on one stage."""

    stage: int
    kind: Literal["F", "B"]
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


def orders(schedule: ScheduleName, stages: int, microbatches: int, *, trains: bool) -> list[list[Pass]]:
    """The passes of each stage in the order in which it runs them.

    Args:
        schedule: "gpipe" runs all forward passes, then all backward passes (Huang et al., 2019); "1f1b" runs as few
            forward passes ahead as keep all stages busy, then one backward and one forward in turn (PipeDream-Flush,
            Narayanan et al., 2021). Those of several stages a device are torch's alone.
        stages: how many.
        microbatches: how many.
        trains: with backward passes.

    Raises:
        ValueError: another schedule.

    >>> [" ".join(map(str, order)) for order in orders("1f1b", 2, 3, trains=True)]
    ['0F0 0F1 0B0 0F2 0B1 0B2', '1F0 1B0 1F1 1B1 1F2 1B2']
    """
    if schedule not in ("gpipe", "1f1b"):
        raise ValueError(f"schedule {schedule!r} runs across processes only; in one it is 'gpipe' or '1f1b'")
    ahead = [microbatches if schedule == "gpipe" else min(stages - s, microbatches) for s in range(stages)]
    return [_order(s, ahead[s], microbatches, trains) for s in range(stages)]


def _order(stage: int, ahead: int, microbatches: int, trains: bool) -> list[Pass]:
    forwards = [Pass(stage, "F", i) for i in range(microbatches)]
    if not trains:
        return forwards
    backwards = [Pass(stage, "B", i) for i in range(microbatches)]
    order = forwards[:ahead]
    for i, backward in enumerate(backwards):
        order += [backward, *forwards[ahead + i : ahead + i + 1]]
    return order


def in_turn(by_stage: Sequence[Sequence[Pass]]) -> list[Pass]:
    """One order of all passes in which one thread can issue them: each after what it waits for, the stages in turn.

    A forward pass waits for that of the stage before, a backward pass for that of the stage after, and for the forward
    pass of its own stage.

    Raises:
        ValueError: the orders wait for each other in a circle.

    >>> print(*in_turn(orders("1f1b", 2, 2, trains=True)))
    0F0 0F1 1F0 1B0 0B0 1F1 1B1 0B1
    """
    pending = [list(reversed(order)) for order in by_stage]
    total, last = sum(map(len, pending)), len(pending) - 1
    issued: list[Pass] = []
    done: set[Pass] = set()

    def ready(p: Pass) -> bool:
        if p.kind == "F":
            return p.stage == 0 or Pass(p.stage - 1, "F", p.microbatch) in done
        after = p.stage == last or Pass(p.stage + 1, "B", p.microbatch) in done
        return after and Pass(p.stage, "F", p.microbatch) in done

    while len(issued) < total:
        turn = [queue.pop() for queue in pending if queue and ready(queue[-1])]
        if not turn:
            raise ValueError("the orders of the stages wait for each other in a circle")
        issued += turn
        done.update(turn)
    return issued
