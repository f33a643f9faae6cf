"""Which value each node reads: one tensor in one state of its storage, under one grad mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from autosplit.program.facts import Facts
from autosplit.program.names import operator_name


@dataclass(frozen=True)
class Value:
    """What a reader sees.

    After an in-place write the old copies of a tensor are stale, and a copy made where gradients are off must not be
    read where they flow: so a transfer is made once per value and destination, not once per tensor.

    Attributes:
        name: the node's name, with the version of its storages and the grad mode where they matter.
        node: the graph node that the tensor is read from.
        producer: the node that computed or last wrote it; None for an input, weight or constant never written.
        requires_grad: it carries a gradient where it is read.
    """

    name: str
    node: fx.Node
    producer: fx.Node | None
    requires_grad: bool = False


def read_values(
    graph: fx.Graph, facts: Mapping[fx.Node, Facts], names: Mapping[fx.Node, str]
) -> dict[fx.Node, dict[fx.Node, Value]]:
    """For each node, the value it sees of each tensor argument."""
    version: dict[int, int] = {}
    writer: dict[int, fx.Node] = {}
    born: dict[fx.Node, tuple[int, ...]] = {}
    grad = ""
    reads: dict[fx.Node, dict[fx.Node, Value]] = {}

    def versions(node: fx.Node) -> tuple[int, ...]:
        return tuple(version.get(leaf.storage, 0) for leaf in facts[node].leaves)

    def value(node: fx.Node, requires_grad: bool) -> Value:
        producer = None if node.op in ("placeholder", "get_attr") else node
        suffix = ""
        if versions(node) != born[node]:
            suffix = "@" + ".".join(map(str, versions(node)))
            producer = next(writer[leaf.storage] for leaf in facts[node].leaves if leaf.storage in writer)
        return Value(names[node] + suffix + (grad if requires_grad else ""), node, producer, requires_grad and not grad)

    for node in graph.nodes:
        reads[node] = {
            argument: value(argument, argument in facts[node].differentiable)
            for argument in node.all_input_nodes
            if facts[argument].leaves
        }
        grad = _grad_mode(node, grad)
        for storage in facts[node].writes:
            version[storage] = version.get(storage, 0) + 1
            writer[storage] = node
        born[node] = versions(node)
    return reads


def _grad_mode(node: fx.Node, current: str) -> str:
    """The suffix of values read after ``node``: "" where gradients flow as the caller says, else "!no_grad"."""
    name = operator_name(node)
    if node.op != "call_function":
        return current
    if name == "_set_grad_enabled":
        return "" if node.args[0] else "!no_grad"
    if name == "_enter_inference_mode":
        return "!no_grad" if node.args[0] else current
    return "" if name == "_exit_inference_mode" else current
