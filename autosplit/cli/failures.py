"""What went wrong, in words and as an exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback

import click

from autosplit.cli.output import progress, show
from autosplit.errors import (
    AutosplitError,
    CapacityError,
    CaptureError,
    DeviceError,
    DeviceFaultError,
    GraphError,
    LossError,
    PlanError,
    VerifyError,
)

_KINDS: dict[type[BaseException], str] = {
    CapacityError: "capacity",
    CaptureError: "capture",
    PlanError: "plan",
    GraphError: "graph",
    VerifyError: "verify",
    LossError: "loss",
    DeviceFaultError: "device-fault",
    DeviceError: "device",
    click.ClickException: "usage",
    KeyboardInterrupt: "interrupted",
    click.Abort: "interrupted",  # what click makes of it
}
KINDS = (*_KINDS.values(), "bug")
"""What an error can be, in one word: a heading of docs/errors.md each."""
WHAT_TO_DO = {
    "capacity": "give fewer samples (--batch max finds the most that fit), another optimizer, or more devices",
    "capture": "check that the inputs are those of forward; a model that looks at values can be planned in Python, "
    "with real inputs",
    "plan": "plan again; autosplit check FILE MODEL says whether the file or the model is at fault",
    "graph": "mend the node that is named",
    "verify": "rule out that the model itself differs from run to run; rtol and atol allow for sums in another order",
    "loss": "look at the data of that step, the learning rate and the types",
    "device-fault": "autosplit devices --measure checks every link; where memory runs out, plan with what is free",
    "device": "take one of the names in the message; autosplit devices lists what is present, and with --catalogue "
    "what can be described",
    "bug": "this is a bug in autosplit: run again with --debug for the traceback, and report it",
}
"""What helps against each kind, as docs/errors.md says it at greater length; click says it of usage."""

BUG, DEVICE_FAULT, INTERRUPTED = 1, 6, 130


def report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Say what went wrong; the exit code."""
    from autosplit.report import ErrorTable, WaysTable, error_document

    kind, code = _kind(error), _exit_code(error)
    if debug:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
    elif isinstance(error, AutosplitError):
        show(ErrorTable(error, kind), err=True)
    else:
        click.echo(f"error[{kind}]: {_message(error)}", err=True)
    if isinstance(error, CapacityError) and error.model:
        _look_for_ways_out(error)
        show(WaysTable(error, is_command=True), err=True)
    if kind in WHAT_TO_DO:
        click.echo(f"what to do: {WHAT_TO_DO[kind]}", err=True)
    if as_json:
        click.echo(error_document(error, kind, _message(error), code))
    return code


def _look_for_ways_out(error: CapacityError) -> None:
    """The misfit stands, whatever comes of the search."""
    try:
        with contextlib.redirect_stdout(sys.stderr), progress("looking for ways out"):
            error.ways_out()
    except (Exception, KeyboardInterrupt) as failed:
        error.find_ways_out, error.not_tried = None, ("all",)
        click.echo(f"the search for ways out ended: {_message(failed)}", err=True)


def _kind(error: BaseException) -> str:
    if _is_device_fault(error):
        return "device-fault"
    return next((kind for cls, kind in _KINDS.items() if isinstance(error, cls)), "bug")


def _exit_code(error: BaseException) -> int:
    if _is_device_fault(error):
        return DEVICE_FAULT
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(error, click.ClickException | AutosplitError):
        return error.exit_code
    return BUG


def _message(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, AutosplitError):
        return str(error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "stopped by the user"
    return f"{type(error).__name__}: {error}"


def _is_device_fault(error: BaseException) -> bool:
    """Out of memory or a failing kernel on a device; torch need not be imported to know that it is not."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError)
