"""The exceptions autosplit raises, and the exit code each one becomes on the command line.

::

    AutosplitError
    +-- CaptureError     the model could not be captured as a graph           (exit 4)
    +-- CapacityError    no placement fits the memory of the devices          (exit 3)
    +-- GraphError       a cost graph is not a well-formed DAG                (exit 1)
    +-- PlanError        a plan does not belong to this model, or is invalid  (exit 5)
    +-- VerifyError      the split model computed something else              (exit 1)
    +-- LossError        the loss is nan or infinite, and was watched         (exit 1)
    +-- DeviceError      a device is unknown, repeated or not usable          (exit 2)
        +-- DeviceFaultError  a device or a link is there, but does not work  (exit 6)

Every message says what was asked, the value found, the limit, and the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WAYS_OUT_BUDGET_S = 20.0
"""Seconds that looking for ways out of a misfit may take before it stops to begin with new ones."""


class AutosplitError(Exception):
    """Base of everything autosplit raises on purpose."""

    exit_code = 1


class CaptureError(AutosplitError):
    """The model, or the call of it, could not be captured as a torch.fx graph."""

    exit_code = 4


@dataclass(frozen=True)
class WayOut:
    """Something that makes a model fit; it was planned, exactly as a plan is, before it is offered.

    Attributes:
        kind: "batch", "recompute", "optimizer" or "devices".
        write: what to change, in short: "batch=6", "recompute layers.*", "optimizer='sgd'", "one more device like
            gpu:0".
        how: the same as an instruction.
        strategy: "single", "replicate" or "split".
        peak_bytes: most bytes allocated at once, by device name.
        reserved_bytes: most bytes that the allocator takes, by device name: this fits.
        step_ns: predicted nanoseconds of one step as it is then (of "batch" a step of so many samples).
        relative_time: predicted time of the work of the step that was asked for, in times of that step on the fastest
            device, were its memory without end.
    """

    kind: str
    write: str
    how: str
    strategy: str
    peak_bytes: Mapping[str, int]
    reserved_bytes: Mapping[str, int]
    step_ns: int
    relative_time: float


FindWaysOut = Callable[[float], tuple[Sequence[WayOut], tuple[str, ...]]]
"""Takes a budget in seconds; gives the ways out found, and the kinds that there was no time for."""


class CapacityError(AutosplitError):
    """No placement fits. ``needs_bytes``, ``has_bytes`` and ``short_bytes`` are by device name.

    ``proved`` is True when no placement at all can fit, False when the search found none. ``model`` is the model's
    class and ``mode`` "infer" or "train"; both are "" where the engine alone was asked.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        needs_bytes: Mapping[str, int] | None = None,
        has_bytes: Mapping[str, int] | None = None,
        proved: bool = False,
        model: str = "",
        mode: str = "",
    ) -> None:
        super().__init__(message)
        self.needs_bytes: dict[str, int] = dict(needs_bytes or {})
        self.has_bytes: dict[str, int] = dict(has_bytes or {})
        self.proved = proved
        self.model = model
        self.mode = mode
        self.not_tried: tuple[str, ...] = ()
        """Kinds of ways out that the last ``ways_out`` had no time to finish."""
        self.was_looked_into = False
        """Whether ``ways_out`` looked for any."""
        self._found: tuple[WayOut, ...] = ()
        self._searched_s = -1.0  # the largest budget that it was given
        self.find_ways_out: FindWaysOut | None = None

    @property
    def short_bytes(self) -> dict[str, int]:
        """Bytes missing on each device that is over its capacity."""
        return {
            name: need - self.has_bytes.get(name, 0)
            for name, need in self.needs_bytes.items()
            if need > self.has_bytes.get(name, 0)
        }

    def ways_out(self, budget_s: float = WAYS_OUT_BUDGET_S) -> tuple[WayOut, ...]:
        """What would make the model fit, each planned again, cheapest first; found at the first call of this.

        First what changes neither the devices nor what is computed (fewer samples at once, recomputing), by time;
        then another optimizer; then more devices.

        Args:
            budget_s: no new plan, nor a new try within one, is begun after so many seconds; the kinds that were left
                are in ``not_tried``, and are tried again if a later call gives more time.

        Returns:
            The ways found, maybe none; none also where the error is not of ``plan`` or ``partition``.
        """
        if self.find_ways_out is not None and budget_s > self._searched_s:
            self.was_looked_into, self._searched_s = True, budget_s
            found, self.not_tried = self.find_ways_out(budget_s)
            self._found = tuple(found)
            if not self.not_tried:
                self.find_ways_out = None  # it holds the model
        return self._found

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "find_ways_out"}  # it cannot travel
        return type(self), self.args, {**state, "find_ways_out": None}


class GraphError(AutosplitError):
    """A cost graph is malformed: a cycle, an unknown reader, a negative cost."""


class PlanError(AutosplitError):
    """A plan is malformed, or was made for another model, input or version."""

    exit_code = 5


class VerifyError(AutosplitError):
    """The split model's outputs, gradients or buffers differ from the unsplit model's."""


class LossError(AutosplitError):
    """The loss is not finite; raised only where that was asked for."""


class DeviceError(AutosplitError):
    """A device that was asked for is unknown, repeated, only described, or too small."""

    exit_code = 2


class DeviceFaultError(DeviceError):
    """A device or a link that is there does not do its work: it changes the data that passes it."""

    exit_code = 6
