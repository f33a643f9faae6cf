"""Which nodes must stay on one device, whatever the solver would like."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import networkx as nx
from torch import fx

from autosplit.program.facts import Facts
from autosplit.program.names import operator_name
from autosplit.program.regions import functorch_regions


def stay_together(
    graph: fx.Graph, facts: Mapping[fx.Node, Facts], sources: Mapping[fx.Node, fx.Node | None], placed: set[fx.Node]
) -> list[list[fx.Node]]:
    """Groups of nodes and sources, each in program order.

    - All nodes that return or write a storage that anybody writes: an alias on another device would go stale.
    - A container of tensors and its readers: only tensors cross between devices.
    - The nodes of a vmap or grad of functorch: its wrapped tensors make sense only between its marks.
    - ``as_strided`` and what it reads: a copy does not keep the layout of the storage.
    """
    links: nx.Graph[fx.Node] = nx.Graph()
    mutated = frozenset().union(*(fact.writes for fact in facts.values()))
    keeper: dict[int, fx.Node] = {}
    for node in graph.nodes:
        if node in placed or node in sources:
            touched = {leaf.storage for leaf in facts[node].leaves} | facts[node].writes
            for storage in touched & mutated:
                links.add_edge(keeper.setdefault(storage, node), node)
        if node in placed:
            links.add_edges_from((argument, node) for argument in _inseparable(node, facts))
    for region in functorch_regions(list(graph.nodes)):
        links.add_edges_from(pairwise(node for node in region if node in placed))
    for source, reader in sources.items():
        if source in links and reader is not None:
            links.add_edge(source, reader)  # its home is where it is first read
    position = {node: i for i, node in enumerate(graph.nodes)}
    groups = [sorted(component, key=position.__getitem__) for component in nx.connected_components(links)]
    return sorted((group for group in groups if len(group) > 1), key=lambda group: position[group[0]])


def _inseparable(node: fx.Node, facts: Mapping[fx.Node, Facts]) -> list[fx.Node]:
    strided = "as_strided" in operator_name(node)
    return [
        argument
        for argument in node.all_input_nodes
        if facts[argument].leaves and (strided or not facts[argument].is_tensor)
    ]
