"""The command line. torch is imported by the commands that need it, not by ``--help`` and ``show``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from autosplit import __version__
from autosplit.choices import Mode, OptimizerName, Rung
from autosplit.cli import output
from autosplit.cli.failures import BUG, report
from autosplit.cli.files import PLAN_FILE, check, diff, read_plan
from autosplit.cli.launch import run
from autosplit.cli.options import allow_code_option, debug_option, input_option, json_option
from autosplit.cli.pictures import draw, pictures
from autosplit.cli.shell import complete_devices, completion, schema
from autosplit.collector import fewer_collections

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autosplit.placement import Plan


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
        with fewer_collections():
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
    return None if value is None else _count_or(value, "max", "samples")


def _microbatches(_: click.Context, __: click.Parameter, value: str) -> int | str:
    """A number of micro-batches, or "auto"."""
    return _count_or(value, "auto", "micro-batches")


def _count_or(value: str, word: str, what: str) -> int | str:
    if value == word:
        return value
    if not value.isascii() or not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r}: expected a number of {what}, 1 or more, or {word}")
    return int(value)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autosplit")
def autosplit() -> None:
    """Split a PyTorch model over devices that are too small for it.

    Exit codes: 0 done, 1 bug, 2 usage, 3 does not fit, 4 cannot be captured, 5 stale or broken plan, 6 device fault.
    """


@autosplit.command()
@click.argument("model")
@input_option
@click.option(
    "--devices",
    required=True,
    metavar="SPEC",
    shell_complete=complete_devices,
    help="4xA100-80GB or 2x24GiB (described), cuda:0,cuda:1, auto, or cluster.toml.",
)
@click.option("--for", "mode", type=click.Choice(get_args(Mode)), default="infer", show_default=True)
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
    type=click.Choice(get_args(OptimizerName), case_sensitive=False),
    help="What training memory is planned for.  [default: adamw]",
)
@click.option(
    "--strategy",
    type=click.Choice(["auto", "single", "replicate", "split", "pipeline", "hybrid"]),
    default="auto",
    show_default=True,
    help="auto weighs all: a copy a device, a split, a pipeline, replicas of these.",
)
@click.option(
    "--microbatches",
    callback=_microbatches,
    default="auto",
    metavar="N|auto",
    show_default=True,
    help="Into how many a pipeline cuts the batch of a call.",
)
@click.option(
    "--schedule",
    type=click.Choice(["auto", "gpipe", "1f1b"]),
    default="auto",
    show_default=True,
    help="In which order a pipeline runs its passes.",
)
@click.option(
    "--capture",
    type=click.Choice(["auto", *get_args(Rung)]),
    default="auto",
    show_default=True,
    help="As one graph, as several, with modules left as they are, or module by module; auto: the first that holds.",
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
@click.option(
    "--accumulate",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Calls whose gradients are added up before the optimizer steps.",
)
@allow_code_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save the plan.")
@pictures
@json_option
@debug_option
def plan(
    *,
    model: str,
    inputs: tuple[str, ...],
    devices: str,
    mode: Any,
    objective: Any,
    optimizer: str | None,
    strategy: Any,
    microbatches: int | str,
    schedule: Any,
    capture: Any,
    profile: bool | None,
    batch: int | str | None,
    accumulate: int,
    allow_code: bool,
    out: Path | None,
    as_json: bool,
    **drawn: Path | None,
) -> None:
    """Decide what of MODEL runs where. Nothing is moved, no weight is read.

    MODEL is pkg.mod:callable (a Module class, or a function that returns a module, or a module and its inputs; the
    current directory is importable), hf:DIR (a folder with the config.json of a transformers model; no weights are
    needed), or FILE.pt2 with --allow-code.
    """
    from autosplit.cli.inputs import parse_inputs
    from autosplit.cli.making import make_plan

    if optimizer is not None and mode == "infer":
        raise click.UsageError("--optimizer is of training only: add --for train, or leave it out")
    if strategy in ("single", "replicate", "split") and (microbatches, schedule) != ("auto", "auto"):
        raise click.UsageError(f"--strategy {strategy} has no pipeline: leave out --microbatches and --schedule")
    if accumulate > 1 and mode == "infer":
        raise click.UsageError("--accumulate is of training only: add --for train, or leave it out")
    specs = parse_inputs(inputs)
    made = make_plan(
        model,
        specs,
        devices,
        allow_code=allow_code,
        mode=mode,
        objective=objective,
        optimizer=optimizer,
        strategy=strategy,
        microbatches=microbatches,
        schedule=schedule,
        capture=capture,
        profile="auto" if profile is None else profile,
        batch=batch,
        accumulate=accumulate,
    )
    if out is not None:
        _save(made, out)
    draw(made, **drawn)
    _show(made, as_json)


@autosplit.command(short_help="Print a plan that was saved.")
@click.argument("file", type=PLAN_FILE)
@pictures
@json_option
@debug_option
def show(file: str, as_json: bool, **drawn: Path | None) -> None:
    """Print the plan in FILE, as ``plan --out`` or ``plan --json`` wrote it ("-" is stdin)."""
    stored = read_plan(file)
    draw(stored, **drawn)
    _show(stored, as_json)
    if stored.is_edited:
        click.echo(f"edited since it was written, its figures are of before: autosplit check {file} MODEL", err=True)


@autosplit.command(short_help="List devices and what is known of them.")
@click.argument("spec", required=False, shell_complete=complete_devices)
@click.option("--measure", is_flag=True, help="Measure the links between devices that are present, and check them.")
@click.option("--catalogue", is_flag=True, help="List the devices that a spec can name, with the sources.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a cluster.toml.")
@json_option
@debug_option
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


@autosplit.command(short_help="Train a model that fits no virtual device.")
@json_option
@debug_option
def demo(*, as_json: bool) -> int:
    """Train a GPT that fits no single virtual device, split, next to the unsplit model.

    Needs nothing but this package: the devices are virtual, the data is one random batch. Exits with 1 where the two
    differ.
    """
    with output.progress("loading torch"):
        from autosplit.demo import run
        from autosplit.report import DemoDocument, encoded
    if not as_json:
        return run(output.show, output.progress)
    code = run(partial(output.show, err=True), output.progress)
    click.echo(encoded(DemoDocument(identical=code == 0)))
    return code


for command in (run, diff, check, completion, schema):
    autosplit.add_command(command)


# ---------------------------------------------------------------- what the commands share


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
