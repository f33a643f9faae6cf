"""What one step is: forward passes, and in training backward passes and the optimizers' updates, in which order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autosplit.errors import PlanError
from autosplit.predict.ledger import Log, Step
from autosplit.predict.tracker import Tracker
from autosplit.program import tensor_leaves

OptimizerFactory = Callable[[Mapping[str, torch.Tensor]], torch.optim.Optimizer]

_STEADY = 2  # micro-batches after those in flight, from which on all are alike


@dataclass(frozen=True)
class Workload:
    """How many micro-batches make one step, and how many of them are held at once.

    Gradient accumulation over N batches is ``Workload(microbatches=N)``. A pipeline of S stages and M micro-batches
    holds all of them under GPipe, ``in_flight=M``, and on the device of stage s (from 0) ``S - s`` of them under 1F1B.

    Attributes:
        microbatches: forward passes (and backward passes) in one step; their gradients are summed.
        in_flight: forward passes whose backward has not run yet, at most; a mapping gives it by device name.
            In inference: the forward passes whose results are held at once.

    Raises:
        PlanError: less than 1 micro-batch, or more in flight than there are.

    >>> Workload(microbatches=8, in_flight={"gpu:0": 2, "gpu:1": 1}).held_on("gpu:0")
    2
    """

    microbatches: int = 1
    in_flight: int | Mapping[str, int] = 1

    def __post_init__(self) -> None:
        counts = list(self.in_flight.values()) if isinstance(self.in_flight, Mapping) else [self.in_flight]
        if self.microbatches < 1 or any(not 1 <= count <= self.microbatches for count in counts):
            raise PlanError(
                f"{self.microbatches} micro-batches, of which {self.in_flight} in flight: "
                "give one micro-batch or more, and of them one to all in flight"
            )

    @property
    def passes(self) -> int:
        """Passes of the whole program that a prediction runs: a device's memory depends on its own number in flight."""
        held = {*self.in_flight.values()} if isinstance(self.in_flight, Mapping) else {self.in_flight}
        return sum(min(self.microbatches, count + _STEADY) for count in held)

    def held_on(self, device: str) -> int:
        """Micro-batches in flight on a device."""
        return self.in_flight.get(device, 1) if isinstance(self.in_flight, Mapping) else self.in_flight


@dataclass
class Steps:
    """The model's steps on fakes.

    Attributes:
        tracker: notes what they allocate.
        run: the emitted program.
        values: its inputs; of a second micro-batch that is held beside the first, ``fresh`` makes them.
        held: micro-batches in flight.
        microbatches: micro-batches of a step.
        kept: places of the outputs that are put into a cache.
    """

    tracker: Tracker
    run: Callable[..., Sequence[Any]]
    values: list[Any]
    fresh: Callable[[], list[Any]]
    held: int
    microbatches: int
    kept: frozenset[int] = frozenset()

    def infer(self) -> Log:
        """The forward passes that are held at once."""
        results = []
        with self.tracker.phase("forward", "activations"):
            for i in range(self.held):
                results.append(self.run(*(self.fresh() if i else self.values)))
                put_away = [output for place, output in enumerate(results[-1]) if place in self.kept]
                self.tracker.settle(tensor_leaves(put_away), "cache")
        return self.tracker.log

    def train(self, trained: Mapping[str, torch.Tensor], factory: OptimizerFactory | None) -> Log:
        """Two training steps; in the second the optimizer's state is there from the start, as in all that follow.

        The passes of both are the same, so they are run once and noted twice, unless an update lets go of gradients.
        """
        parameters = list(trained.values())
        with self.tracker.making("optimizer"):
            optimizers = [factory(group) for group in _by_device(trained)] if factory else []
        results: list[Any] = []
        passes = self.tracker.now()
        self._pass(parameters, results)
        first = self.tracker.now()
        self._update(optimizers)
        second = self.tracker.now()
        self._update(optimizers)
        step = Step(passes, first, second, self.tracker.now())
        if step.can_repeat(self.tracker.log):
            self._let_go(parameters, results)
            return step.twice(self.tracker.log)
        self._let_go(parameters, results)
        self.tracker.log.steps.append(self.tracker.position)
        self._pass(parameters, results)
        self._update(optimizers)
        self._let_go(parameters, results)
        return self.tracker.log

    def _pass(self, parameters: list[torch.Tensor], results: list[Any]) -> None:
        """All forward and backward passes of one step; the last results are left, as a caller has them.

        A caller drops the results of a micro-batch before the next one.
        """
        waiting: deque[list[Any]] = deque()
        for i in range(min(self.microbatches, self.held + _STEADY)):
            results.clear()
            waiting.append(self._forward(self.fresh() if i and self.held > 1 else self.values))
            if len(waiting) == self.held:
                results += waiting.popleft()
                self._backward(results[0], parameters)
        while waiting:
            results.clear()
            results += waiting.popleft()
            self._backward(results[0], parameters)

    def _let_go(self, parameters: list[torch.Tensor], results: list[Any]) -> None:
        """What a caller does at the end of a step: the gradients are set to None, the results are dropped."""
        for parameter in parameters:
            parameter.grad = None
        results.clear()
        for tensor in tensor_leaves(self.values):
            if not tensor.is_leaf:
                tensor.detach_()  # the model wrote to an input: the next step brings a new batch, without its history

    def _forward(self, values: list[Any]) -> list[Any]:
        with self.tracker.phase("forward", "activations"):
            outputs = self.run(*values)
            return [training_loss(outputs), outputs, values]

    def _backward(self, loss: torch.Tensor | None, parameters: list[torch.Tensor]) -> None:
        if loss is None:
            return
        self.tracker.sums.watch([loss])
        with self.tracker.phase("backward", "workspace"):
            torch.autograd.backward(loss)  # not loss.backward(): that leaves the accelerator forms off meanwhile
        self.tracker.settle((p.grad for p in parameters if p.grad is not None), "gradients")

    def _update(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        since = len(self.tracker.log.events)
        with self.tracker.phase("step", "workspace"):
            for optimizer in optimizers:
                optimizer.step()
        self.tracker.settle_new(since, "optimizer")


def _by_device(parameters: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    groups: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(parameter.device, {})[name] = parameter
    return list(groups.values())


def training_loss(outputs: Any) -> torch.Tensor | None:
    """The scalar that a training step is taken to descend.

    The first real scalar among the outputs that carries a gradient (a model that returns its loss); else the sum of
    all outputs that carry one, of complex ones the real parts; None when none does.
    """
    differentiable = [leaf for leaf in tensor_leaves(outputs) if leaf.requires_grad]
    for leaf in differentiable:
        if leaf.dim() == 0 and not leaf.is_complex():
            return leaf
    if not differentiable:
        return None
    total = _real_sum(differentiable[0])
    for leaf in differentiable[1:]:
        total = total + _real_sum(leaf).to(total.device)
    return total


def _real_sum(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.sum()
    return total.real if total.is_complex() else total  # autograd descends real numbers only
