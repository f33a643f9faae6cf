"""Program: one captured torch.fx graph, who its inputs are, and what each node does to storages.

Capture makes it, costs reads it, emit rewrites it, predict runs it. The facts come from one run of the graph on fake
tensors: no kernel runs and no memory is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from autosplit.graph import Mode
from autosplit.program.accelerator import AcceleratorForms, literal
from autosplit.program.autocast import accelerator_casts
from autosplit.program.copies import COPIED
from autosplit.program.dependent import call_on_fakes
from autosplit.program.effects import analyse, written_tensors
from autosplit.program.facts import Facts, Input, InputKind, Leaf, Spec, tensor_leaves
from autosplit.program.fakes import fake_mode
from autosplit.program.groups import stay_together
from autosplit.program.names import (
    is_checkpoint,
    is_control,
    is_move,
    module_path,
    operator_name,
    source_line,
    stable_names,
)
from autosplit.program.reads import Value, read_values
from autosplit.program.recorded import RECORDED, Recorded
from autosplit.program.regions import closed_on_error, functorch_regions
from autosplit.program.sums import GradientSums, following, goes_back

__all__ = [
    "COPIED",
    "RECORDED",
    "AcceleratorForms",
    "Facts",
    "GradientSums",
    "Input",
    "InputKind",
    "Leaf",
    "Program",
    "Recorded",
    "Spec",
    "Value",
    "accelerator_casts",
    "call_on_fakes",
    "closed_on_error",
    "fake_mode",
    "following",
    "goes_back",
    "is_checkpoint",
    "is_control",
    "is_move",
    "literal",
    "module_path",
    "operator_name",
    "source_line",
    "tensor_leaves",
    "written_tensors",
]


class Program:
    """A captured graph with its inputs, its stable node names, and the facts about each node.

    Args:
        graph_module: torch-level fx graph; parameters and buffers are placeholders, as Dynamo hands them over.
        inputs: what each placeholder is, in order.
        mode: "train" records what autograd saves.
        prefix: path of the captured module in the whole model, "" for the whole.
        autocast: the dtype that the caller's autocast casts to, None when it is off.

    Attributes:
        returned: places of the outputs that the caller receives; the others stay where they are computed, as what
            forward puts into a KV cache does. None when that is not known yet.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        inputs: Iterable[Input],
        mode: Mode,
        *,
        prefix: str = "",
        autocast: torch.dtype | None = None,
    ) -> None:
        graph = graph_module.graph
        self.graph_module = graph_module
        self.mode: Mode = mode
        self.autocast = autocast
        self.returned: frozenset[int] | None = None
        self.inputs: dict[fx.Node, Input] = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
        self.names: dict[fx.Node, str] = stable_names(graph, self.inputs, prefix)
        with self.casting():
            self.facts: dict[fx.Node, Facts] = analyse(graph_module, list(self.inputs.values()), mode)
        self.reads: dict[fx.Node, dict[fx.Node, Value]] = read_values(graph, self.facts, self.names)

    @cached_property
    def nodes(self) -> list[fx.Node]:
        """The nodes to place, in program order: those that make or write a tensor."""
        return [node for node in self.graph_module.graph.nodes if self._is_placed(node)]

    @cached_property
    def sources(self) -> dict[fx.Node, fx.Node | None]:
        """Placeholders and constants that are tensors, with the first placed node that reads each."""
        first: dict[fx.Node, fx.Node | None] = {
            node: None
            for node in self.graph_module.graph.nodes
            if node.op in ("placeholder", "get_attr") and self.facts[node].is_tensor
        }
        for node in reversed(self.nodes):
            for argument in node.all_input_nodes:
                if argument in first:
                    first[argument] = node
        return first

    @cached_property
    def groups(self) -> list[list[fx.Node]]:
        """Nodes and sources that must stay on one device, two or more a group, in program order."""
        return stay_together(self.graph_module.graph, self.facts, self.sources, set(self.nodes))

    @cached_property
    def written_inputs(self) -> frozenset[int]:
        """Places of the placeholders whose storage the program writes in place."""
        written = frozenset().union(*(facts.writes for facts in self.facts.values()))
        leaves = [self.facts[node].leaves for node in self.inputs]
        return frozenset(i for i, tensors in enumerate(leaves) if any(leaf.storage in written for leaf in tensors))

    @cached_property
    def is_sized_by_data(self) -> bool:
        """Whether a size, or a number that is read, is known only when data flow: it is planned at its largest."""
        nodes = self.graph_module.graph.nodes
        return any(n.op != "placeholder" and free_unbacked_symbols(n.meta.get("example_value")) for n in nodes)

    def twins(self, other: Program) -> dict[fx.Node, fx.Node] | None:
        """The node of ``other`` for each of this program's, the same model at another size; None of other operators.

        Inputs may come in another order: it is that in which a capture came upon them.
        """
        there = {name: node for node, name in other.names.items()}
        mine, theirs = ([name for node, name in p.names.items() if node.op != "placeholder"] for p in (self, other))
        if mine != theirs or there.keys() != {*self.names.values()}:
            return None
        return {node: there[name] for node, name in self.names.items()}

    def mark_state(self, places: Iterable[int]) -> None:
        """These placeholders, by place, are state that an object keeps between calls: it stays with its readers."""
        nodes = list(self.inputs)
        for place in places:
            if self.inputs[nodes[place]].kind == "input":
                self.inputs[nodes[place]] = replace(self.inputs[nodes[place]], kind="state")

    def returns(self, place: int) -> bool:
        """Whether the caller receives the output at ``place``."""
        return self.returned is not None and place in self.returned

    def casting(self) -> AbstractContextManager[Any]:
        """The caller's autocast, for running the graph on the logical CPU."""
        return nullcontext() if self.autocast is None else torch.autocast("cpu", dtype=self.autocast)

    @cached_property
    def regions(self) -> dict[fx.Node, list[fx.Node]]:
        """The nodes of each outermost vmap or grad of functorch, by the node that opens it."""
        return {region[0]: region for region in functorch_regions(list(self.graph_module.graph.nodes))}

    @property
    def output(self) -> fx.Node:
        """The output node."""
        return self.graph_module.graph.output_node()

    @property
    def results(self) -> tuple[Any, ...]:
        """What the graph returns, in order."""
        return tuple(self.output.args[0])  # type: ignore[arg-type]  # Dynamo's graphs return one tuple

    def _is_placed(self, node: fx.Node) -> bool:
        if node.op in ("placeholder", "output", "get_attr") or is_control(node):
            return False
        return bool(self.facts[node].leaves or self.facts[node].writes)
