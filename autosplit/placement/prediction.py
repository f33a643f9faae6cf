"""Prediction: what each device is predicted to hold and do in one step."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What a file may hold as a size, a time or a number of things; checked when it is read."""

TimeSource = Literal["estimated", "calibrated", "measured"]


class Breakdown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device's memory is made of at the moment of its peak; the sum of all is what it reserves.

    Attributes:
        weights_bytes: parameters and buffers.
        gradients_bytes: of the parameters.
        optimizer_bytes: what the optimizer keeps from step to step.
        activations_bytes: inputs, what the forward computes and what it saves for the backward.
        cache_bytes: what an object of the caller holds from call to call, such as a KV cache.
        workspace_bytes: temporaries of one operator, of the backward, or of the optimizer's step.
        reserve_bytes: taken from the device beyond the peak: fragments that the allocator keeps.
    """

    weights_bytes: Count = 0
    gradients_bytes: Count = 0
    optimizer_bytes: Count = 0
    activations_bytes: Count = 0
    cache_bytes: Count = 0
    workspace_bytes: Count = 0
    reserve_bytes: Count = 0

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by the name of the part: weights, gradients, ..."""
        return {name.removesuffix("_bytes"): getattr(self, name) for name in self.__struct_fields__}


class Timeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes allocated on a device over one step; as few points as show its shape, the peak among them.

    Attributes:
        positions: of each point, how many operators ran before it, on any device.
        allocated_bytes: from that point on.
        phases: (name, position) of each beginning of a "forward", "backward" or "step".
    """

    positions: tuple[Count, ...] = ()
    allocated_bytes: tuple[Count, ...] = ()
    phases: tuple[tuple[str, Count], ...] = ()


class DevicePrediction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one device is predicted to hold and do in one step.

    Attributes:
        peak_bytes: most bytes allocated at once (each allocation rounded as the device's allocator rounds).
        reserved_bytes: most bytes the caching allocator takes from the device; this is what must fit.
        weight_bytes: parameters and buffers at home there.
        busy_ns: compute time.
        breakdown: what the reserved bytes are made of, at the peak.
        timeline: bytes allocated over one step.
    """

    peak_bytes: Count
    reserved_bytes: Count
    weight_bytes: Count
    busy_ns: Count
    breakdown: Breakdown = Breakdown()
    timeline: Timeline = Timeline()


class Span(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a device, or the way between two, does in one step from one moment to another.

    Attributes:
        device: that computes; of a copy the one that sends; names as in Device.name, or "host".
        kind: "forward", "backward", "send" (a copy in the forward pass) or "return" (of a gradient, in the backward).
        start_ns, end_ns: since the step began.
        to: of a copy: the device that receives.
        stage: position of the stage in a pipeline.
        microbatch: which one.
    """

    device: str
    kind: Literal["forward", "backward", "send", "return"]
    start_ns: int
    end_ns: int
    to: str = ""
    stage: int = 0
    microbatch: int = 0


class Prediction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Predicted cost of one step under a plan, by device name, and where the figures come from.

    ``step_ns`` is the makespan; ``transfer_ns`` adds up all transfers, which may run beside other work.
    ``time_source``: "measured" for every operation on every kind of device, "calibrated" where only some were and the
    estimates of the others follow them, "estimated" where none was. ``memory_source`` is "emitted" where the emitted
    program ran on fake tensors, "estimated" where ``recost`` says. ``spans`` is the step as a schedule, as far as it is
    known: who does what when, ordered by start.
    """

    devices: dict[str, DevicePrediction]
    step_ns: Count
    transfer_ns: Count
    time_source: TimeSource = "estimated"
    memory_source: Literal["emitted", "estimated"] = "emitted"
    spans: tuple[Span, ...] = ()
