"""The engine alone: a networkx graph with costs, three devices, and placements with proved bounds. No model, no torch.

python examples/solve_any_graph.py
"""

from __future__ import annotations

import networkx as nx

import autosplit


def two_towers(depth: int = 6) -> nx.DiGraph:
    """A dual encoder: two chains from one input, joined at the end."""
    graph = nx.DiGraph()
    graph.add_node("input", forward_ns={"*": 1_000})
    graph.add_node("join", forward_ns={"*": 5_000})
    for tower, work_ns in (("text", 300_000), ("image", 500_000)):
        last = "input"
        for layer in range(depth):
            name = f"{tower}.{layer}"
            graph.add_node(name, forward_ns={"*": work_ns}, fixed_bytes=200_000_000)
            graph.add_edge(last, name, size_bytes=4_000_000, tensor=f"{last}.out")
            last = name
        graph.add_edge(last, "join", size_bytes=1_000_000)
    order = nx.DiGraph()  # nodes in the order in which they can run: "join" last
    order.add_nodes_from((name, graph.nodes[name]) for name in nx.topological_sort(graph))
    order.add_edges_from(graph.edges(data=True))
    return order


def main() -> None:
    """Solve it for three objectives."""
    graph = autosplit.CostGraph.from_networkx(two_towers())
    for objective in ("latency", "throughput", "memory"):
        placement = autosplit.solve(graph, "3x2GiB", objective=objective)
        used: dict[str, list[str]] = {}
        for node, device in placement.devices.items():
            used.setdefault(device, []).append(node)
        print(f"{objective}: {placement.value} (no placement is below {placement.bound}), by {placement.method}")
        for device, nodes in used.items():
            print(f"  {device}: {', '.join(nodes)}")


if __name__ == "__main__":
    main()
