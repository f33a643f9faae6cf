"""Latency of pieces that a host offers to accelerators: ``autosplit.estimate.pieces``' rules, not its code."""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx

from autosplit.device import Cluster
from autosplit.graph import CostGraph


def latency_ns(graph: CostGraph, devices: Mapping[str, str], cluster: Cluster, load_ns: Mapping[str, int]) -> int:
    """The longest path over the host's nodes and the pieces; 2**62 when pieces wait for each other.

    Args:
        graph: what runs.
        devices: device name by node name.
        cluster: its devices.
        load_ns: by device name, in the cost model.
    """
    kind = {device.name: device.kind for device in cluster.devices}
    waits: nx.DiGraph[tuple[str, str]] = nx.DiGraph()
    part: dict[str, tuple[str, str]] = {}
    for name, device in devices.items():
        on_host = kind[device] == "cpu"
        part[name] = ("node", name) if on_host else ("piece", device)
        waits.add_node(part[name], takes=graph.node_ns(name, "cpu") if on_host else load_ns[device])
    for tensor in graph.tensors.values():
        ends = {part[reader] for reader in tensor.readers} - {part[tensor.producer]}
        waits.add_edges_from((part[tensor.producer], end) for end in ends)
    done: dict[tuple[str, str], int] = {}
    try:
        for own in nx.topological_sort(waits):
            start = max((done[other] for other in waits.pred[own]), default=0)
            done[own] = start + waits.nodes[own]["takes"]
    except nx.NetworkXUnfeasible:
        return 2**62
    return max(done.values(), default=0)
