"""The stages of a pipeline: one graph each, that takes what comes from elsewhere and gives what is wanted later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from autosplit.emit.check import check_split
from autosplit.emit.rewrite import Emitted, Rewriter
from autosplit.errors import PlanError
from autosplit.program import Program, is_control


@dataclass(frozen=True)
class Port:
    """A value that a stage takes or gives: its name, the device it is on there, and its node in the program.

    The name is the node's: "weight/NAME" and "input/NAME" for the model's weights and inputs.
    """

    name: str
    device: str
    node: fx.Node


@dataclass(frozen=True)
class StageGraph:
    """One stage: ``graph_module`` takes the values of ``takes`` in order and returns those of ``gives`` in order."""

    graph_module: fx.GraphModule
    takes: tuple[Port, ...]
    gives: tuple[Port, ...]


def cut(
    program: Program,
    stage_of: Mapping[fx.Node, int],
    assigned: Mapping[fx.Node, str],
    devices: Mapping[str, torch.device],
    *,
    keep: Sequence[fx.Node] = (),
) -> list[StageGraph]:
    """Cut ``program`` into the graphs of its stages.

    Weights, inputs and constants belong to no stage: each takes those that it reads, wherever they are. Region marks
    (autocast, grad mode) are in every stage.

    Args:
        program: a captured program; it is not changed.
        stage_of: number of the stage of each placed node.
        assigned: device name by placed node.
        devices: the torch device for each name.
        keep: nodes of which the value is wanted at the end, beside the program's results.

    Raises:
        PlanError: a stage reads what a later one computes, or a tensor that is written again after it was read.
    """
    return _Cutter(program, stage_of, assigned, devices, [*keep]).run()


class _Cutter:
    def __init__(
        self,
        program: Program,
        stage_of: Mapping[fx.Node, int],
        assigned: Mapping[fx.Node, str],
        devices: Mapping[str, torch.device],
        keep: list[fx.Node],
    ) -> None:
        self.program, self.assigned, self.devices = program, assigned, devices
        self.nodes = list(program.graph_module.graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.stage_of = {**stage_of}
        self._stages_of_numbers()
        self.count = 1 + max(self.stage_of.values(), default=0)
        self.writers: dict[int, list[fx.Node]] = {}
        for node in self.stage_of:
            for storage in program.facts[node].writes:
                self.writers.setdefault(storage, []).append(node)
        self.wanted = {*keep, *(value for value in program.results if isinstance(value, fx.Node))}

    def _stages_of_numbers(self) -> None:
        """A number is computed with the tensors that it is read from."""
        for node in self.nodes:
            if node not in self.stage_of and node.op not in ("placeholder", "get_attr", "output"):
                known = [self.stage_of[a] for a in node.all_input_nodes if a in self.stage_of]
                if known:
                    self.stage_of[node] = max(known)

    def run(self) -> list[StageGraph]:
        members: list[list[fx.Node]] = [[] for _ in range(self.count)]
        for node in self.nodes:
            for stage in self._stages(node):
                members[stage].append(node)
        members = [self._used(inside) for inside in members]
        outside = [self._outside(stage, inside) for stage, inside in enumerate(members)]
        read_later = {node for found in outside for node in found}
        return [self._emit(s, inside, outside[s], read_later) for s, inside in enumerate(members)]

    def _stages(self, node: fx.Node) -> Sequence[int]:
        if node.op in ("placeholder", "output"):
            return ()
        if node in self.stage_of:
            return (self.stage_of[node],)
        return range(self.count)  # marks, constants, and numbers that only the inputs decide

    def _used(self, inside: list[fx.Node]) -> list[fx.Node]:
        """Without the constants and numbers that nothing in the stage reads."""
        used: dict[fx.Node, None] = {}
        for node in reversed(inside):
            if node in self.stage_of or is_control(node) or any(user in used for user in node.users):
                used[node] = None
        return list(reversed(used))

    def _outside(self, stage: int, inside: list[fx.Node]) -> list[fx.Node]:
        """What the stage reads and does not compute, in program order."""
        known = set(inside)
        found: dict[fx.Node, None] = {}
        for node in inside:
            for argument in node.all_input_nodes:
                if argument not in known:
                    self._check(stage, node, argument)
                    found[argument] = None
        return sorted(found, key=self.position.__getitem__)

    def _check(self, stage: int, reader: fx.Node, argument: fx.Node) -> None:
        name, names = self.program.names[argument], self.program.names
        if self.stage_of.get(argument, -1) > stage:
            raise PlanError(
                f"stage {stage} reads {name!r}, which stage {self.stage_of[argument]} computes: a pipeline's data flow "
                "forward only; plan with the inputs of this call (a mask, labels) among the example inputs"
            )
        facts = self.program.facts
        if facts[argument].leaves and not facts[argument].is_tensor:
            raise PlanError(f"{names[reader]!r} reads parts of {name!r} in another stage: only tensors cross")
        for writer in {w for leaf in facts[argument].leaves for w in self.writers.get(leaf.storage, ())}:
            is_later = argument not in self.stage_of or self.position[writer] > self.position[reader]
            if is_later and self.stage_of[writer] != stage:
                raise PlanError(
                    f"{names[writer]!r} of stage {self.stage_of[writer]} writes to {name!r}, and stage {stage} reads "
                    "it: micro-batches would see each other's; use strategy='split'"
                )

    def _emit(self, stage: int, inside: list[fx.Node], outside: list[fx.Node], read_later: set[fx.Node]) -> StageGraph:
        home = {node: self.assigned[node] for node in inside if node in self.assigned}
        start = next(iter(home.values()))
        for node in inside:
            for argument in node.all_input_nodes:
                if not is_control(argument):
                    home.setdefault(argument, home.get(node, start))
        rewriter = _StageRewriter(self.program, home, self.devices, start, {})
        gives = [n for n in inside if self.stage_of.get(n) == stage and (n in read_later or n in self.wanted)]
        emitted = rewriter.stage(stage, inside, outside, gives)
        check_split(emitted)
        return StageGraph(
            emitted.graph_module,
            tuple(self._port(node, home[node]) for node in outside),
            tuple(self._port(node, home.get(node, start)) for node in gives),
        )

    def _port(self, node: fx.Node, device: str) -> Port:
        return Port(self.program.names[node], device, node)


class _StageRewriter(Rewriter):
    """Emits some of a program's nodes; what they read from outside is an input."""

    def stage(self, number: int, inside: list[fx.Node], outside: list[fx.Node], gives: list[fx.Node]) -> Emitted:
        number_of = {node: i for i, node in enumerate(self.program.graph_module.graph.nodes)}
        for node in outside:
            new = self.graph.placeholder(f"in{number_of[node]}")
            self.env[node] = self.at(new, self.assigned[node]) if self.program.facts[node].leaves else new
        for node in inside:
            self.bring_along(node)
            self.env[node] = new = self.emit(number_of[node], node)
            new.meta["value_name"] = self.program.names[node]
        self.graph.output(tuple(self.env[node] for node in gives))
        return self.finish(f"Stage{number}")
