"""The decision: single, replicate, split, pipeline or hybrid, by predicted step time and memory."""

from __future__ import annotations

from autosplit.errors import PlanError

_IN_ONE_PROCESS = ("auto", "gpipe", "1f1b")


def check_pipeline(strategy: str, microbatches: object, schedule: str) -> None:
    """Check what was asked of a pipeline.

    Raises:
        PlanError: no such number of micro-batches, a schedule that is not planned, or one of both for a strategy that
            has no pipeline.
    """
    if microbatches != "auto" and (type(microbatches) is not int or microbatches < 1):
        raise PlanError(f"microbatches={microbatches!r}: expected a number, 1 or more, or 'auto'")
    if schedule not in _IN_ONE_PROCESS:
        raise PlanError(
            f"schedule={schedule!r}: it wants several stages a device, and one is planned for each; "
            f"expected one of {', '.join(map(repr, _IN_ONE_PROCESS))}"
        )
    if strategy in ("single", "replicate", "split"):
        for name, value in (("microbatches", microbatches), ("schedule", schedule)):
            if value != "auto":
                raise PlanError(
                    f"{name}={value!r} with strategy={strategy!r}, which has no pipeline: "
                    "ask for strategy='pipeline', or leave it out"
                )
