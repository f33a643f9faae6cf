"""``autosplit diff`` and ``autosplit check``: plans in files. Without a model, torch is not needed."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

from autosplit.cli import output
from autosplit.cli.inputs import parse_inputs
from autosplit.cli.options import allow_code_option, debug_option, input_option, json_option
from autosplit.errors import PlanError

if TYPE_CHECKING:
    from autosplit.placement import Plan

_LARGE_BYTES = 4 * 2**20  # may take a second to read

PLAN_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


def read_plan(file: str) -> Plan:
    """The plan in a file; "-" is stdin."""
    from autosplit.placement import MAX_PLAN_BYTES, Plan

    if file == "-":
        return Plan.from_json(sys.stdin.buffer.read(MAX_PLAN_BYTES + 1))
    is_large = os.path.getsize(file) > _LARGE_BYTES
    with output.progress(f"reading {file}") if is_large else contextlib.nullcontext():
        return Plan.load(file)


@click.command(short_help="Tell what differs between two plans.")
@click.argument("before", type=PLAN_FILE)
@click.argument("after", type=PLAN_FILE)
@click.option("--exit-code", is_flag=True, help="Exit with 1 where the plans differ.")
@json_option
@debug_option
def diff(*, before: str, after: str, exit_code: bool, as_json: bool) -> int:
    """Tell what differs between two plans: strategy, devices, placement, transfers, memory, times, assumptions.

    One of them may be "-", stdin. Exits with 0 whether they differ or not, unless --exit-code is given.
    """
    from autosplit.report import DiffTable, diff_document

    if before == after == "-":
        raise click.UsageError("only one of the two plans can come from stdin")
    one, two = read_plan(before), read_plan(after)
    if as_json:
        click.echo(diff_document(one, two))
    else:
        output.show(DiffTable(one, two))
    return int(exit_code and one != two)


@click.command(short_help="Check a plan, also against a model or devices.")
@click.argument("file", type=PLAN_FILE)
@click.argument("model", required=False)
@input_option
@allow_code_option
@json_option
@debug_option
def check(*, file: str, model: str | None, inputs: tuple[str, ...], allow_code: bool, as_json: bool) -> None:
    """Check the plan in FILE: whole, as it was written, within its devices; with MODEL: whether it is still for it.

    MODEL and --input are as of `plan`; without --input the inputs that the plan was made for are taken. Exits with 5
    where the plan is broken, edited or stale, and with 3 where it does not fit. An edited plan needs MODEL: it is
    costed again.
    """
    if model is None and (inputs or allow_code):
        raise click.UsageError("--input and --allow-code are of a MODEL: give one after FILE")
    plan = read_plan(file)
    specs = parse_inputs(inputs)
    checked = ["file: whole, of this version, and without contradiction"]
    if model is None:
        _refuse_edited(plan)
        _say(plan, plan, [*checked, "figures: as they were written"], ["model: none was given"], as_json)
        return
    from autosplit.cli.making import check_plan

    held, is_graph_checked = check_plan(plan, model, specs, allow_code=allow_code)
    checked.append(f"weights: {model} has the same names, shapes and dtypes, in the same order")
    if not is_graph_checked:
        _refuse_edited(plan)
        _say(plan, held, checked, ["graph: no inputs: give each as --input NAME=TYPE:SIZES"], as_json)
        return
    checked.append(f"graph: {len(held.placement)} nodes, as planned")
    said = "predicted again, as planned" if held == plan else held.assumptions[0].removeprefix("memory: ")
    checked.append(f"memory: {said}")
    _say(plan, held, checked, [], as_json)


def _refuse_edited(plan: Plan) -> None:
    if plan.is_edited:
        raise PlanError(
            "this file is not as it was written: its checksum is of another content, so its figures may be of another "
            "placement; check it with its MODEL and inputs, which costs it again, or plan again"
        )


def _say(file: Plan, plan: Plan, checked: list[str], not_checked: list[str], as_json: bool) -> None:
    from autosplit.report import CheckDocument, CheckTable, encoded

    has = {device.name: device.memory_bytes for device in plan.cluster.devices}
    document = CheckDocument(
        strategy=plan.strategy,
        nodes=len(plan.placement),
        needs_bytes={name: device.reserved_bytes for name, device in plan.prediction.devices.items()},
        has_bytes=has,
        is_edited=file.is_edited,
        checked=tuple(checked),
        not_checked=tuple(not_checked),
    )
    if as_json:
        click.echo(encoded(document))
    else:
        output.show(CheckTable(document))
