"""A walk through an emitted graph: every operation in its own context, on arguments of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx

from autosplit.profiler.operation import Operation, operation_of
from autosplit.program import closed_on_error, is_control

Visit = Callable[[fx.Node, Operation], None]


def walk(
    graph_module: fx.GraphModule,
    forms: Mapping[fx.Node, Any],
    visit: Visit,
    *,
    device: torch.device,
    writes: Collection[fx.Node],
    skip: Collection[fx.Node],
) -> None:
    """Show ``visit`` each operation, with autocast and grad mode as they are there.

    Args:
        graph_module: an emitted graph.
        forms: the form of each node's result: a Spec in the place of each tensor.
        visit: may run the operation.
        device: the graph is emitted for it.
        writes: nodes that write an argument in place.
        skip: nodes that are not shown, and region marks that are not entered.
    """
    marks: dict[fx.Node, Any] = {}
    with closed_on_error(device.type):
        for node in graph_module.graph.nodes:
            if node in skip or node.op not in ("call_function", "call_method"):
                continue
            if is_control(node):
                marks[node] = _enter(node, marks)
            else:
                visit(node, operation_of(node, forms, graph_module, writes=node in writes))


def _enter(node: fx.Node, marks: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), marks.get)
    return node.target(*args, **kwargs)  # type: ignore[operator]  # a control mark is a call of a function
