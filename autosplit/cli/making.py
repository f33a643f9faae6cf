"""From words to a plan, or to a check of one: what of the commands needs torch."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from autosplit.cli import output
from autosplit.cli.inputs import InputSpec, example_inputs, form_of
from autosplit.errors import AutosplitError, PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autosplit.cli.inputs import Inputs
    from autosplit.cli.models import Loaded
    from autosplit.placement import Plan

_PIPELINES = ("pipeline", "hybrid")


def load(model: str, *, allow_code: bool) -> Loaded:
    """The model that the word names; what its code prints goes to stderr."""
    with output.progress("loading torch"):
        from autosplit.cli.models import load_model
    with output.progress(f"building {model}"), contextlib.redirect_stdout(sys.stderr):
        return load_model(model, allow_code=allow_code)


def make_plan(
    model: str, specs: Mapping[str, InputSpec], devices: str, *, allow_code: bool = False, **asked: Any
) -> Plan:
    """The plan that ``autosplit plan`` was asked for."""
    import msgspec

    with output.progress("loading torch"):
        from autosplit.api import plan as make
        from autosplit.hardware import resolve

    try:
        cluster = resolve(devices)
    except AutosplitError as error:
        raise click.BadParameter(str(error), param_hint="--devices") from error
    if asked["strategy"] in ("split", *_PIPELINES) and len(cluster.devices) == 1:
        raise click.UsageError(f"--strategy {asked['strategy']} needs two devices or more; --devices {devices} is one")
    loaded = load(model, allow_code=allow_code)
    inputs = example_inputs(loaded, specs)
    with output.progress("planning"), contextlib.redirect_stdout(sys.stderr):
        try:
            made = make(loaded.model, cluster, inputs.args, inputs.kwargs, **asked)
        except PlanError as error:
            hint = "--batch" if asked["batch"] is not None else "--strategy"
            if hint == "--batch" or asked["strategy"] in _PIPELINES or asked["microbatches"] != "auto":
                raise click.BadParameter(str(error), param_hint=hint) from error
            # there is no plan yet that could be stale, and what was asked was checked
            raise AssertionError(f"a plan that contradicts itself: {error}") from error
    return msgspec.structs.replace(made, assumptions=(*inputs.said, *made.assumptions))


def check_plan(plan: Plan, model: str, specs: Mapping[str, InputSpec], *, allow_code: bool) -> tuple[Plan, bool]:
    """Hold ``plan`` against a model.

    Returns:
        The plan, costed again where that was needed; and whether its graph was checked, for which inputs are needed.

    Raises:
        PlanError: it is stale.
        CaptureError, CapacityError: it cannot be called like that, or does not fit.
    """
    loaded = load(model, allow_code=allow_code)
    from autosplit.api import hold

    inputs = _inputs(plan, loaded, specs)
    with output.progress("checking"), contextlib.redirect_stdout(sys.stderr):
        if inputs is None:
            return hold(loaded.model, plan), False
        return hold(loaded.model, plan, inputs.args, inputs.kwargs), True


def _inputs(plan: Plan, loaded: Loaded, specs: Mapping[str, InputSpec]) -> Inputs | None:
    """As given, or as they came with the model; else as the plan was made for, where forward takes them by name."""
    if specs or loaded.args is not None or loaded.kwargs is not None:
        return example_inputs(loaded, specs)
    from autosplit.placement import SAME

    same = {name: form.removeprefix(SAME) for name, form in plan.inputs.items() if form.startswith(SAME)}
    planned = {name: form_of(plan.inputs.get(same.get(name, name), "")) for name in plan.inputs}
    known = {name: spec for name, spec in planned.items() if spec is not None}
    if not known or len(known) < len(planned):
        return None
    try:
        inputs = example_inputs(loaded, known)
    except click.UsageError:  # forward has them by other names, or within other objects
        return None
    inputs.kwargs.update({name: inputs.kwargs[one] for name, one in same.items()})
    return inputs
