"""Runs the stages of this rank by a schedule of torch.distributed.pipelining and keeps the gradients aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.pipelining._utils import generate_stage_to_rank_mapping
from torch.distributed.pipelining.schedules import FORWARD, RECV_F, SEND_F, get_schedule_class

from autosplit.errors import PlanError
from autosplit.ranks.stage import StageModule, Values
from autosplit.schedule import ScheduleName

_OF_ONE_STAGE = ("gpipe", "1f1b")
_FOLDED = ("zbvzerobubble",)
_FORWARD = (FORWARD, RECV_F, SEND_F)

Weigh = Callable[[int, torch.Tensor], torch.Tensor]


def ranks_of_stages(schedule: ScheduleName, stages: int, ranks: int) -> list[int]:
    """The rank that torch's schedule wants each stage on: in turn, or there and back for those that are folded to a V.

    >>> ranks_of_stages("interleaved1f1b", 4, 2), ranks_of_stages("zbvzerobubble", 4, 2)
    ([0, 1, 0, 1], [0, 1, 1, 0])
    """
    style: Any = "v" if schedule in _FOLDED else "loop"
    found = generate_stage_to_rank_mapping(ranks, stages, style)
    return [found[stage] for stage in range(stages)]


class Engine:
    """The stages of this rank under one schedule.

    Args:
        stages: of this rank, in order.
        schedule: "gpipe" where ``loss`` is None and gradients are wanted.
        microbatches: how many.
        weigh: from the number of a micro-batch and its loss to what that counts in the whole's; None for forward passes
            only, or with ``in_two``.
        in_two: run the forward passes, and the backward passes when ``backward`` is called.

    Raises:
        PlanError: torch refuses the schedule for these stages and micro-batches; says why.
    """

    def __init__(
        self,
        stages: Sequence[PipelineStage],
        schedule: ScheduleName,
        microbatches: int,
        weigh: Weigh | None = None,
        *,
        in_two: bool = False,
    ) -> None:
        self.stages = list(stages)
        self.modules: list[StageModule] = [stage.submod for stage in stages]  # type: ignore[misc]  # as we made them
        self._count = microbatches
        self._numbers = torch.arange(microbatches)
        self._in_two = in_two
        self._aliases: dict[str, Any] = {}
        self._schedule: Any = _make(self.stages, schedule, microbatches, _Loss(weigh) if weigh else None, in_two)

    def run(self, weights: Values, inputs: Sequence[Values]) -> dict[int, dict[str, Any]]:
        """All passes, or the forward passes where the backward ones come later.

        Args:
            weights: this rank's, by name.
            inputs: the model's, by micro-batch and name.

        Returns:
            On the rank of the last stage the results by micro-batch and name; else nothing.
        """
        self._aliases = {name: _alias(weight) for name, weight in weights.items()}
        for module in self.modules:
            module.begin(self._aliases, inputs)
        self._step()
        results = self.modules[-1].results
        for module in self.modules:
            module.end()
        return results

    def backward(self, gradients: Mapping[int, Sequence[torch.Tensor | None]]) -> None:
        """The backward passes, from the gradients of what the last stage returns, by micro-batch (on its rank)."""
        with torch.enable_grad():  # we are within the caller's backward pass
            self._schedule.backward(gradients)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Those of the weights by name, summed over the micro-batches; handed out once."""
        found = {name: alias.grad for name, alias in self._aliases.items() if isinstance(alias, torch.nn.Parameter)}
        self._aliases = {}
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    def _step(self) -> None:
        numbers = self._numbers
        if self._in_two:
            self._schedule.forward(numbers)
            return
        target = {"target": numbers} if self._schedule._has_backward and self.stages[-1].is_last else {}
        with torch.enable_grad() if self._schedule._has_backward else torch.no_grad():
            self._schedule.step(microbatch=numbers, return_outputs=False, **target)


class _Loss:
    """The loss of a micro-batch as it counts in the whole's; torch hands over the number as its target."""

    def __init__(self, weigh: Weigh) -> None:
        self._weigh = weigh

    def __call__(self, output: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        return self._weigh(int(target), output[0])


class GPipeInTwo(ScheduleGPipe):
    """GPipe's order, cut at the turn: the loss is computed outside the model, so the backward passes come later.

    Source: Huang et al., GPipe, 2019; torch.distributed.pipelining runs both halves in one call.
    """

    def __init__(self, stage: PipelineStage, microbatches: int) -> None:
        super().__init__(stage, microbatches, loss_fn=lambda output, target: output, scale_grads=False)

    def forward(self, numbers: torch.Tensor) -> None:
        """All forward passes."""
        stage = self._stage
        stage.has_backward = True
        stage.clear_runtime_states()
        initialise: Callable[..., None] = self._initialize_stage
        initialise((), {"microbatch": numbers[:1]})
        sends: list[Any] = []
        for i in range(self._n_microbatches):
            _wait(stage.get_fwd_recv_ops(i))
            stage.forward_one_chunk(i, (), {"microbatch": numbers[i : i + 1]}, save_forward_output=False)
            sends += _start(stage.get_fwd_send_ops(i))
        for work in sends:
            work.wait()

    def backward(self, gradients: Mapping[int, Sequence[torch.Tensor | None]]) -> None:
        """All backward passes; ``gradients`` of what the last stage returned, by micro-batch."""
        stage = self._stage
        start: Callable[..., torch.Tensor] = _Root.apply
        sends: list[Any] = []
        for i in range(self._n_microbatches):
            _wait(stage.get_bwd_recv_ops(i))
            root = None
            if stage.is_last:
                outputs, _ = stage.fwd_cache[i]
                root = start(gradients[i], *outputs)
            stage.backward_one_chunk(i, loss=root, last_backward=i == self._n_microbatches - 1)
            sends += _start(stage.get_bwd_send_ops(i))
        for work in sends:
            work.wait()


class _Root(torch.autograd.Function):
    """Where a backward pass starts that is given the gradients of several tensors."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[torch.Tensor | None], *outputs: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return None, *ctx.gradients


def _make(
    stages: list[PipelineStage], schedule: ScheduleName, microbatches: int, loss: _Loss | None, in_two: bool
) -> Any:
    if in_two:
        return GPipeInTwo(stages[0], microbatches)
    is_single = schedule in _OF_ONE_STAGE
    kind = get_schedule_class(schedule)
    try:
        made: Any = kind(stages[0] if is_single else stages, microbatches, loss_fn=loss, scale_grads=False)
    except ValueError as error:
        raise PlanError(f"schedule {schedule!r} with {microbatches} micro-batches: {error}") from error
    if loss is None and not is_single:  # torch's own forward-only run fails where a rank has two stages in a row
        for rank, actions in made.pipeline_order_with_comms.items():
            made.pipeline_order_with_comms[rank] = [a for a in actions if a.computation_type in _FORWARD]
    return made


def _alias(weight: Any) -> Any:
    """The same memory with a gradient of its own: the user's hooks on the weight do not see it."""
    if isinstance(weight, torch.nn.Parameter) and weight.requires_grad:
        return torch.nn.Parameter(weight.detach())
    return weight.detach() if isinstance(weight, torch.nn.Parameter) else weight


def _start(ops: list[Any]) -> list[Any]:
    return dist.batch_isend_irecv(ops) if ops else []


def _wait(ops: list[Any]) -> None:
    for work in _start(ops):
        work.wait()
