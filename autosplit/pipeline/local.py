"""A pipeline in one process: one thread issues the passes of all stages, and the devices' queues run side by side.

Without a schedule that wants backward passes early, autograd itself goes back through what the forward passes leave:
the caller's ``backward()`` is that of the unsplit model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from autosplit.emit import Port, StageGraph
from autosplit.faults import passing
from autosplit.pipeline.batches import Values
from autosplit.pipeline.copies import send
from autosplit.schedule import in_turn, orders


class Stages:
    """The stages of one call, ready to run.

    Args:
        lines: the stages, in order, for each micro-batch; those of micro-batches of one size are the same.
        devices: the torch device for each name.
        wanted: names of what is wanted at the end.

    Attributes:
        count: stages of a line.
        takers: where a value is taken, each device once, by name.
        homes: where a value is computed, by name; ``maker`` has the stage.
        done_with: what no stage takes after the one of that number.
    """

    def __init__(
        self, lines: Sequence[Sequence[StageGraph]], devices: Mapping[str, torch.device], wanted: Collection[str]
    ) -> None:
        self.lines = lines
        self.devices = devices
        self.wanted = frozenset(wanted)
        self.count = len(lines[0])
        self.takers: dict[str, list[str]] = {}
        self.homes = {port.name: devices[port.device] for graph in lines[0] for port in graph.gives}
        self.maker = {port.name: stage for stage, graph in enumerate(lines[0]) for port in graph.gives}
        last: dict[str, int] = {}
        for stage, graph in enumerate(lines[0]):
            for port in graph.takes:
                last[port.name] = stage
                takers = self.takers.setdefault(port.name, [])
                if port.device not in takers:
                    takers.append(port.device)
        self._runs_on = [", ".join(dict.fromkeys(port.device for port in graph.gives)) for graph in lines[0]]
        self.done_with: list[list[str]] = [[] for _ in lines[0]]
        for name, stage in last.items():
            self.done_with[stage].append(name)

    def runs_on(self, stage: int) -> str:
        """The devices of a stage, in words."""
        return self._runs_on[stage]

    def forward(self, shared: Mapping[str, Any], batches: Sequence[Values]) -> list[Values]:
        """The forward passes of all micro-batches.

        Args:
            shared: what does not depend on the micro-batch: weights, and inputs without a batch.
            batches: the other inputs of each.

        Returns:
            What is wanted, for each micro-batch.
        """
        flight = _Flight(self, shared, batches)
        for one in in_turn(orders("gpipe", self.count, len(batches), trains=False)):
            with passing(one.stage, one.microbatch, "forward", self.runs_on(one.stage)):
                flight.run(one.stage, one.microbatch)
        return [{name: values[name] for name in self.wanted if name in values} for values in flight.values]


class _Flight:
    """The values of one call while they are wanted."""

    def __init__(self, stages: Stages, shared: Mapping[str, Any], batches: Sequence[Values]) -> None:
        self.stages = stages
        self.shared = shared
        self.values: list[Values] = [dict(batch) for batch in batches]
        self.copies: list[dict[tuple[str, str], Any]] = [{} for _ in batches]
        self.shared_copies: dict[tuple[str, str], Any] = {}

    def run(self, stage: int, microbatch: int) -> None:
        graph = self.stages.lines[microbatch][stage]
        inputs = [self.take(port, microbatch) for port in graph.takes]
        outputs = graph.graph_module.forward(*inputs)
        for port, value in zip(graph.gives, outputs, strict=True):
            self.values[microbatch][port.name] = value
            self.send_on(port, value, microbatch)
        self.let_go(stage, microbatch)

    def take(self, port: Port, microbatch: int) -> Any:
        """The value on the device of the stage."""
        values, copies = self.values[microbatch], self.copies[microbatch]
        if port.name not in values:
            values, copies = self.shared, self.shared_copies  # type: ignore[assignment]  # only read
        key = (port.name, port.device)
        if key not in copies:
            value = values[port.name]
            device = self.stages.devices[port.device]
            if not isinstance(value, torch.Tensor) or value.device == device:
                return value
            copies[key] = send(value, device)
        return copies[key].arrived()

    def send_on(self, port: Port, value: Any, microbatch: int) -> None:
        """Start the copies at once: they run beside what the device computes next."""
        for taker in self.stages.takers.get(port.name, ()):
            device = self.stages.devices[taker]
            if isinstance(value, torch.Tensor) and value.device != device:
                self.copies[microbatch][port.name, taker] = send(value, device)

    def let_go(self, stage: int, microbatch: int) -> None:
        """What no later stage takes is freed; what autograd saved stays."""
        for name in self.stages.done_with[stage]:
            if name not in self.stages.wanted:
                self.values[microbatch].pop(name, None)
            for taker in self.stages.takers[name]:
                self.copies[microbatch].pop((name, taker), None)
