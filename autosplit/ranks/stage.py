"""One stage of a pipeline in the form that torch.distributed.pipelining runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage

from autosplit.faults import PassKind, check_loss, passing
from autosplit.program import Spec
from autosplit.ranks.relay import Crossing, Part

Values = Mapping[str, Any]
Form = Spec | int | float | bool
"""Of a value that crosses: a tensor's, or an example of a number."""


class StageModule(nn.Module):
    """Runs the graph of one stage on a micro-batch and hands on what jumps over it.

    It is called with what the stage before sent and the number of the micro-batch; the model's weights and inputs are
    this rank's own. Weights are aliases, so that a gradient is kept here and no hook of the user's fires early.

    Args:
        part: the stage.
        crossing: what it receives and sends.
        forms: of the values that cross, at the size of a micro-batch.
        results: names of the values that the model returns, on the last stage; else none.
        returns: of these, what the backward pass starts from.
    """

    def __init__(
        self,
        part: Part,
        crossing: Crossing,
        forms: Mapping[str, Form],
        results: Sequence[str] = (),
        returns: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.part, self.crossing, self.forms = part, crossing, forms
        self.wanted, self.returns = tuple(results), tuple(returns)
        self.runs_on = ", ".join(sorted({str(device) for device in part.devices.values()}))
        self.comm = torch.device("cpu")
        self.weights: Values = {}
        self.inputs: Sequence[Values] = ()
        self.results: dict[int, dict[str, Any]] = {}

    def crosses_on(self, device: torch.device) -> None:
        """Tensors are on ``device`` when they cross."""
        self.comm = device

    def begin(self, weights: Values, inputs: Sequence[Values]) -> None:
        """Take the weights (aliases) and, by micro-batch, the inputs of the calls that follow."""
        self.weights, self.inputs, self.results = weights, inputs, {}

    def end(self) -> None:
        """Let go of them."""
        self.weights, self.inputs = {}, ()

    def forward(self, *received: torch.Tensor, microbatch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run micro-batch number ``microbatch``."""
        number, part = int(microbatch), self.part
        arrived = [_aliased(value) if value.requires_grad else value for value in received]
        values = dict(zip(self.crossing.receives, arrived, strict=True))
        mine = self.inputs[number]
        taken = [self._take(name, values, mine) for name in part.takes]
        given = dict(zip(part.gives, part.call(*taken), strict=True))
        for name in self.returns:
            if name in given and given[name].ndim == 0:
                check_loss(given[name])
        if self.wanted:
            self.results[number] = {
                name: _alone(given[name] if name in given else _unpack(values[name], self.forms[name]))
                for name in self.wanted
            }
        names = self.returns if self.wanted else self.crossing.sends
        return tuple(_pack(given[name]).to(self.comm) if name in given else values[name] for name in names)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The weights that have gradients, for the schedules that compute these apart."""
        names = dict.fromkeys(name for name in self.part.takes if name in self.weights)
        return (self.weights[name] for name in names if isinstance(self.weights[name], nn.Parameter))

    def _take(self, name: str, values: Values, mine: Values) -> Any:
        if name in self.weights:
            return self.weights[name]
        value = mine[name] if name in mine else _unpack(values[name], self.forms[name])
        device = self.part.devices[name]
        return value.to(device) if isinstance(value, torch.Tensor) and value.device != device else value


def _aliased(value: torch.Tensor) -> torch.Tensor:
    run: Callable[..., torch.Tensor] = _Alias.apply
    return run(value)


class _Alias(torch.autograd.Function):
    """The same data in a tensor of its own, which may be detached; its gradient can be sent as it is."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.detach()  # no view: schedules with two backward passes detach what crosses in place

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous()


class NamedStage(PipelineStage):
    """A PipelineStage whose errors name the stage, its rank and devices, and the micro-batch."""

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """As torch's."""
        with self._pass(fwd_chunk_id, "forward"):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """As torch's."""
        with self._pass(bwd_chunk_id, "backward"):
            return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """As torch's."""
        with self._pass(bwd_chunk_id, "backward"):
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)

    def _pass(self, microbatch: int, kind: PassKind) -> AbstractContextManager[None]:
        devices: str = self.submod.runs_on  # type: ignore[assignment]  # of a StageModule
        return passing(self.stage_index, microbatch, kind, devices, rank=dist.get_rank())


def torch_stage(module: StageModule, number: int, count: int, group: dist.ProcessGroup) -> PipelineStage:
    """``module`` as a PipelineStage that knows the forms of all that crosses, so that nothing is run to find them.

    Source: torch.distributed.pipelining (its static mode).
    """
    device = comm_device(module.part, group)
    module.crosses_on(device)
    crossing, forms = module.crossing, module.forms
    returned = module.returns if module.wanted else crossing.sends
    return NamedStage(
        module,
        number,
        count,
        device,
        input_args=tuple(_example(forms[name]) for name in crossing.receives),
        output_args=tuple(_example(forms[name]) for name in returned),
        group=group,
    )


def comm_device(part: Part, group: dist.ProcessGroup) -> torch.device:
    """Where tensors are when they cross: gloo moves those of the CPU only."""
    kinds = {device.type for device in part.devices.values()}
    if dist.get_backend(group) == "gloo" or kinds <= {"cpu"} or not part.devices:
        return torch.device("cpu")
    return next(device for device in part.devices.values() if device.type != "cpu")


def _alone(value: Any) -> Any:
    """A result without its history: the backward pass has its own."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def _pack(value: Any) -> torch.Tensor:
    """A value as it crosses: a contiguous tensor; numbers in one of no dimensions."""
    if isinstance(value, torch.Tensor):
        whole = value.contiguous()
        return _aliased(whole) if whole.requires_grad else whole
    return torch.tensor(value)


def _unpack(tensor: torch.Tensor, form: Form) -> Any:
    return tensor if isinstance(form, Spec) else tensor.item()


def _example(form: Form) -> torch.Tensor:
    """A tensor without memory of the form in which the value crosses."""
    if not isinstance(form, Spec):
        return torch.tensor(form, device="meta")
    example = torch.empty(form.shape, dtype=form.dtype, device="meta")
    return example.requires_grad_() if form.requires_grad else example
