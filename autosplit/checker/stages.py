"""The stages of a placement: what they take and hold, found again from the rules in ``autosplit.placement.Stage``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autosplit.checker import memory, traffic
from autosplit.device import HOST, Cluster
from autosplit.graph import CostGraph
from autosplit.placement import CostModel, Placement, Stage, Transfer


def peak_bytes(graph: CostGraph, placement: Placement, model: CostModel) -> dict[str, int]:
    """Most bytes held at once, by name of each device of a stage; inputs and outputs are the host's."""
    again = {name for stage in placement.stages for name in stage.recomputed}
    peaks = memory.stage_bytes(graph, placement.devices, held_by(placement.stages, model), again)
    return {device: peaks[stage.devices[0]] for stage in placement.stages for device in stage.devices}


def load_ns(graph: CostGraph, placement: Placement, cluster: Cluster, model: CostModel) -> dict[str, int]:
    """The time of its stage for one micro-batch of the pipeline, by name of each device of a stage."""
    found = stage_ns(graph, placement, cluster, model)
    return {device: found[stage.devices[0]] for stage in placement.stages for device in stage.devices}


def faults(graph: CostGraph, placement: Placement, cluster: Cluster) -> Iterator[str]:
    """What is wrong with the form of the stages, in words."""
    used = [device for stage in placement.stages for device in stage.devices]
    nodes = [name for stage in placement.stages for name in stage.nodes]
    kinds = {device.name: device.kind for device in cluster.devices}
    if not set(used) <= set(kinds) or len(set(used)) < len(used):
        yield f"stages on {', '.join(used)}: each device once, of {', '.join(kinds)}"
        return
    if sorted(nodes) != sorted(graph.nodes):
        yield "the stages do not hold every node once"
        return
    for stage in placement.stages:
        yield from _of_stage(graph, placement, kinds, stage)
    place = {name: number for number, stage in enumerate(placement.stages) for name in stage.nodes}
    for tensor in graph.tensors.values():
        for reader in () if graph.nodes[tensor.producer].is_backward else tensor.readers:
            if place[reader] < place[tensor.producer] and not graph.nodes[reader].is_backward:
                yield f"tensor {tensor.name!r} goes back from {tensor.producer!r} to {reader!r}"


def _of_stage(graph: CostGraph, placement: Placement, kinds: Mapping[str, str], stage: Stage) -> Iterator[str]:
    if not stage.devices or len({kinds[device] for device in stage.devices}) > 1:
        yield f"a stage on {', '.join(stage.devices) or 'no device'}: devices of one kind share a stage"
    for name in stage.nodes:
        if stage.devices[:1] != (placement.devices[name],):
            yield f"node {name!r} is on {placement.devices[name]}, its stage on {', '.join(stage.devices)}"
    for name, device in ((name, device) for name in stage.nodes for device in stage.devices):
        may = graph.nodes[name].devices
        if may and not {device, kinds[device]} & set(may):
            yield f"node {name!r} is on {device}, but may run only on {', '.join(may)}"
    for name in stage.recomputed:
        if name not in stage.nodes or graph.nodes[name].recomputed is None:
            yield f"node {name!r} is recomputed, but not of the stage, or it cannot be"


def held_by(stages: tuple[Stage, ...], model: CostModel) -> dict[str, int]:
    """Micro-batches that each device of a stage holds, by the name of the stage's first device."""
    held, to_end = {}, sum(len(stage.devices) for stage in stages)
    for stage in stages:
        own = _share(model.microbatches, stage)
        held[stage.devices[0]] = own if model.schedule == "gpipe" else min(own, _share(to_end, stage))
        to_end -= len(stage.devices)
    return held


def _share(amount: int, stage: Stage) -> int:
    return -(-amount // len(stage.devices))


def stage_ns(graph: CostGraph, placement: Placement, cluster: Cluster, model: CostModel) -> dict[str, int]:
    """The time of each stage for one micro-batch of the pipeline, by the name of its first device."""
    moved = _transfers_ns(graph, placement, cluster, model)
    kinds = {device.name: device.kind for device in cluster.devices}
    found = {}
    for stage in placement.stages:
        first = stage.devices[0]
        again = set(stage.recomputed)
        times = ((graph.recomputed_ns if name in again else graph.node_ns)(name, kinds[first]) for name in stage.nodes)
        busy, exchange = sum(times), _exchange_ns(graph, stage, cluster, model)
        if model.overlap:
            found[first] = max(_share(busy, stage) + exchange, _share(moved[first], stage))
        else:
            found[first] = _share(busy + moved[first], stage) + exchange
    return found


def _exchange_ns(graph: CostGraph, stage: Stage, cluster: Cluster, model: CostModel) -> int:
    count = len(stage.devices)
    if graph.mode != "train" or count == 1:
        return 0
    speed = cluster.link(*stage.devices[:2]).bandwidth_bytes_per_s
    sizes: dict[str, int] = {}
    for tensor in memory.in_order(graph):
        if tensor.is_weight and tensor.requires_grad:
            sizes.setdefault(tensor.allocation, tensor.size_bytes if tensor.producer in stage.nodes else 0)
    once = sum(size * 10**9 // speed for size in sizes.values())
    return -(-4 * (count - 1) * once // (count * model.microbatches))


def _transfers_ns(graph: CostGraph, placement: Placement, cluster: Cluster, model: CostModel) -> dict[str, int]:
    """What each stage pays, by the name of its first device, and the host."""
    devices_of = {stage.devices[0]: stage.devices for stage in placement.stages} | {HOST: (HOST,)}
    kinds = {device.name: device.kind for device in cluster.devices}
    hosts = (
        {HOST, *(first for first in devices_of if kinds.get(first) == "cpu")} if model.transfers == "host" else set()
    )
    paid = dict.fromkeys(devices_of, 0)

    def cost(src: str, dst: str, hop: Transfer) -> int:
        if src in hosts and dst in hosts:
            return 0
        return max(traffic.transfer_ns(cluster, a, b, hop) for a in devices_of[src] for b in devices_of[dst])

    for route in traffic.routes(graph, placement.devices, HOST):
        if model.transfers == "host":
            paid[route.origin] += cost(route.origin, HOST, route.hops[0])
        for hop in route.hops:
            if model.transfers == "host":
                paid[hop.dst] += cost(HOST, hop.dst, hop)
                continue
            paid[hop.dst] += cost(hop.src, hop.dst, hop)
            paid[hop.src] += cost(hop.src, hop.dst, hop) * (model.transfers == "direct")
    return paid
