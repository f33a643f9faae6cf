"""What a measurement says."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

NOISY = 0.25
"""A noise figure above this is worth a word: the machine did something else meanwhile."""


@dataclass(frozen=True)
class Timing:
    """What one operation takes on one kind of device.

    Attributes:
        forward_ns: median of the repeats.
        backward_ns: median of the repeats; 0 where there is nothing to descend.
        noise: spread of the repeats: median absolute deviation over the median, of the forward and backward together.
        workspace_bytes: most bytes taken during the forward or the backward beyond arguments and results; None where
            the device does not tell.
    """

    forward_ns: int
    backward_ns: int
    noise: float = 0.0
    workspace_bytes: int | None = None

    def scaled(self, forward: float, backward: float) -> Timing:
        """The same, times a factor each."""
        return replace(
            self, forward_ns=round(self.forward_ns * forward), backward_ns=round(self.backward_ns * backward)
        )


def timing(forward_ns: Sequence[int], backward_ns: Sequence[int], workspace_bytes: int | None = None) -> Timing:
    """The timing that some repeats say."""
    both = [f + b for f, b in zip(forward_ns, backward_ns, strict=True)]
    middle = statistics.median(both)
    spread = statistics.median(abs(sample - middle) for sample in both)
    return Timing(
        int(statistics.median(forward_ns)),
        int(statistics.median(backward_ns)),
        spread / middle if middle else 0.0,
        workspace_bytes,
    )
