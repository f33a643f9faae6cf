"""The batch of a call: example inputs at another number of samples, and the largest number that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autosplit.api.problem import Candidate, Problem, Request
from autosplit.api.scale import Scaled
from autosplit.api.search import over, search, sketch
from autosplit.capture import Captured, Frontend, climb
from autosplit.device import HOST, Cluster
from autosplit.errors import CapacityError, CaptureError, PlanError
from autosplit.program import tensor_leaves
from autosplit.units import format_bytes

MOST_SAMPLES = 2**20


def check_batch(batch: object) -> None:
    """Check a number of samples.

    Raises:
        PlanError: it is none.
    """
    if type(batch) is not int or not 1 <= batch <= MOST_SAMPLES:
        raise PlanError(f"batch={batch!r}: expected a number of samples, 1 to {MOST_SAMPLES}, 'max' or None")


"""The largest batch that is looked for."""

_FINE = 64  # the guess is bracketed to one part in so many: exact plans do the rest


@dataclass(frozen=True)
class Example:
    """The inputs of the call that is planned; only their form is read.

    The batch is dimension 0 of the first tensor that has dimensions, and of every other tensor whose dimension 0 is of
    that size.
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    io_device: str

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any], cluster: Cluster) -> Example:
        """Inputs arrive at the device of the first tensor if it is one of the cluster's, else at the host."""
        leaves = tensor_leaves((list(args), dict(kwargs)))
        return cls(args, kwargs, next((str(t.device) for t in leaves if str(t.device) in cluster.names), HOST))

    @cached_property
    def samples(self) -> int | None:
        """The batch; None when no input has a dimension."""
        leaves = tensor_leaves((list(self.args), dict(self.kwargs)))
        return next((int(t.shape[0]) for t in leaves if t.dim()), None)

    @property
    def batch(self) -> int:
        """The batch.

        Raises:
            PlanError: no input has one.
        """
        if not self.samples:
            raise PlanError("batch= was given, but no input has samples along a dimension 0: pass inputs that have")
        return self.samples

    def at(self, batch: int) -> Example:
        """The same inputs with ``batch`` samples: the batched tensors without data, the others as they are.

        Raises:
            PlanError: no input has a batch.
        """
        samples = self.batch
        if batch == samples:
            return self
        return self._mapped(
            lambda tensor: _resized(tensor, batch) if tensor.dim() and tensor.shape[0] == samples else tensor
        )

    def forms(self) -> Example:
        """The same inputs, all without data: they may be kept."""
        return self._mapped(lambda tensor: _resized(tensor, None))

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
        made: dict[int, torch.Tensor] = {}  # one tensor passed twice stays one

        def once(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in made:
                made[id(tensor)] = change(tensor)
            return made[id(tensor)]

        args, kwargs = pytree.tree_map_only(torch.Tensor, once, (list(self.args), dict(self.kwargs)))
        return Example(args, kwargs, self.io_device)


def _resized(tensor: torch.Tensor, batch: int | None) -> torch.Tensor:
    """A tensor without data, of the same order of dimensions in memory."""
    shape = tuple(tensor.shape) if batch is None or not tensor.dim() else (batch, *tensor.shape[1:])
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], d))
    made = torch.empty_permuted(shape, order, dtype=tensor.dtype, device="meta")
    return made.requires_grad_(tensor.requires_grad)


@dataclass
class Trials:
    """One model posed at several batches; each is captured once."""

    model: nn.Module
    written: type[nn.Module]
    request: Request
    example: Example
    captured: dict[int | None, Captured] = field(default_factory=dict)
    posed: dict[int | None, Problem] = field(default_factory=dict)

    def problem(self, batch: int | None) -> Problem:
        """The problem at ``batch`` samples; None is for inputs without a batch.

        Raises:
            PlanError: the model cannot be captured at that batch.
        """
        if batch not in self.captured:
            self.captured[batch] = self._capture(batch)
        if batch not in self.posed:
            self.posed[batch] = Problem(self.model, self.request, self.captured[batch], self.example.io_device)
        return self.posed[batch]

    def scaled(self, batch: int, other: int) -> Scaled:
        """Every cost as a function of the batch, from the captures at two batches."""
        return Scaled((batch, self.problem(batch).program), (other, self.problem(other).program))

    def _capture(self, batch: int | None) -> Captured:
        example = self.example if batch is None else self.example.at(batch)
        frontend = Frontend(self.model, self.written, serves=False)  # of its own: a captured size must not turn dynamic
        try:
            return climb(frontend, example.args, example.kwargs, self.request.mode, self.request.capture)
        except CaptureError as error:
            if batch == self.example.samples:
                raise
            raise PlanError(
                f"the batch of {type(self.model).__name__} cannot be varied: with {batch} samples in place of "
                f"{self.example.samples} along dimension 0: {error}; pass inputs of the batch wanted, without batch="
            ) from error


@dataclass(frozen=True)
class Largest:
    """The largest batch found: its problem and what fits, and what was said to one sample more."""

    batch: int
    problem: Problem
    candidate: Candidate
    refused: CapacityError | None

    @property
    def words(self) -> str:
        """What "largest" rests on."""
        if self.refused is None:
            return f"batch: {self.batch}, the most that is looked for"
        short = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.refused.short_bytes.items())
        return (
            f"batch: {self.batch} is the largest found that fits as a whole: {self.batch + 1} was planned too and is "
            "refused" + (f" (short: {short})" if short else "")
        )


def largest(trials: Trials, most: int = MOST_SAMPLES, *, may_go_on: Callable[[], bool] = lambda: True) -> Largest:
    """The largest batch that fits: guessed from two captures, then settled by exact plans.

    Memory is taken to grow with the batch; the answer was planned, and one sample more was planned and refused.

    Args:
        trials: the model and what was asked.
        most: the largest batch to look at.
        may_go_on: asked before each plan; once it says no, the best batch so far is the answer.

    Raises:
        CapacityError: not even one sample fits.
        PlanError: the inputs have no batch, or the model cannot be captured at another one.
    """
    return _Search(trials, most, may_go_on).run()


class _Search:
    """Looks for the largest batch from a guess: in growing steps to the other side of the limit, then by halves."""

    def __init__(self, trials: Trials, most: int, may_go_on: Callable[[], bool]) -> None:
        self.trials, self.most, self.may_go_on = trials, most, may_go_on
        self.found: dict[int, Candidate] = {}
        self.refused: dict[int, CapacityError] = {}

    def run(self) -> Largest:
        low, high, floor = 0, self.most + 1, 0  # fits, is refused, is no batch
        batch, hoped = self.guess()
        up, down = max(1, (hoped - batch) // 2), 1
        while high - low > 1 and self.may_go_on():
            if batch == 1 and not self.takes_one():
                low = floor = 1
                batch = 2
                continue
            turned = low > floor and high <= self.most
            if self.fits(batch):
                low, batch, up = batch, batch + up, 2 * up
            else:
                high, batch, down = batch, batch - down, 2 * down
            if turned or not low < batch < high:
                batch = (low + high) // 2
        if low == floor:
            raise self.refused.get(high) or CapacityError("no batch was tried in the time given")
        return Largest(low, self.trials.problem(low), self.found[low], self.refused.get(low + 1))

    def takes_one(self) -> bool:
        """Whether one sample is a batch: to a batch norm in training it is not."""
        try:
            self.trials.problem(1)
        except PlanError:
            return False
        return True

    def fits(self, batch: int) -> bool:
        try:
            self.found[batch] = search(self.trials.problem(batch), self.may_go_on)
        except CapacityError as error:
            self.refused[batch] = error
        return batch in self.found

    def guess(self) -> tuple[int, int]:
        """The largest batch that the engine's estimate lets through: corrected by one exact prediction, and not."""
        start = min(self.trials.example.batch, self.most)
        other = 2 * start if 2 * start <= self.most else start // 2
        if not other:
            return start, start
        problem = self.trials.problem(start)
        try:
            scaled = self.trials.scaled(start, other)
        except PlanError:
            if other > start:
                raise
            return start, start  # one sample alone can be another program

        def bracket(has_bytes: Mapping[str, int]) -> int:
            return _bracket(
                lambda batch: sketch(problem, problem.costed(scaled.program(batch)), has_bytes) is not None,
                start,
                self.most,
            )

        has_bytes = problem.has_bytes()
        batch = bracket(has_bytes)
        if batch == 1:
            return 1, 1
        problem_there = self.trials.problem(batch)
        placement = sketch(problem_there, problem_there.graph, has_bytes)
        short = sum(over(problem_there, problem_there.evaluate(placement)).values()) if placement is not None else 0
        if not short:
            return batch, batch
        return bracket({name: has - short // len(has_bytes) for name, has in has_bytes.items()}), batch


def _bracket(fits: Callable[[int], bool], start: int, most: int) -> int:
    """About the largest batch that fits, 1 at least."""
    low, high, batch = 0, most + 1, start
    while high - low > max(1, low // _FINE):
        if fits(batch):
            low = batch
        else:
            high = batch
        batch = min(2 * low, most) if high > most else (low + high) // 2
    return max(low, 1)
