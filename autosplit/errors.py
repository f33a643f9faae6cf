"""The exceptions autosplit raises, and the exit code each one becomes on the command line.

::

    AutosplitError
    +-- CaptureError     the model could not be captured as a graph           (exit 4)
    +-- CapacityError    no placement fits the memory of the devices          (exit 3)
    +-- GraphError       a cost graph is not a well-formed DAG                (exit 1)
    +-- PlanError        a plan does not belong to this model, or is invalid  (exit 5)
    +-- VerifyError      the split model computed something else              (exit 1)
    +-- DeviceError      a device is unknown, repeated or not usable          (exit 2)
        +-- DeviceFaultError  a device or a link is there, but does not work  (exit 6)

Every message says what was asked, the value found, the limit, and the next step.
"""

from __future__ import annotations

from collections.abc import Mapping


class AutosplitError(Exception):
    """Base of everything autosplit raises on purpose."""

    exit_code = 1


class CaptureError(AutosplitError):
    """The model, or the call of it, could not be captured as a torch.fx graph."""

    exit_code = 4


class CapacityError(AutosplitError):
    """No placement fits. ``needs_bytes``, ``has_bytes`` and ``short_bytes`` are by device name.

    ``proved`` is True when no placement at all can fit, False when the search found none.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        needs_bytes: Mapping[str, int] | None = None,
        has_bytes: Mapping[str, int] | None = None,
        proved: bool = False,
    ) -> None:
        super().__init__(message)
        self.needs_bytes: dict[str, int] = dict(needs_bytes or {})
        self.has_bytes: dict[str, int] = dict(has_bytes or {})
        self.proved = proved

    @property
    def short_bytes(self) -> dict[str, int]:
        """Bytes missing on each device that is over its capacity."""
        return {
            name: need - self.has_bytes[name]
            for name, need in self.needs_bytes.items()
            if need > self.has_bytes.get(name, 0)
        }


class GraphError(AutosplitError):
    """A cost graph is malformed: a cycle, an unknown reader, a negative cost."""


class PlanError(AutosplitError):
    """A plan is malformed, or was made for another model, input or version."""

    exit_code = 5


class VerifyError(AutosplitError):
    """The split model's outputs, gradients or buffers differ from the unsplit model's."""


class DeviceError(AutosplitError):
    """A device that was asked for is unknown, repeated, only described, or too small."""

    exit_code = 2


class DeviceFaultError(DeviceError):
    """A device or a link that is there does not do its work: it changes the data that passes it."""

    exit_code = 6
