"""A candidate told as a plan: why, at what predicted cost, and on what assumptions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from autosplit import estimate
from autosplit.api.identity import graph_fingerprint, input_forms, weight_forms
from autosplit.api.problem import Candidate, Problem
from autosplit.api.search import fitting_alone
from autosplit.api.timing import Timed
from autosplit.capture import Captured
from autosplit.device import Cluster
from autosplit.placement import DevicePrediction, Option, Pipeline, Plan, Prediction, Span, Strategy, check_plan
from autosplit.ranks.seats import rank_of
from autosplit.runtime import weight_signature
from autosplit.units import format_bytes


@dataclass(frozen=True)
class Figures:
    """What a step is predicted to take where it is not a call as a whole: ns, by device and in all, and when."""

    step_ns: int
    transfer_ns: int
    busy_ns: Mapping[str, int]
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What was decided beside the placement; what it leaves open follows from that.

    ``words`` and ``notes`` are added to the reason and to the assumptions.
    """

    strategy: Strategy | None = None
    reason: str | None = None
    words: str = ""
    notes: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    pipeline: Pipeline | None = None
    replicas: int = 1
    figures: Figures | None = None


PLAIN = Choice()
"""One call, as a whole."""


def describe(problem: Problem, candidate: Candidate, choice: Choice = PLAIN) -> Plan:
    """The plan for ``candidate``, checked."""
    placement, cluster = candidate.placement, problem.cluster
    strategy, reason = _strategy(problem, candidate, choice.strategy)
    notes = choice.notes or tuple(_other_objective(problem, candidate))
    plan = Plan(
        strategy=choice.strategy or strategy,
        mode=problem.request.mode,
        cluster=cluster,
        io_device=problem.io_device,
        placement=placement.devices,
        weights=candidate.homes,
        transfers=tuple(candidate.transfers),
        capture=problem.captured.rung,
        parts=tuple(problem.captured.parts),
        objective=placement.objective,
        value=placement.value,
        bound=placement.bound,
        prediction=_prediction(problem, candidate, choice.figures),
        reason=(choice.reason or reason) + choice.words,
        assumptions=(*problem.assumptions, *notes, *_assumptions(problem, candidate, choice.strategy or strategy)),
        fingerprint=weight_signature(problem.model),
        pipeline=choice.pipeline,
        replicas=choice.replicas,
        options=choice.options,
        inputs=input_forms(problem.program),
        weight_forms=weight_forms(problem.model),
        graph_fingerprint=graph_fingerprint(problem.program),
        optimizer=problem.optimizer_name,
        accumulate=problem.request.accumulate,
    )
    check_plan(plan, problem.graph)
    return plan


def _strategy(problem: Problem, candidate: Candidate, chosen: Strategy | None) -> tuple[Strategy, str]:
    used = sorted(set(candidate.placement.devices.values()))
    count = len(problem.cluster.devices)
    if len(used) > 1:
        fits_one = fitting_alone(problem, problem.has_bytes()) is not None
        why = f"least {problem.objective}" if fits_one else "does not fit one device"
        why = "placed by hand" if problem.request.placement is not None else why
        why = "asked for" if problem.request.strategy == "split" else why
        return "split", f"{why}: {len(used)} of {count} devices used"
    fits = f"fits one device ({format_bytes(candidate.footprints[used[0]].reserved_bytes)} on {used[0]})"
    alone = "single" in (problem.request.strategy, chosen) or problem.request.placement is not None
    if alone or (count == 1 and problem.request.strategy == "auto"):
        return "single", fits
    return "replicate", (
        f"{fits}: one copy on each of {count} device(s) under torchrun --nproc-per-node={count}; "
        f"in a single process it runs on {used[0]} alone"
    )


def figures_of(problem: Problem, devices: Mapping[str, str]) -> Figures:
    """Of one call as a whole, by the estimate."""
    graph, cluster = problem.graph, problem.cluster
    return Figures(
        step_ns=estimate.step_ns(graph, devices, cluster, io_device=problem.io_device),
        transfer_ns=estimate.transfer_ns(graph, devices, cluster, io_device=problem.io_device),
        busy_ns=estimate.busy_ns(graph, devices, cluster),
        spans=estimate.spans(graph, devices, cluster, io_device=problem.io_device),
    )


def _prediction(problem: Problem, candidate: Candidate, figures: Figures | None) -> Prediction:
    figures = figures or figures_of(problem, candidate.placement.devices)
    return Prediction(
        devices={
            name: DevicePrediction(
                peak_bytes=footprint.peak_bytes,
                reserved_bytes=footprint.reserved_bytes,
                weight_bytes=footprint.weight_bytes,
                busy_ns=figures.busy_ns.get(name, 0),
                breakdown=footprint.breakdown,
                timeline=footprint.timeline,
            )
            for name, footprint in candidate.footprints.items()
        },
        step_ns=figures.step_ns,
        transfer_ns=figures.transfer_ns,
        time_source=problem.timed.source,
        spans=figures.spans,
    )


def _other_objective(problem: Problem, candidate: Candidate) -> list[str]:
    found = candidate.placement.objective
    if found == problem.objective:
        return []
    return [f"objective: {found}: {problem.objective} gave no split that fits"]


def _how_timed(timed: Timed, issued: str) -> list[str]:
    said = {
        "measured": "times: measured",
        "calibrated": "times: roofline estimate, scaled by what was measured of the same operator",
        "estimated": "times: roofline estimate, unmeasured; backward taken as 2 x forward",
    }
    return [f"{said[timed.source]}; {issued}", *timed.notes]


def _how_issued(cluster: Cluster, used: Collection[str], strategy: Strategy) -> str:
    """Who starts the operators, and what of them runs side by side."""
    if any(rank_of(name) is not None for name in used):
        return "each rank issues to its own devices, and ranks work side by side"
    if all(device.is_synchronous for device in cluster.devices):
        said = "devices work one at a time" if len(used) > 1 else "the device works as it is called"
    elif len(used) > 1:
        said = "one thread issues to queues that run side by side"
    else:
        said = "one thread issues to the device's queue"
    each = {"replicate": "in each process ", "hybrid": "each replica as in one process: "}
    return each.get(strategy, "") + said


def _how_captured(captured: Captured) -> list[str]:
    """How far the model fell from one graph, and why; nothing when it did not."""
    if captured.rung == "graph":
        return []
    kinds = {
        "graphs": f"{len(captured.parts)} graphs, with plain Python between them",
        "opaque": f"{len(captured.parts)} graphs, and modules that run as they are",
        "modules": "no graph: every module runs as it is, each operator where its weights are",
    }
    said = [f"capture: {captured.rung}: {kinds[captured.rung]}"]
    said += [f"capture: {note}" for note in captured.notes]
    if captured.on_data:
        said.append("capture: forward looks at data, so it was run once, where the weights are, to be planned")
    return said


def _assumptions(problem: Problem, candidate: Candidate, strategy: Strategy) -> list[str]:
    forms = [
        f"{source.name} {str(source.spec.dtype).removeprefix('torch.')}{list(source.spec.shape)}"
        for source in problem.program.inputs.values()
        if source.kind == "input" and source.spec is not None
    ]
    used = set(candidate.placement.devices.values())
    said = [
        f"inputs: {', '.join(forms)}, arriving on {problem.io_device}",
        *_how_timed(problem.timed, _how_issued(problem.cluster, used, strategy)),
        *problem.cluster.assumptions,
        "memory: what torch allocates; kernel workspaces and the device's context are not counted",
        *_how_captured(problem.captured),
    ]
    if problem.program.is_sized_by_data:
        said.append("memory: sizes that depend on data are taken at their largest, and numbers that are read as 1")
    if problem.request.mode == "infer":
        said.append("inference: under torch.no_grad(); a call that records gradients keeps more")
    else:
        said.append("training: a steady step; a loss computed outside the model is not counted")
    if problem.request.accumulate > 1:
        said.append(f"training: gradients of {problem.request.accumulate} calls are added up for it; times are of one")
    return said
