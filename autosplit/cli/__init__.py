"""The command line. torch is imported by the commands that need it, not by ``--help`` and ``show``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autosplit import __version__
from autosplit.cli import output
from autosplit.cli.failures import BUG, report
from autosplit.cli.launch import run
from autosplit.errors import AutosplitError, PlanError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autosplit.placement import Plan

_OPTIMIZERS = (
    "sgd",
    "momentum",
    "adam",
    "adamw",
    "adafactor",
    "adagrad",
    "rmsprop",
)  # as autosplit.optimizers names them

_debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else.")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the words after ``autosplit``; None reads sys.argv.

    Returns:
        The exit code: 0 done, 1 a bug or a difference, 2 usage, 3 does not fit, 4 cannot be captured,
        5 a plan that is invalid or of another model, 6 a device failed, 130 interrupted.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        result = autosplit.main(words, prog_name="autosplit", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:  # the reader of our output left: nothing more to say, also not at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BUG
    except (Exception, KeyboardInterrupt, click.Abort) as error:
        return report(error, as_json="--json" in words, debug="--debug" in words)


def _batch(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """A number of samples, or "max"."""
    if value is None or value == "max":
        return value
    if not value.isascii() or not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r}: expected a number of samples, 1 or more, or max")
    return int(value)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autosplit")
def autosplit() -> None:
    """Split a PyTorch model over devices that are too small for it.

    Exit codes: 0 done, 1 bug, 2 usage, 3 does not fit, 4 cannot be captured, 5 stale or broken plan, 6 device fault.
    """


@autosplit.command()
@click.argument("model")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SPEC",
    help="An argument of forward: NAME=TYPE:SIZES, as in ids=i64:4x2048 or x=f32:2x3x224x224; t=i64: is one number.",
)
@click.option(
    "--devices",
    required=True,
    metavar="SPEC",
    help="4xA100-80GB or 2x24GiB (described), cuda:0,cuda:1, auto, or cluster.toml.",
)
@click.option("--for", "mode", type=click.Choice(["infer", "train"]), default="infer", show_default=True)
@click.option(
    "--minimise",
    "--minimize",
    "objective",
    type=click.Choice(["auto", "latency", "throughput", "memory"]),
    default="auto",
    help="What a split minimises.  [default: latency]",
)
@click.option(
    "--optimizer",
    type=click.Choice(_OPTIMIZERS, case_sensitive=False),
    help="What training memory is planned for.  [default: adamw]",
)
@click.option(
    "--strategy",
    type=click.Choice(["auto", "single", "replicate", "split"]),
    default="auto",
    show_default=True,
    help="auto splits only a model that does not fit one device.",
)
@click.option(
    "--profile/--no-profile",
    default=None,
    help="Measure operations on the devices that are present.  [default: on accelerators; else as measured before]",
)
@click.option(
    "--batch",
    callback=_batch,
    metavar="N|max",
    help="Samples in one call, in place of the inputs'; max: as many as fit.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save the plan.")
@_json
@_debug
def plan(
    *,
    model: str,
    inputs: tuple[str, ...],
    devices: str,
    mode: Any,
    objective: Any,
    optimizer: str | None,
    strategy: Any,
    profile: bool | None,
    batch: int | str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Decide what of MODEL runs where. Nothing is moved, no weight is read.

    MODEL is pkg.mod:callable (a Module class, or a function that returns a module; the current directory is
    importable), or hf:DIR (a folder with the config.json of a transformers model; no weights are needed).
    """
    from autosplit.cli.inputs import parse_inputs

    if optimizer is not None and mode == "infer":
        raise click.UsageError("--optimizer is of training only: add --for train, or leave it out")
    specs = parse_inputs(inputs)
    with contextlib.redirect_stdout(sys.stderr):  # whatever the user's code prints: stdout is for the plan
        made = _make_plan(
            model,
            specs,
            devices,
            mode=mode,
            objective=objective,
            optimizer=optimizer,
            strategy=strategy,
            profile="auto" if profile is None else profile,
            batch=batch,
        )
    if out is not None:
        _save(made, out)
    _show(made, as_json)


@autosplit.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@_json
@_debug
def show(file: str, as_json: bool) -> None:
    """Print the plan in FILE, as ``plan --out`` or ``plan --json`` wrote it ("-" is stdin)."""
    from autosplit.placement import MAX_PLAN_BYTES, Plan

    stored = Plan.from_json(sys.stdin.buffer.read(MAX_PLAN_BYTES + 1)) if file == "-" else Plan.load(file)
    _show(stored, as_json)


@autosplit.command()
@click.argument("spec", required=False)
@click.option("--measure", is_flag=True, help="Measure the links between devices that are present, and check them.")
@click.option("--catalogue", is_flag=True, help="List the devices that a spec can name, with the sources.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a cluster.toml.")
@_json
@_debug
def devices(*, spec: str | None, measure: bool, catalogue: bool, out: Path | None, as_json: bool) -> None:
    """List the devices that are present, or those that SPEC names, and what is known of them and of their links.

    SPEC is what --devices of `plan` takes: 4xA100-80GB, 2x24GiB, cuda:0,cuda:1, cluster.toml. What --out writes, a
    plan can be made for: --devices FILE.
    """
    from autosplit.cli import inventory
    from autosplit.device import is_described

    if catalogue:
        if spec is not None or measure or out is not None:
            raise click.UsageError("--catalogue lists what a spec can name: give it alone, or with --json")
        _list(inventory.catalogue_document() if as_json else inventory.catalogue_listing())
        return
    if measure and spec is not None and is_described(spec):
        raise click.UsageError(f"--measure is for devices that are present; {spec!r} describes some that need not be")
    with output.progress("looking for devices"):
        stock = inventory.take_stock(spec)
    if measure and not stock.is_measurable:
        click.echo("nothing to measure: there is no accelerator, and so no link", err=True)
    elif measure:
        with output.progress("measuring links"):
            stock = inventory.measured(stock)
    if out is not None:
        _write(lambda: inventory.save(stock.cluster, out), out)
        click.echo(f"cluster saved: autosplit plan MODEL --devices {out}", err=True)
    _list(inventory.document(stock) if as_json else inventory.listing(stock))


@autosplit.command()
@_debug
def demo() -> int:
    """Train a GPT that fits no single virtual device, split, next to the unsplit model.

    Needs nothing but this package: the devices are virtual, the data random.
    """
    with output.progress("loading torch"):
        from autosplit.demo import run
    return run(output.show, output.progress)


autosplit.add_command(run)


# ---------------------------------------------------------------- what the commands share


def _make_plan(model: str, specs: Any, devices: str, **asked: Any) -> Plan:
    with output.progress("loading torch"):
        from autosplit.api import plan as make
        from autosplit.hardware import resolve
    from autosplit.cli.inputs import bind
    from autosplit.cli.models import load_model

    try:
        cluster = resolve(devices)
    except AutosplitError as error:
        raise click.BadParameter(str(error), param_hint="--devices") from error
    if asked["strategy"] == "split" and len(cluster.devices) == 1:
        raise click.UsageError(f"--strategy split needs two devices or more; --devices {devices} is one")
    with output.progress(f"building {model}"):
        module = load_model(model)
    kwargs = bind(module, specs)
    with output.progress("planning"):
        try:
            return make(module, cluster, kwargs=kwargs, **asked)
        except PlanError as error:
            if asked["batch"] is not None:
                raise click.BadParameter(str(error), param_hint="--batch") from error
            # there is no plan yet that could be stale, and what was asked was checked
            raise AssertionError(f"a plan that contradicts itself: {error}") from error


def _save(plan: Plan, out: Path) -> None:
    _write(lambda: plan.save(out), out)
    click.echo(f"plan saved: autosplit show {out}", err=True)


def _write(write: Callable[[], None], out: Path) -> None:
    try:
        write()
    except OSError as error:
        raise click.BadParameter(f"cannot write {str(out)!r}: {error.strerror}", param_hint="--out") from error


def _list(found: str | Iterable[RenderableType]) -> None:
    """Print one JSON document, or what people read."""
    if isinstance(found, str):
        click.echo(found)
        return
    for part in found:
        output.show(part)


def _show(plan: Plan, as_json: bool) -> None:
    from autosplit.report import PlanTable, document

    if as_json:
        click.echo(document(plan))
    else:
        output.show(PlanTable(plan))
