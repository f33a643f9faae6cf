"""Backward passes as early as 1F1B wants them: within the call, of the loss that the model returns.

Each stage has an autograd graph of its own, on aliases of its weights, so a backward pass of one stage and micro-batch
can run between forward passes of others. What comes of it is kept aside; the caller's ``backward()`` hands it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autosplit.emit import Port
from autosplit.faults import check_loss, passing
from autosplit.pipeline.batches import Values, count_of
from autosplit.pipeline.copies import Copy, send
from autosplit.pipeline.local import Stages
from autosplit.program import goes_back
from autosplit.samples import Merge
from autosplit.schedule import Pass, ScheduleName, in_turn, orders


class Descent:
    """One training step of all micro-batches, forward and backward.

    Args:
        stages: ready to run.
        shared: weights, and inputs without a batch.
        batches: the other inputs of each micro-batch.
        loss: name of the value that is descended, a scalar.
        merge: how the losses of the micro-batches become the call's: a mean or a sum.
        parts: samples of each micro-batch.

    Attributes:
        values: what is wanted of each micro-batch, detached.
    """

    def __init__(
        self,
        stages: Stages,
        shared: Mapping[str, Any],
        batches: Sequence[Values],
        *,
        loss: str,
        merge: Merge,
        parts: Sequence[int],
    ) -> None:
        self.stages, self.loss, self.merge, self.parts = stages, loss, merge, parts
        self.shared = {name: _alias(value) for name, value in shared.items()}
        self.batches = [{name: _alias(value) for name, value in batch.items()} for batch in batches]
        self.values: list[Values] = [{} for _ in batches]
        self._counts: list[torch.Tensor] = []  # of the targets that are not ignored, as the backward passes come
        self._shared_copies: dict[tuple[str, str], torch.Tensor] = {}
        self._sent: dict[tuple[int, str, str], Any] = {}  # activations, by micro-batch, name and device
        self._taken: dict[tuple[int, int], dict[str, torch.Tensor]] = {}  # leaves of each pass that want a gradient
        self._given: dict[tuple[int, int], dict[str, torch.Tensor]] = {}  # outputs of each pass that carry one
        self._gradients: list[dict[str, torch.Tensor]] = [
            {} for _ in batches
        ]  # of activations, where they are computed

    def run(self, schedule: ScheduleName) -> None:
        """All passes, in the order of ``schedule``."""
        for one in in_turn(orders(schedule, self.stages.count, len(self.batches), trains=True)):
            if one.kind == "F":
                with passing(one.stage, one.microbatch, "forward", self.stages.runs_on(one.stage)):
                    self._forward(one)
            else:
                with passing(one.stage, one.microbatch, "backward", self.stages.runs_on(one.stage)):
                    self._backward(one)

    @property
    def scale(self) -> torch.Tensor | float:
        """What all gradients are still to be multiplied by: 1, or the share of the targets that are not ignored."""
        if not self._counts:
            return 1.0
        total = sum(self._counts[1:], start=self._counts[0])
        return torch.where(total > 0, 1 / total, torch.zeros_like(total))  # of nothing there is no gradient

    @property
    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradients of weights and other shared tensors that have one, at home; what is elsewhere is added up."""
        carrying = {name: value.grad for name, value in self.shared.items() if _carries(value)}
        found = {name: gradient for name, gradient in carrying.items() if gradient is not None}
        for (name, _), copied in self._shared_copies.items():
            if copied.grad is not None:
                found[name] = _sum(found.get(name), send(copied.grad, self.shared[name].device).arrived())
        return found

    @property
    def batch_gradients(self) -> list[Values]:
        """Gradients of each micro-batch's own inputs."""
        return [{name: value.grad for name, value in batch.items() if _carries(value)} for batch in self.batches]

    def _forward(self, one: Pass) -> None:
        graph, key = self.stages.lines[one.microbatch][one.stage], (one.stage, one.microbatch)
        taken: dict[str, torch.Tensor] = {}
        inputs = [self._take(port, one.microbatch, taken) for port in graph.takes]
        with torch.enable_grad():
            outputs = graph.graph_module.forward(*inputs)
        self._taken[key] = taken
        given = {port.name: value for port, value in zip(graph.gives, outputs, strict=True)}
        if self.loss in given:
            check_loss(given[self.loss])
        self._given[key] = {name: value for name, value in given.items() if _carries(value)}
        for port in graph.gives:
            self._keep(port, given[port.name], one.microbatch)
        for name in self.stages.done_with[one.stage]:
            for taker in self.stages.takers[name]:
                self._sent.pop((one.microbatch, name, taker), None)

    def _take(self, port: Port, microbatch: int, taken: dict[str, torch.Tensor]) -> Any:
        device = self.stages.devices[port.device]
        if port.name in self.shared:
            return self._take_shared(port, device)
        if port.name in self.batches[microbatch]:
            value = self.batches[microbatch][port.name]
            return value if value.device == device else send(value, device).arrived()
        sent = self._sent[microbatch, port.name, port.device]
        value = sent.arrived() if isinstance(sent, Copy) else sent
        if port.name in self._given[self.stages.maker[port.name], microbatch]:
            value = taken[port.name] = value.detach().requires_grad_()
        return value

    def _take_shared(self, port: Port, device: torch.device) -> Any:
        """A weight that lives elsewhere is copied once for all micro-batches."""
        value = self.shared[port.name]
        if not isinstance(value, torch.Tensor) or value.device == device:
            return value
        key = (port.name, port.device)
        if key not in self._shared_copies:
            self._shared_copies[key] = _alias(send(value, device).arrived())
        return self._shared_copies[key]

    def _keep(self, port: Port, value: Any, microbatch: int) -> None:
        value = value.detach() if isinstance(value, torch.Tensor) else value
        if port.name in self.stages.wanted:
            self.values[microbatch][port.name] = value
        for taker in self.stages.takers.get(port.name, ()):
            device = self.stages.devices[taker]
            elsewhere = isinstance(value, torch.Tensor) and value.device != device
            self._sent[microbatch, port.name, taker] = send(value, device) if elsewhere else value

    def _backward(self, one: Pass) -> None:
        key, waiting = (one.stage, one.microbatch), self._gradients[one.microbatch]
        tensors, seeds = [], []
        for name, value in self._given.pop(key).items():
            gradient = waiting.pop(name, None)
            if name == self.loss:
                gradient = _sum(gradient, torch.ones_like(value) * self._share(one.microbatch, value.device))
            if gradient is not None:
                tensors.append(value)
                seeds.append(gradient)
        if tensors:
            goes_back(tensors)
            torch.autograd.backward(tensors, seeds)
        for name, leaf in self._taken.pop(key).items():
            if leaf.grad is not None:
                home = self.stages.homes[name]
                waiting[name] = _sum(
                    waiting.get(name), leaf.grad if leaf.device == home else send(leaf.grad, home).arrived()
                )

    def _share(self, microbatch: int, device: torch.device) -> Any:
        """What the loss of a micro-batch weighs: of a mean over what is not ignored, before ``scale``."""
        if self.merge.kind == "sum":
            return 1.0
        if self.merge.counted is None:
            return self.parts[microbatch] / sum(self.parts)
        name, ignored = self.merge.counted
        values = (self.values[microbatch], self.batches[microbatch], self.shared)
        targets = next(found[name] for found in values if name in found)
        part = self.parts[microbatch] / sum(self.parts)  # of all targets, as each sample has as many
        share = (count_of(targets, ignored) * (part / targets.numel())).to(device)
        self._counts.append(share)
        return share


def _alias(value: Any) -> Any:
    """The same data, a leaf of its own: the caller's hooks see nothing, and no gradient but this step's is in it."""
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return value
    return value.detach().requires_grad_()


def _carries(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _sum(one: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if one is None else one + other
