"""Finding a pipeline: into how many micro-batches, in which order of passes, and which stages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from autosplit.api.batch import Trials
from autosplit.api.microbatches import MicroBatches, Order
from autosplit.api.pipelining import check_alike, evaluate_pipeline
from autosplit.api.problem import Candidate, Problem
from autosplit.api.search import does_not_fit, over
from autosplit.device import HOST, Cluster
from autosplit.errors import CapacityError, PlanError
from autosplit.estimate.judge import Judge
from autosplit.estimate.pipeline import Timed, pipeline_step, stage_order
from autosplit.estimate.spans import of_pipeline
from autosplit.graph import CostGraph
from autosplit.pipeline.batches import sizes
from autosplit.placement import CostModel, Objective, Pipeline, Placement, Span
from autosplit.program import Program, Spec
from autosplit.ranks.seats import rank_of
from autosplit.samples import Samples
from autosplit.solvers import solve

_MOST_FOR_A_STAGE = 8
"""Micro-batches for each stage: more would win less than a hundredth of the bubble, and small operators lose more."""

_MOST_RUN = 40_000
"""Nodes times micro-batches that are run on fakes to see what they hold, where the share of each device is more."""

_SHARES = (1.0, 0.94, 0.88, 0.82, 0.76)
"""Of each capacity: tried in turn, as what is reserved beyond the estimate is not smooth in the placement."""


_OBJECTIVES: tuple[Objective, ...] = ("throughput", "memory")
"""What stages are solved for; the second where a pipeline was asked for, and the first left all on one device."""


@dataclass(frozen=True)
class Sketch:
    """A pipeline by the fast estimate: micro-batches, order of passes and stages, and a step of it on paper."""

    microbatches: int
    schedule: Order
    placement: Placement
    judge: Judge
    timed: Timed

    @property
    def labels(self) -> list[int]:
        """For each node in program order the position of its device."""
        return labels_of(self.judge, self.placement.devices)

    @property
    def devices(self) -> list[str]:
        """Of the stages, in order."""
        names = self.judge.cluster.names
        return [names[label] for label in stage_order(self.judge, self.labels)]

    @property
    def peaks(self) -> dict[str, int]:
        """Most bytes by device, as estimated, with the micro-batches in flight."""
        return dict(zip(self.judge.cluster.names, self.judge.peaks(self.labels), strict=True))

    @property
    def busy_ns(self) -> dict[str, int]:
        """Compute of one step by device."""
        busy = zip(self.judge.cluster.names, self.judge.busy(self.labels), strict=True)
        return {name: self.microbatches * takes_ns for name, takes_ns in busy}

    @property
    def transfer_ns(self) -> int:
        """All transfers of one step."""
        return self.microbatches * self.judge.transfer_ns(self.labels)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The step, pass by pass."""
        return of_pipeline(self.timed, self.devices)

    @property
    def pipeline(self) -> Pipeline:
        """As a plan holds it."""
        stages: dict[str, list[str]] = {device: [] for device in self.devices}
        for node, device in self.placement.devices.items():
            stages[device].append(node)
        return Pipeline(
            microbatches=self.microbatches, schedule=self.schedule, stages=tuple(map(tuple, stages.values()))
        )

    @property
    def words(self) -> str:
        """What it is, for people."""
        order = {"gpipe": "GPipe", "1f1b": "1F1B"}[self.schedule]
        return f"{len(self.devices)} stages x {self.microbatches} micro-batches, {order}"


@dataclass(frozen=True)
class Piped:
    """A pipeline that was run on fakes: it fits."""

    sketch: Sketch
    problem: Problem
    candidate: Candidate
    samples: Samples
    said: tuple[str, ...] = ()


class Pipelines:
    """Looks for the pipeline of a problem with the least predicted step.

    Args:
        trials: the model at any batch.
        problem: the whole batch, on the devices to use.
    """

    def __init__(self, trials: Trials, problem: Problem) -> None:
        self.trials, self.problem, self.request = trials, problem, problem.request
        self.samples = trials.example.samples or 0
        self.small = MicroBatches(trials, problem)

    def obstacle(self) -> str | None:
        """What stands against any pipeline; None when nothing is known to."""
        asked, rung = self.request.microbatches, self.problem.captured.rung
        needs_loss = self.request.schedule == "1f1b" and self.request.mode == "train"
        obstacles = (
            (not self.samples, "the inputs have no batch to cut into micro-batches"),
            (self.samples == 1, "the batch is 1: there is nothing to cut into micro-batches"),
            (
                asked == 1 and self.request.strategy != "pipeline",
                "microbatches=1 was asked for: that is a call as a whole",
            ),
            (
                asked != "auto" and asked > self.samples,
                f"{asked} micro-batches were asked for, and the batch has {self.samples} samples",
            ),
            (rung != "graph", f"it needs the model as one graph, and it was captured as {rung}"),
            (
                needs_loss and not returns_loss(self.problem.program),
                "1F1B goes back within the call, from a loss, and forward returns none: one scalar with a gradient",
            ),
        )
        return next((words for stands, words in obstacles if stands), None)

    def counts(self, stages: int) -> list[int]:
        """Numbers of micro-batches to look at, those that divide the batch where there are such nearby."""
        if self.request.microbatches != "auto":
            return [self.request.microbatches]
        most = min(self.samples, _MOST_FOR_A_STAGE * stages)
        wanted = [stages << i for i in range(_MOST_FOR_A_STAGE.bit_length()) if stages << i <= most] or [most]
        return sorted({_divisor_near(self.samples, count) for count in wanted})

    def at_best_ns(self) -> int:
        """No pipeline over the devices takes less: no transfer, equal stages, and work that shrinks with the batch."""
        graph, devices = self.problem.graph, self.problem.cluster.devices
        best = 0
        for count in self.counts(len(devices)):
            least, issue = 0, 0
            for name in graph.nodes:
                launch, takes = min((device.launch_ns, graph.node_ns(name, device.kind)) for device in devices)
                takes = min(takes, *(graph.node_ns(name, device.kind) for device in devices))
                least += max(min(takes, launch), takes // count)
                issue += min(takes, launch)
            step_ns = max(least * (count + len(devices) - 1) // len(devices), issue * count)
            best = step_ns if not best else min(best, step_ns)
        return best

    def sketch(self) -> Sketch:
        """The fastest pipeline by the fast estimate.

        The stages of one number of micro-batches are timed at all others, and solved anew for the best.

        Raises:
            CapacityError: none was found that fits.
            PlanError: the model cannot be captured with fewer samples, nothing can be cut off it, its outputs cannot
                be merged, or micro-batches would compute something else and a pipeline was not asked for.
        """
        counts = self.counts(len(self.problem.cluster.devices))
        middle = len(counts) // 2
        refused: CapacityError | None = None
        for count in [*counts[middle:], *reversed(counts[:middle])]:
            try:
                first = self._solved(count)
            except CapacityError as error:
                refused = refused or error
                continue
            others = [self._again(first, other) for other in counts if other != count]
            best = min([first, *filter(None, others)], key=lambda found: found.timed.makespan_ns)
            if best.microbatches != count:
                best = min(best, self._solved(best.microbatches), key=lambda found: found.timed.makespan_ns)
            self._refuse_mixing()
            return best
        assert refused is not None  # there is one count at least
        raise refused

    def settled(self, sketch: Sketch) -> Piped:
        """The pipeline as it runs: captured at the size of its micro-batches, run on fakes, and made to fit.

        Raises:
            CapacityError: no try fits.
            PlanError: micro-batches of that size compute something else, or may and a pipeline was not asked for.
        """
        problem, said = self.small.posed(sketch.microbatches), self._unlike(sketch)
        misses: list[tuple[int, Problem, Candidate]] = []
        seen: set[tuple[str, ...]] = set()
        for found in self._tries(sketch, problem):
            key = (found.schedule, *found.placement.devices.values())
            if key in seen:
                continue
            seen.add(key)
            candidate = self._evaluated(found, problem)
            short = sum(over(self.problem, candidate).values())
            if not short:
                return Piped(found, problem, candidate, self.small.followed, said)
            misses.append((short, problem, candidate))
        _, held, candidate = min(misses, key=lambda miss: miss[0])
        raise does_not_fit(held, candidate)

    def _refuse_mixing(self) -> None:
        """Micro-batches that would compute something else are only for those who ask for them."""
        found = self.small.followed
        unknown = [place for place, merge in enumerate(found.outputs) if merge is None]
        if unknown and found.mixing:
            raise PlanError(f"output {unknown[0]} cannot be merged from those of micro-batches: {found.mixing[0]}")
        if found.mixing and self.request.strategy == "auto":
            raise PlanError(f"samples of a batch see each other: {found.mixing[0]}")

    def _unlike(self, sketch: Sketch) -> tuple[str, ...]:
        """What is to be said of micro-batches of a size in which samples were not followed; for those who ask alone."""
        pieces = self.small.pieces(sketch.microbatches)
        said = tuple(filter(None, (check_alike(pieces, part) for part in sorted(pieces.small))))
        if said and self.request.strategy == "auto":
            raise PlanError(said[0])
        return said

    def _evaluated(self, sketch: Sketch, problem: Problem) -> Candidate:
        """The pipeline run on fakes: all its micro-batches, or of a large model each device's share of them."""
        if len(problem.graph) * sketch.microbatches > _MOST_RUN and self.small.is_alike(problem.program):
            workload = self.small.workload(sketch.microbatches, sketch.schedule, sketch.devices)
            if workload.passes < sketch.microbatches:
                return self.small.held(problem, workload).evaluate(sketch.placement)
        parts = sizes(self.samples, sketch.microbatches)
        return evaluate_pipeline(
            self.problem, sketch.placement, sketch.pipeline, self.small.pieces(sketch.microbatches), parts
        )

    def _tries(self, sketch: Sketch, problem: Problem) -> Iterator[Sketch]:
        """The sketch at the costs of its own capture, then others that hold less by the estimate.

        What was measured of a micro-batch is news to the sketch, whose costs were scaled from the whole batch's: the
        stages are then solved anew.
        """
        graph = problem.graph
        tries = [self._timed(graph, sketch.placement, sketch.microbatches, sketch.schedule)]
        if problem.timed.source != "estimated":
            with contextlib.suppress(CapacityError, PlanError):
                tries.append(self._placed(graph, sketch.microbatches, sketch.schedule, 1.0))
        yield from sorted(tries, key=lambda found: found.timed.makespan_ns)
        for schedule in self._schedules()[self._schedules().index(sketch.schedule) :]:
            for share in _SHARES:
                try:
                    yield self._placed(graph, sketch.microbatches, schedule, share)
                except CapacityError:
                    break

    def _schedules(self) -> list[Order]:
        asked = self.request.schedule
        if asked in ("gpipe", "1f1b"):
            return [asked]
        return ["gpipe", "1f1b"] if self.request.mode == "train" and returns_loss(self.problem.program) else ["gpipe"]

    def _solved(self, microbatches: int) -> Sketch:
        """The best stages; in the first order of passes that fits."""
        graph = self.small.graph(microbatches)
        refused: CapacityError | None = None
        for schedule in self._schedules():
            try:
                return self._placed(graph, microbatches, schedule, 1.0)
            except CapacityError as error:
                refused = refused or error
        assert refused is not None  # there is one order at least
        raise refused

    def _placed(self, graph: CostGraph, microbatches: int, schedule: Order, share: float) -> Sketch:
        idle: set[int] = set()
        for objective in _OBJECTIVES[: 1 if self.request.strategy == "auto" else 2]:
            placement = solve(
                graph,
                self.problem.cluster,
                objective=objective,
                contiguous=True,
                cost_model=_cost_model(microbatches, schedule),
                io_device=self.problem.io_device,
                capacities={name: int(size * share) for name, size in self.problem.has_bytes().items()},
            )
            idle = _idlers(graph, placement, self.problem.cluster.names, self.request.mode)
            if len(set(placement.devices.values())) > 1 and not idle:
                return self._timed(graph, placement, microbatches, schedule)
        if idle:
            raise PlanError(
                f"no cut into stages gives rank {min(idle)} a weight to train: use fewer ranks"
                if self.request.mode == "train"
                else f"no cut into stages gives rank {min(idle)} work: use fewer ranks"
            )
        raise PlanError("no cut into stages is faster than all on one device")

    def _again(self, sketch: Sketch, microbatches: int) -> Sketch | None:
        """The same stages with another number of micro-batches; None where they do not fit."""
        found = self._timed(self.small.graph(microbatches), sketch.placement, microbatches, sketch.schedule)
        has = self.problem.has_bytes()
        return found if all(size <= has[name] for name, size in found.peaks.items()) else None

    def _timed(self, graph: CostGraph, placement: Placement, microbatches: int, schedule: Order) -> Sketch:
        model = _cost_model(microbatches, schedule)
        judge = Judge(graph, self.problem.cluster, self.problem.io_device, model)
        timed = pipeline_step(judge, labels_of(judge, placement.devices), schedule, microbatches)
        return Sketch(microbatches, schedule, placement, judge, timed)


def returns_loss(program: Program) -> bool:
    """Whether the model returns one scalar with a gradient, from which a schedule can go back within the call."""
    facts = [program.facts[node] for node in program.results if node in program.facts]
    losses = [
        fact
        for fact in facts
        if isinstance(fact.form, Spec) and not fact.form.shape and any(leaf.requires_grad for leaf in fact.leaves)
    ]
    return len(losses) == 1


def _idlers(graph: CostGraph, placement: Placement, names: Iterable[str], mode: str) -> set[int]:
    """Ranks of the devices ``names`` that would run nothing, or in training nothing that has a weight to train.

    The one is no stage, and the other wins little: no optimizer takes no parameter.
    """
    trained = [t for t in graph.tensors.values() if t.kind == "parameter" and t.requires_grad]

    def ranks(devices: Iterable[str]) -> set[int]:
        return {known[0] for known in map(rank_of, devices) if known is not None}

    holding = (placement.devices[weight.producer] for weight in trained)
    return ranks(names) - ranks(holding if mode == "train" else placement.devices.values())


def labels_of(judge: Judge, devices: dict[str, str]) -> list[int]:
    """For each node in program order the position of its device."""
    position = {name: i for i, name in enumerate(judge.cluster.names)}
    return [position[devices[name]] for name in judge.graph.nodes]


def on_some(problem: Problem, cluster: Cluster) -> Problem:
    """The same problem on some of its devices; costs are by kind of device, and are not found again."""
    io_device = problem.io_device if problem.io_device in cluster.names else HOST
    found = Problem(problem.model, replace(problem.request, cluster=cluster), problem.captured, io_device)
    found.__dict__.update(timed=problem.timed, graph=problem.graph, factory=problem.factory)
    return found


def _cost_model(microbatches: int, schedule: Order) -> CostModel:
    """Copies between stages run on streams of their own, beside compute."""
    return CostModel(overlap=True, microbatches=microbatches, schedule=schedule)


def _divisor_near(samples: int, count: int) -> int:
    """The divisor of ``samples`` next to ``count``, if one is within a factor of 1.5; else ``count`` itself."""
    near = [d for d in range(2, samples + 1) if samples % d == 0 and 2 * d <= 3 * count and 3 * d >= 2 * count]
    return min(near, key=lambda d: (abs(d - count), d), default=count)
