"""The decision: single, replicate, split, pipeline or hybrid, by predicted step time and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from autosplit.api.batch import Trials
from autosplit.api.describe import Choice, Figures, describe, figures_of
from autosplit.api.pipelines import Piped, Pipelines
from autosplit.api.problem import Candidate, Problem
from autosplit.api.search import fitting, search
from autosplit.api.weighing import WORTH, Replicas, Weighing
from autosplit.errors import AutosplitError, CapacityError, PlanError
from autosplit.estimate.replicas import BUCKET_BYTES, gradient_bytes, group_exchange_ns
from autosplit.placement import Option, Plan
from autosplit.units import format_bytes

_IN_ONE_PROCESS = ("auto", "gpipe", "1f1b")
_EXCHANGE = (
    f"replicas: gradients go round a ring at its slowest link, in buckets of {format_bytes(BUCKET_BYTES)} beside the "
    "backward; that slows no compute, and the buckets' own memory is not counted"
)
_GROUP_EXCHANGE = (
    "replicas: gradients go round a ring at its slowest link, all of it after the backward; the buckets' own memory is "
    "not counted"
)
_SPLIT_REPLICAS = (
    "replicas: of a split, each process plans strategy='split' for its own devices and wraps it in "
    "DistributedDataParallel; strategy='hybrid' under torchrun makes replicas of pipelines, a process for each device"
)


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


def decide(trials: Trials, problem: Problem) -> Plan:
    """The plan for one problem: by the strategy that was asked for, or the best of all.

    The strategy of a call as a whole (a copy on each device, or a split where none holds the model) is kept unless
    another is predicted to be faster by ``WORTH``; what was weighed is in ``Plan.options``.

    Raises:
        CapacityError: nothing was found that fits.
        PlanError: the strategy that was asked for is not possible.
    """
    request = problem.request
    if request.strategy == "pipeline":
        return _asked_pipeline(trials, problem)
    if request.strategy == "hybrid":
        return _asked_hybrid(trials, problem)
    by_hand = request.placement is not None or request.strategy != "auto" or request.objective == "memory"
    if by_hand or len(problem.cluster.devices) == 1:
        return describe(problem, search(problem))
    return _best(trials, problem)


def _best(trials: Trials, problem: Problem) -> Plan:
    refused: AutosplitError | None = None
    try:
        found = search(problem)
    except CapacityError as error:
        found, refused = None, error
    weighing = Weighing(trials, problem, found)
    if refused is not None and not weighing.works_side_by_side:
        raise refused
    options = {option.strategy: option for option in _weighed(weighing)}
    made: dict[str, Plan] = {}
    while possible := [option for option in options.values() if option.step_ns is not None]:
        option = _chosen(weighing, possible)
        if option.strategy in made:
            others = sorted((other for other in options.values() if other is not option), key=_rank(weighing))
            return msgspec.structs.replace(made[option.strategy], options=(option, *others))
        try:
            plan, exact = _plan(weighing, option)
            made[option.strategy], options[option.strategy] = plan, exact
        except (CapacityError, PlanError) as error:  # what runs does not fit, or cannot be cut so: the next best
            refused = refused or error
            words = f"the estimate let it through, but not what would run: {error}"
            options[option.strategy] = msgspec.structs.replace(option, step_ns=None, busy_ns=None, words=words)
    assert refused is not None  # nothing was possible, or it was refused
    raise refused


def _weighed(weighing: Weighing) -> list[Option]:
    """All options, that which is kept unless another is faster first."""
    whole = [weighing.replicate, weighing.single, weighing.split]
    if weighing.found is not None and not weighing.is_whole:
        whole = [weighing.split, weighing.replicate, weighing.single]
    return [*whole, weighing.pipeline, weighing.hybrid]


def _chosen(weighing: Weighing, possible: Sequence[Option]) -> Option:
    if not weighing.works_side_by_side:  # no figure of replicas is true of one process there
        return possible[0]
    least = min(weighing.time(option) for option in possible)
    return next(option for option in possible if weighing.time(option) <= WORTH * least)


def _rank(weighing: Weighing) -> Callable[[Option], tuple[bool, float]]:
    return lambda option: (option.step_ns is None, weighing.time(option))


def _plan(weighing: Weighing, option: Option) -> tuple[Plan, Option]:
    """The plan for an option, and the option as it was then predicted exactly."""
    problem = weighing.problem
    if option.strategy == "pipeline":
        assert weighing.sketch is not None  # the option is its
        piped = weighing.pipelines.settled(weighing.sketch)
        option = _exactly(weighing.piped(piped.sketch), problem, piped.candidate)
        return _piped_plan(weighing, piped, _why_pipeline(weighing, option)), option
    if option.strategy == "hybrid":
        assert weighing.replicas is not None  # the option is theirs
        plan, candidate = _hybrid_plan(weighing, weighing.replicas, "does not fit one device")
        return plan, _exactly(option, problem, candidate, plan.prediction.step_ns)
    found = weighing.found if (option.strategy == "split") != weighing.is_whole else None
    if found is None:
        assert weighing.alone is not None  # a copy or a single device was possible
        found = fitting(problem, weighing.alone)
    words = _beside(weighing, option.strategy)
    exchanges = option.strategy == "replicate" and problem.request.mode == "train"
    notes = (_EXCHANGE,) if exchanges else ()
    plan = describe(problem, found, Choice(option.strategy, words=words, notes=notes))
    return plan, _exactly(option, problem, found)


def _exactly(option: Option, problem: Problem, candidate: Candidate, step_ns: int | None = None) -> Option:
    """The option with what the exact prediction says of its memory."""
    has = problem.has_bytes()
    needs = {name: footprint.reserved_bytes for name, footprint in candidate.footprints.items()}
    fullest = max(needs, key=lambda name: needs[name] / max(1, has[name]))
    return msgspec.structs.replace(
        option, step_ns=step_ns or option.step_ns, needs_bytes=needs[fullest], has_bytes=has[fullest]
    )


def _beside(weighing: Weighing, strategy: str) -> str:
    """What the reason for a call as a whole says of the others."""
    if strategy == "single":
        return "; exchanging the gradients of copies would take longer than they save"
    chosen = weighing.replicate if strategy == "replicate" else weighing.split
    other = weighing.pipeline
    if other.step_ns is None or (strategy == "split" and weighing.alone is not None):
        return ""
    factor = weighing.time(other) / max(1e-9, weighing.time(chosen))
    what = "a step" if weighing.by == "step" else "a sample"
    return f"; a pipeline would take {factor:.2f}x as long for {what}"


def _why_pipeline(weighing: Weighing, option: Option) -> str:
    if weighing.alone is None:
        split = weighing.split
        if split.step_ns is None:
            return f"does not fit one device, nor split with the batch as a whole: {option.words}"
        factor = weighing.time(split) / max(1e-9, weighing.time(option))
        return f"does not fit one device: {option.words}, {factor:.2f}x as fast as a call as a whole"
    if weighing.by == "step":
        factor = weighing.time(weighing.single) / max(1e-9, weighing.time(option))
        return f"fits one device, but {option.words} are {factor:.2f}x as fast"
    copies = weighing.replicate
    factor = weighing.time(copies) / max(1e-9, weighing.time(option))
    sent = format_bytes(sum(gradient_bytes(weighing.graph).values()))
    return (
        f"fits one device, but {option.words} give {factor:.2f}x the samples/s of {copies.devices} copies, which "
        f"exchange {sent} of gradients a step (large weights, small activations)"
    )


def _asked_pipeline(trials: Trials, problem: Problem) -> Plan:
    pipelines = Pipelines(trials, problem)
    obstacle = pipelines.obstacle()
    if obstacle is not None:
        raise PlanError(f"strategy='pipeline': {obstacle}; use strategy='split' or 'auto'")
    piped = pipelines.settled(pipelines.sketch())
    return _piped_plan(Weighing(trials, problem, None), piped, f"asked for: {piped.sketch.words}")


def _asked_hybrid(trials: Trials, problem: Problem) -> Plan:
    if len(problem.cluster.devices) < 4:
        raise PlanError(
            f"strategy='hybrid' was asked for {len(problem.cluster.devices)} devices: two replicas of two devices "
            "each need four; give more, or use strategy='pipeline' or 'split'"
        )
    weighing = Weighing(trials, problem, None)
    if weighing.hybrid.step_ns is None or weighing.replicas is None:
        raise CapacityError(f"strategy='hybrid': {weighing.hybrid.words}; use strategy='pipeline' or 'split'")
    return _hybrid_plan(weighing, weighing.replicas, "asked for")[0]


def _piped_plan(weighing: Weighing, piped: Piped, reason: str) -> Plan:
    sketch = piped.sketch
    choice = Choice(
        "pipeline",
        reason=reason,
        notes=_notes(piped, weighing.samples or 0),
        pipeline=sketch.pipeline,
        figures=Figures(sketch.timed.makespan_ns, sketch.transfer_ns, sketch.busy_ns, sketch.spans),
    )
    return describe(weighing.problem, piped.candidate, choice)


def _hybrid_plan(weighing: Weighing, replicas: Replicas, reason: str) -> tuple[Plan, Candidate]:
    """Replicas of a pipeline or of a split; the plan is the first one's."""
    count, used = len(replicas.groups), ", ".join(replicas.groups[0])
    if replicas.sketch is not None:
        piped = Pipelines(weighing.trials, replicas.problem).settled(replicas.sketch)
        sketch, candidate, notes = piped.sketch, piped.candidate, _notes(piped, weighing.samples or 0)
        figures = Figures(sketch.timed.makespan_ns, sketch.transfer_ns, sketch.busy_ns, sketch.spans)
    else:
        candidate, notes = search(replicas.problem), ()
        figures = figures_of(replicas.problem, candidate.placement.devices)
    exchanged_ns = group_exchange_ns(weighing.graph, candidate.placement.devices, weighing.cluster, replicas.groups)
    figures = replace(figures, step_ns=figures.step_ns + exchanged_ns)
    size = len(replicas.groups[0])
    processes, each = count * size, "a process for each device"
    if replicas.sketch is None:
        processes, each, notes = count, f"{size} devices each", (_SPLIT_REPLICAS,)
    launch = f"under torchrun --nproc-per-node={processes}, {each}; in one process one runs, on {used}"
    choice = Choice(
        "hybrid",
        reason=f"{reason}: {replicas.words} {launch}",
        notes=(*notes, _GROUP_EXCHANGE) if weighing.problem.request.mode == "train" else notes,
        pipeline=None if replicas.sketch is None else sketch.pipeline,
        replicas=count,
        figures=figures,
    )
    plan = describe(weighing.problem, candidate, choice)
    return msgspec.structs.replace(plan, io_device=replicas.problem.io_device), candidate


def _notes(piped: Piped, samples: int) -> tuple[str, ...]:
    """What a pipeline rests on."""
    count, found = piped.sketch.microbatches, piped.samples
    said = tuple(
        f"pipeline: samples of a batch see each other, and now only those of a micro-batch: {line}"
        for line in found.mixing[:3]
    )
    said += tuple(f"pipeline: {words}" for words in piped.said)
    if found.random:
        said += (f"pipeline: {found.random[0]} and the like draw other random numbers than for the call as a whole",)
    return (
        f"pipeline: {count} micro-batches of up to {-(-samples // count)} samples; a transfer is sent in as many parts",
        "pipeline: each stage's passes in the order of its schedule, copies between stages beside what they compute",
        *said,
    )
