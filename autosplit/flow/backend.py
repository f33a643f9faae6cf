"""autosplit as a backend of networkx: ``nx.minimum_cut(G, s, t, backend="autosplit")``.

networkx finds this module by the entry point ``networkx.backends`` when it is first needed. The functions have
networkx's names, arguments, results and exceptions; of several minimum cuts they return the one networkx returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx

from autosplit.flow.network import SINK, SOURCE, FlowNetwork
from autosplit.flow.residual import Numbered, boykov_kolmogorov

Cut = tuple[Any, tuple[set[Any], set[Any]]]


class FlowGraph:
    """A graph of networkx in the eyes of its dispatch; it refers to it, nothing is copied."""

    __networkx_backend__ = "autosplit"

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def is_directed(self) -> bool:
        """As the graph is."""
        return bool(self.graph.is_directed())

    def is_multigraph(self) -> bool:
        """As the graph is."""
        return bool(self.graph.is_multigraph())


def convert_from_nx(graph: Any, **_: Any) -> FlowGraph:
    """The graph, marked as ours."""
    return FlowGraph(graph)


def convert_to_nx(obj: Any, *, name: str | None = None) -> Any:
    """The graph of networkx; of a FlowNetwork a DiGraph on its nodes, SOURCE and SINK."""
    if isinstance(obj, FlowGraph):
        return obj.graph
    if not isinstance(obj, FlowNetwork):
        return obj
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from((SOURCE, SINK, *range(len(obj))))
    for u, v, capacity in obj.arcs():
        graph.add_edge(u, v, **({} if capacity is None else {"capacity": capacity}))
    return graph


def can_run(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool | str:
    """Whether these arguments are for us, or why not."""
    if any(arg is not None for arg in (*args[4:], kwargs.get("flow_func"))):
        return "autosplit has one algorithm: leave out flow_func and what belongs to it"
    others = kwargs.keys() - {"flowG", "_s", "_t", "capacity", "flow_func"}
    return f"autosplit knows no {', '.join(sorted(others))}" if others else True


def minimum_cut(flowG: Any, _s: Any, _t: Any, capacity: str = "capacity", flow_func: None = None) -> Cut:
    """``nx.minimum_cut``. Of several cuts that with the greatest source side, as there."""
    if isinstance(flowG, FlowNetwork) and (_s, _t) == (SOURCE, SINK):
        value, inside = flowG.minimum_cut(largest=True)
        return value, (inside | {SOURCE}, set(range(len(flowG))) - inside | {SINK})
    numbered = Numbered(convert_to_nx(flowG), _s, _t, capacity)
    value, inside = numbered.network.minimum_cut(largest=True)
    names = numbered.nodes
    outside = set(range(len(names))) - inside
    return numbered.scale.down(value), ({_s, *(names[i] for i in inside)}, {_t, *(names[i] for i in outside)})


def minimum_cut_value(flowG: Any, _s: Any, _t: Any, capacity: str = "capacity", flow_func: None = None) -> Any:
    """``nx.minimum_cut_value``."""
    return minimum_cut(flowG, _s, _t, capacity)[0]


def maximum_flow_value(flowG: Any, _s: Any, _t: Any, capacity: str = "capacity", flow_func: None = None) -> Any:
    """``nx.maximum_flow_value``."""
    return minimum_cut(flowG, _s, _t, capacity)[0]


def maximum_flow(
    flowG: Any,
    _s: Any,
    _t: Any,
    capacity: str = "capacity",
    flow_func: None = None,
) -> tuple[Any, dict[Any, dict[Any, Any]]]:
    """``nx.maximum_flow``: the value, and the flow by ends of an edge."""
    graph = convert_to_nx(flowG)
    found: tuple[Any, dict[Any, dict[Any, Any]]] = nx.maximum_flow(
        graph, _s, _t, capacity=capacity, flow_func=boykov_kolmogorov, backend="networkx"
    )
    return found
