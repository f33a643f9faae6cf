"""A model at the size of a micro-batch: its captures, its costs, and what several of them in flight hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from autosplit.api.batch import Trials
from autosplit.api.pipelining import Pieces
from autosplit.api.problem import Problem
from autosplit.errors import PlanError
from autosplit.graph import CostGraph
from autosplit.pipeline.batches import sizes
from autosplit.placement import CostModel
from autosplit.predict import Workload
from autosplit.program import Program
from autosplit.samples import Samples, follow_samples

Order = Literal["gpipe", "1f1b"]


@dataclass(frozen=True)
class MicroBatches:
    """The model with the samples of a micro-batch in place of the batch.

    Args:
        trials: the model at any batch.
        problem: the whole batch, on the devices to use.
    """

    trials: Trials
    problem: Problem

    @property
    def _samples(self) -> int:
        return self.trials.example.samples or 0

    @cached_property
    def _reference(self) -> int:
        """A number of samples that is captured already, as far as there is one; of one sample a batch is not told."""
        return next((batch for batch in self.trials.captured if batch and 1 < batch < self._samples), 2)

    @cached_property
    def followed(self) -> Samples:
        """Where the samples are, by the whole call and a capture of fewer."""
        large, small = self._followable
        return follow_samples(self.trials.problem(small).program, self.trials.problem(large).program)

    @property
    def _followable(self) -> tuple[int, int]:
        """Two numbers of samples, the larger first, of which programs tell where the samples are."""
        return max(self._samples, self._reference + 1), self._reference

    def pieces(self, count: int) -> Pieces:
        """The captures that calls in ``count`` micro-batches are made of."""
        parts = {*sizes(self._samples, count)}
        small = {part: self.trials.problem(part).program for part in parts}
        return Pieces(small, self.followed, (self._reference, self.trials.problem(self._reference).program))

    def posed(self, count: int) -> Problem:
        """The problem of one of ``count`` micro-batches; what was measured of the whole is lent to its estimates."""
        posed = self.trials.problem(self._size(count))
        problem = Problem(self.trials.model, self.problem.request, posed.captured, self.problem.io_device)
        if not self.is_alike(posed.program):
            graph = self.graph(count)  # of the operators that the plan names
            problem.__dict__.update(timed=replace(self.problem.timed, source="estimated"), graph=graph)
        elif self.problem.timed.source == "estimated":
            problem.__dict__["timed"] = self.problem.timed  # nothing to measure or to read again
        return problem

    def is_alike(self, program: Program) -> bool:
        """Whether it runs the operators of the whole call, by whose names a plan places."""
        return self.problem.program.twins(program) is not None

    def workload(self, count: int, schedule: Order, devices: Sequence[str]) -> Workload:
        """As many micro-batches in flight on each device, in the order of the stages, as the schedule holds."""
        model = CostModel(microbatches=count, schedule=schedule)
        in_flight = {device: model.in_flight(len(devices) - stage) for stage, device in enumerate(devices)}
        return Workload(microbatches=count * self.problem.request.accumulate, in_flight=in_flight)

    def held(self, problem: Problem, workload: Workload) -> Problem:
        """The problem of one micro-batch with several in flight."""
        held = replace(problem, request=replace(self.problem.request, workload=workload, batch=None))
        held.__dict__.update({name: problem.__dict__[name] for name in ("timed", "graph") if name in problem.__dict__})
        return held

    def graph(self, count: int) -> CostGraph:
        """The costs of one of ``count`` micro-batches, on the line through the whole batch and another capture."""
        size = self._size(count)
        if size == self._samples:
            return self.problem.graph
        others = [batch for batch in self.trials.captured if batch not in (None, self._samples)]
        other = size if size in others or not others else others[0]
        try:
            program = self.trials.scaled(self._samples, other or size).program(size)
        except PlanError:  # of one sample many a model runs other operators
            program = self.trials.scaled(*self._followable).program(size)
        return self.problem.costed(program)

    def _size(self, count: int) -> int:
        """Samples of the largest micro-batch."""
        return -(-self._samples // count)
