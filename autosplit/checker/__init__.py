"""Checker: what a placement costs and whether it holds, found again without the code that solves or estimates.

``replay`` computes, ``check`` compares with what a Placement claims. Every result of ``solve`` passes ``check``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import networkx as nx

from autosplit.checker import clock, memory, pieces, stages, traffic
from autosplit.device import HOST, Cluster
from autosplit.errors import AutosplitError, PlanError
from autosplit.graph import CostGraph
from autosplit.placement import DIRECT, CostModel, Objective, Placement, Transfer
from autosplit.units import format_bytes

__all__ = ["Replay", "check", "replay"]


@dataclass(frozen=True)
class Replay:
    """What a placement was found to cost.

    Attributes:
        value: of the objective (ns, or bytes for "memory").
        load_ns: compute and transfers by device name, in the cost model.
        peak_bytes: most bytes held at once, by device name.
        over_bytes: bytes beyond the capacity, by name of each device that has too few.
        transfers: every tensor that goes to another device, once for each, in the order of sending.
    """

    value: int
    load_ns: dict[str, int]
    peak_bytes: dict[str, int]
    over_bytes: dict[str, int]
    transfers: tuple[Transfer, ...]


def replay(
    graph: CostGraph,
    devices: Mapping[str, str],
    cluster: Cluster,
    *,
    objective: Objective,
    cost_model: CostModel = DIRECT,
    io_device: str = HOST,
    capacities: Mapping[str, int] | None = None,
) -> Replay:
    """Cost a placement. O(nodes + reads + devices), after sorting tensors and transfers.

    Args:
        graph: what runs.
        devices: device name by node name.
        cluster: its devices.
        objective: what ``value`` is.
        cost_model: who pays for transfers, and how many micro-batches are in flight. Latency is that of one
            micro-batch: of pieces where transfers go through the host, else of the emitted program, with direct ones.
        io_device: where inputs arrive and outputs return: a device name, or "host".
        capacities: bytes by device name, in place of ``Device.memory_bytes``.

    Raises:
        PlanError: a node is placed nowhere or on a device that the cluster has not; or something else is placed.
        DeviceError: ``io_device`` is not a device of the cluster.

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node, Tensor
    >>> x = Tensor(name="x", producer="a", readers=("b",), size_bytes=25)
    >>> graph = CostGraph([Node(name="a", forward_ns={"*": 7}), Node(name="b")], [x])
    >>> replay(graph, {"a": "gpu:0", "b": "gpu:1"}, parse_cluster("2x1GiB"), objective="throughput").load_ns
    {'gpu:0': 10008, 'gpu:1': 10001}
    """
    for fault in _misplaced(graph, devices, cluster):
        raise PlanError(fault)
    if io_device != HOST:
        cluster.device(io_device)
    placed = {name: devices[name] for name in graph.nodes}
    found = list(traffic.routes(graph, placed, io_device))
    busy = traffic.busy_ns(graph, placed, cluster)
    load = traffic.load_ns(busy, found, cluster, cost_model)
    sendings = traffic.in_program_order(graph, found)
    peak = memory.peak_bytes(graph, placed, cluster.names, io_device, cost_model)
    has = {device.name: device.memory_bytes for device in cluster.devices} | dict(capacities or {})
    values = {"throughput": max(load.values()), "memory": max(peak.values())}
    if objective == "latency" and cost_model.transfers == "host":
        values[objective] = pieces.latency_ns(graph, placed, cluster, load)
    elif objective == "latency":
        values[objective] = clock.latency_ns(graph, placed, cluster, sendings)
    return Replay(
        value=values[objective],
        load_ns=load,
        peak_bytes=peak,
        over_bytes={name: size - has[name] for name, size in peak.items() if size > has[name]},
        transfers=tuple(sending.hop for sending in sendings),
    )


def check(
    graph: CostGraph,
    placement: Placement,
    cluster: Cluster,
    *,
    cost_model: CostModel = DIRECT,
    io_device: str = HOST,
    capacities: Mapping[str, int] | None = None,
    contiguous: bool = False,
) -> Replay:
    """Check that a placement is what it claims to be.

    Args:
        graph: what runs.
        placement: what a solver returned.
        cluster: its devices.
        cost_model: as for ``replay``.
        io_device: where inputs arrive and outputs return: a device name, or "host".
        capacities: bytes by device name, in place of ``Device.memory_bytes``.
        contiguous: the devices must be stages: in some order of them no tensor between nodes of the forward goes back.

    Returns:
        What was found. O(nodes + reads + devices), after sorting.

    Raises:
        AutosplitError: a bug of the solver: a node is not placed, or where it may not be, a group is split, a device
            holds more than it has, stages are not contiguous, the value is another, or the bound is above it. The
            message says what was claimed and what was found.
        DeviceError: ``io_device`` is not a device of the cluster.

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node
    >>> graph = CostGraph([Node(name="a", forward_ns={"*": 7})], [])
    >>> wrong = Placement(devices={"a": "gpu:0"}, objective="latency", value=5, bound=5, method="guess")
    >>> check(graph, wrong, parse_cluster("2x1GiB"))
    Traceback (most recent call last):
    autosplit.errors.AutosplitError: wrong result of solver 'guess': latency: claimed 5, found 7; ...
    """
    for fault in _structural(graph, placement, cluster, contiguous=contiguous):
        raise _wrong(placement, fault)
    if placement.stages:
        found = _replay_stages(graph, placement, cluster, cost_model, capacities or {})
    else:
        found = replay(
            graph,
            placement.devices,
            cluster,
            objective=placement.objective,
            cost_model=cost_model,
            io_device=io_device,
            capacities=capacities,
        )
    for fault in _numerical(placement, found):
        raise _wrong(placement, fault)
    return found


def _replay_stages(
    graph: CostGraph, placement: Placement, cluster: Cluster, model: CostModel, capacities: Mapping[str, int]
) -> Replay:
    """As replay, for a pipeline whose stages have several devices, its inputs and outputs on the host."""
    load, peak = stages.load_ns(graph, placement, cluster, model), stages.peak_bytes(graph, placement, model)
    has = {device.name: device.memory_bytes for device in cluster.devices} | dict(capacities)
    sendings = traffic.in_program_order(graph, traffic.routes(graph, placement.devices, HOST))
    return Replay(
        value=max(load.values()),
        load_ns=load,
        peak_bytes=peak,
        over_bytes={name: size - has[name] for name, size in peak.items() if size > has[name]},
        transfers=tuple(sending.hop for sending in sendings),
    )


def _wrong(placement: Placement, fault: str) -> AutosplitError:
    return AutosplitError(
        f"wrong result of solver {placement.method!r}: {fault}; this is a bug in autosplit: report it with the graph "
        "(CostGraph.to_json) and the devices"
    )


def _structural(graph: CostGraph, placement: Placement, cluster: Cluster, *, contiguous: bool) -> Iterator[str]:
    """What is wrong with where the nodes are."""
    devices = placement.devices
    misplaced = list(_misplaced(graph, devices, cluster))
    yield from misplaced
    if misplaced:
        return
    if list(devices) != list(graph.nodes):
        yield "the nodes are not in program order"
    kinds = {device.name: device.kind for device in cluster.devices}
    of_group: dict[str, str] = {}
    for name, node in graph.nodes.items():
        if node.devices and not {devices[name], kinds[devices[name]]} & set(node.devices):
            yield f"node {name!r} is on {devices[name]}, but may run only on {', '.join(node.devices)}"
        if node.group is not None and of_group.setdefault(node.group, name) != name:
            first = of_group[node.group]
            if devices[first] != devices[name]:
                yield f"group {node.group!r}: {first!r} is on {devices[first]}, {name!r} on {devices[name]}"
    if contiguous:
        yield from _loops(graph, devices)
    if placement.stages:
        yield from stages.faults(graph, placement, cluster)


def _misplaced(graph: CostGraph, devices: Mapping[str, str], cluster: Cluster) -> Iterator[str]:
    known = set(cluster.names)
    for name in graph.nodes:
        if devices.get(name) not in known:
            yield f"node {name!r} is placed on {devices.get(name)!r}: known are {', '.join(cluster.names)}"
    for name in devices:
        if name not in graph.nodes:
            yield f"node {name!r} is placed, but the graph has no such node"


def _loops(graph: CostGraph, devices: Mapping[str, str]) -> Iterator[str]:
    """A way from a device to others and back, over the tensors between nodes of the forward."""
    stages: nx.DiGraph[str] = nx.DiGraph()
    for tensor in graph.tensors.values():
        src = devices[tensor.producer]
        for reader in () if graph.nodes[tensor.producer].is_backward else tensor.readers:
            if devices[reader] != src and not graph.nodes[reader].is_backward:
                stages.add_edge(src, devices[reader], tensor=tensor.name)
    if not nx.is_directed_acyclic_graph(stages):
        loop = [f"{src} -> {dst} (tensor {stages.edges[src, dst]['tensor']!r})" for src, dst in nx.find_cycle(stages)]
        yield f"claimed to be contiguous, found {', '.join(loop)}"


def _numerical(placement: Placement, found: Replay) -> Iterator[str]:
    """What is wrong with the figures."""
    for name, over in found.over_bytes.items():
        peak = found.peak_bytes[name]
        yield f"claimed to fit, found {format_bytes(peak)} on {name}, {format_bytes(over)} ({over} B) too many"
    if placement.value != found.value:
        yield f"{placement.objective}: claimed {placement.value}, found {found.value}"
    if not 0 <= placement.bound <= placement.value:
        yield f"{placement.objective}: claimed a lower bound of {placement.bound}, found {found.value}"
