"""The line from a model to a plan: capture, cost, solve, emit, predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from torch import nn

from autosplit.api.batch import Example, Trials, largest
from autosplit.api.describe import describe
from autosplit.api.identity import all_inputs
from autosplit.api.problem import Problem, Request
from autosplit.api.recosting import remember
from autosplit.api.strategy import decide
from autosplit.api.ways import find_ways_out
from autosplit.capture import Captured, Frontend, climb
from autosplit.collector import fewer_collections
from autosplit.errors import CapacityError, CaptureError, PlanError
from autosplit.placement import SAME, Plan


def make_plan(
    model: nn.Module, frontend: Frontend, args: Sequence[Any], kwargs: Mapping[str, Any], request: Request
) -> tuple[Plan, Captured]:
    """Plan ``model``, captured through ``frontend``, for one form of inputs; nothing is moved.

    A CapacityError of it knows the model and can look for ways out.
    """
    if request.strategy in ("split", "pipeline", "hybrid") and len(request.cluster.devices) == 1:
        raise PlanError(f"strategy={request.strategy!r} was asked for one device: pass two or more, or strategy='auto'")
    if request.batch == "max" and (request.strategy in ("pipeline", "hybrid") or request.microbatches != "auto"):
        raise PlanError(
            "batch='max' looks for the largest call as a whole, not in micro-batches: give the batch as a number, or "
            "leave strategy and microbatches out"
        )
    example = Example.of(args, kwargs, request.cluster)
    trials = Trials(model, frontend.written, request, example)
    if isinstance(request.batch, int):
        trials = replace(trials, example=example.at(request.batch))
    try:
        with fewer_collections():
            return _plan_largest(trials) if request.batch == "max" else _plan_one(trials, frontend)
    except CapacityError as error:
        error.model, error.mode = type(model).__name__, request.mode
        samples = min(filter(None, trials.posed)) if request.batch == "max" else trials.example.samples
        if request.strategy not in ("pipeline", "hybrid"):  # the ways are planned for a call as a whole
            error.find_ways_out = partial(find_ways_out, trials, samples, sum(error.short_bytes.values()))
        raise


def _plan_one(trials: Trials, frontend: Frontend) -> tuple[Plan, Captured]:
    """The plan for the example inputs."""
    example, request = trials.example, trials.request
    try:
        captured = climb(frontend, example.args, example.kwargs, request.mode, request.capture)
    except CaptureError as error:
        if request.batch is None:
            raise
        raise CaptureError(f"with the batch resized to {request.batch}: {error}") from error
    trials.captured[example.samples] = captured
    problem = trials.problem(example.samples)
    _refuse_unplannable(problem)
    plan = _with_same_inputs(decide(trials, problem), trials)
    if isinstance(request.batch, int):
        words = f"batch: {request.batch}, as asked: what the model is called with is resized along dimension 0"
        plan = msgspec.structs.replace(plan, batch=request.batch, assumptions=(words, *plan.assumptions))
    if plan.pipeline is None and plan.replicas == 1:
        remember(plan, problem, trials)
    return plan, captured


def _plan_largest(trials: Trials) -> tuple[Plan, Captured]:
    """The plan for the largest batch that fits."""
    _refuse_unplannable(trials.problem(trials.example.batch))
    best = largest(trials)
    plan = _with_same_inputs(describe(best.problem, best.candidate), trials)
    plan = msgspec.structs.replace(
        plan,
        batch=best.batch,
        reason=f"batch {best.batch} is the largest found that fits; {plan.reason}",
        assumptions=(best.words, *plan.assumptions),
    )
    remember(plan, best.problem, trials)
    return plan, best.problem.captured


def _with_same_inputs(plan: Plan, trials: Trials) -> Plan:
    """The plan, also of the arguments that are the tensor of another one."""
    inputs = all_inputs(plan, trials.model, trials.example.args, trials.example.kwargs)
    same = {name: form.removeprefix(SAME) for name, form in inputs.items() if form.startswith(SAME)}
    said = (f"inputs: {name} is the tensor of {one}" for name, one in same.items())
    return msgspec.structs.replace(plan, inputs=inputs, assumptions=(*plan.assumptions, *said))


def _refuse_unplannable(problem: Problem) -> None:
    _refuse_shared_memory(problem)
    if problem.request.mode == "train":
        _refuse_sparse_gradients(problem)


def _refuse_sparse_gradients(problem: Problem) -> None:
    """The memory of a sparse gradient depends on data, and so does that of the step which reads it."""
    used = {id(problem.weights[source.name]) for source in problem.program.inputs.values() if source.is_weight}
    sparse = [
        f"{path}.weight" if path else "weight"
        for path, module in problem.model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        and module.sparse
        and module.weight.requires_grad
        and id(module.weight) in used
    ]
    if sparse:
        raise PlanError(
            f"a training step of {type(problem.model).__name__} has sparse gradients, of {', '.join(sparse)}: their "
            "memory depends on data and cannot be planned; give each such embedding sparse=False"
        )


def _refuse_shared_memory(problem: Problem) -> None:
    """Weights in one memory, one of them written, were captured as two, and are placed as two."""
    inputs = list(problem.program.inputs.values())
    written = {inputs[i].name for i in problem.program.written_inputs if inputs[i].is_weight}
    owner: dict[int, str] = {}
    for name, weight in problem.weights.items():
        first = owner.setdefault(weight.untyped_storage()._cdata, name)
        if first != name and written & {first, name}:
            raise PlanError(
                f"{first!r} and {name!r} of {type(problem.model).__name__} share memory, and forward writes to it: "
                "give one a memory of its own (clone it), or register one and make the other from it in forward"
            )
