"""The algorithm as networkx's own: ``flow_func=`` of its cuts and flows."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
from networkx.algorithms.flow import build_residual_network

from autosplit.flow.network import SINK, SOURCE, FlowNetwork
from autosplit.flow.numbers import Edge, Scale


def check_terminals(graph: Any, source: Any, sink: Any) -> None:
    """Raise what networkx's flow functions raise for terminals or a graph that they cannot take."""
    for node in (source, sink):
        if node not in graph:
            raise nx.NetworkXError(f"node {node} not in graph")
    if source == sink:
        raise nx.NetworkXError("source and sink are the same node")
    if graph.is_multigraph():
        raise nx.NetworkXError("MultiGraph and MultiDiGraph not supported (yet).")


def capacities(graph: Any, capacity: str) -> list[Edge]:
    """The edges with their capacities, infinite where there is none."""
    return list(graph.edges(data=capacity, default=math.inf))


class Numbered:
    """A graph of networkx as a FlowNetwork.

    Attributes:
        network: the arcs, scaled to integers.
        nodes: names of its nodes.
        scale: what the capacities were multiplied by.
    """

    def __init__(self, graph: Any, source: Any, sink: Any, capacity: str) -> None:
        check_terminals(graph, source, sink)
        edges = capacities(graph, capacity)
        self.scale = Scale(edges)
        self.nodes = [node for node in graph if node not in (source, sink)]
        self.network = FlowNetwork(len(self.nodes))
        self._terminals = {SOURCE: source, SINK: sink}
        number = {node: i for i, node in enumerate(self.nodes)} | {source: SOURCE, sink: SINK}
        directed, up = graph.is_directed(), self.scale.up
        for u, v, most in edges:
            whole = up(most)
            self.network.add_arc(number[u], number[v], whole, 0 if directed else whole)

    def name(self, node: int) -> Any:
        """The graph's own name of a node or a terminal."""
        return self._terminals[node] if node < 0 else self.nodes[node]


def boykov_kolmogorov(
    G: Any,  # noqa: N803 - networkx's name
    s: Any,
    t: Any,
    capacity: str = "capacity",
    residual: Any = None,
    *,
    value_only: bool = False,
    cutoff: float | None = None,
) -> Any:
    """A maximum flow, as networkx's flow functions give it; for ``flow_func=``.

    Args:
        G: a Graph or DiGraph of networkx. Capacities are any real numbers; floats are handled exactly.
        s: the source.
        t: the sink.
        capacity: the attribute with the capacities; an edge without it is infinite.
        residual: a residual network of an earlier call for this graph, to be used again.
        value_only: is not looked at; the whole flow is always there.
        cutoff: stop at a flow of at least so much; then no minimum cut can be read from the result.

    Returns:
        The residual network, by networkx's conventions: ``R[u][v]["flow"]``, ``R.graph["flow_value"]``.

    Raises:
        NetworkXError: a terminal is not in the graph, both are one, the graph is a multigraph, or a capacity is
            negative or NaN.
        NetworkXUnbounded: a path of infinite capacity joins the terminals.

    Source: Boykov, Kolmogorov 2004 (``autosplit.flow.trees``).

    >>> wire = nx.DiGraph([("x", "a", {"capacity": 3.0}), ("a", "y", {"capacity": 0.5})])
    >>> nx.minimum_cut(wire, "x", "y", flow_func=boykov_kolmogorov) == (0.5, ({"x", "a"}, {"y"}))
    True
    """
    check_terminals(G, s, t)
    if residual is None:
        Scale(capacities(G, capacity))  # build_residual_network leaves out what it should refuse
        residual = build_residual_network(G, capacity)
    numbered = Numbered(residual, s, t, "capacity")
    scale = numbered.scale
    enough = None if cutoff is None or cutoff == math.inf else math.ceil(cutoff * scale.denominator)
    value, flows = numbered.network.maximum_flow(cutoff=enough)
    if scale.down(value) * 2 > residual.graph["inf"]:
        raise nx.NetworkXUnbounded("Infinite capacity path, flow unbounded above.")
    for _, _, edge in residual.edges(data=True):
        edge["flow"] = 0
    for u, v, whole in flows:
        name_u, name_v = numbered.name(u), numbered.name(v)
        edge = residual[name_u][name_v]
        edge["flow"] = scale.down_within(whole, edge["capacity"])
        residual[name_v][name_u]["flow"] = -edge["flow"]
    residual.graph |= {"flow_value": scale.down(value), "algorithm": "boykov_kolmogorov"}
    return residual
