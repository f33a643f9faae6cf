"""A placement's transfers, and what they and the nodes cost, device by device and in all.

Written from the rules in ``autosplit.placement.CostModel``, without the code of ``autosplit.estimate``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from autosplit.checker.memory import in_order
from autosplit.device import HOST, Cluster
from autosplit.graph import CostGraph, Tensor
from autosplit.placement import CostModel, Transfer


class Sending(NamedTuple):
    """A hop and the node right before which it is sent; None: after the last node."""

    hop: Transfer
    before: str | None


class Route(NamedTuple):
    """One tensor's way: from where it is first to each device that it is sent to, in the order of sending.

    ``before`` holds, for each hop, the node right before which it is sent; None: after the last node.
    """

    origin: str
    hops: tuple[Transfer, ...]
    before: tuple[str | None, ...]


def routes(graph: CostGraph, devices: Mapping[str, str], io_device: str) -> Iterator[Route]:
    """Every tensor that is sent, by the order of its producer. O(reads), after sorting the tensors."""
    for tensor in in_order(graph):
        stops = list(_stops(tensor, devices, io_device))
        if stops:
            returns = graph.mode == "train" and tensor.requires_grad
            yield Route(
                origin=stops[0][0],
                hops=tuple(
                    Transfer(
                        tensor=tensor.name, src=src, dst=dst, size_bytes=tensor.size_bytes, returns_gradient=returns
                    )
                    for src, dst, _ in stops
                ),
                before=tuple(node for _, _, node in stops),
            )


def _stops(tensor: Tensor, devices: Mapping[str, str], io_device: str) -> Iterator[tuple[str, str, str | None]]:
    """(from, to, the node that it is sent for), once for each device that has not got the tensor."""
    home = devices[tensor.producer]
    has = {home}
    if tensor.kind == "input" and io_device != home:
        has.add(io_device)
        yield io_device, home, tensor.producer
    for reader in tensor.readers:
        device = devices[reader]
        if device not in has:
            has.add(device)
            yield home, device, reader
    if tensor.is_output and io_device not in has:
        yield home, io_device, None


def in_program_order(graph: CostGraph, found: Iterable[Route]) -> list[Sending]:
    """All hops, in the order in which they are sent."""
    sendings = [Sending(hop, node) for route in found for hop, node in zip(route.hops, route.before, strict=True)]
    last = len(graph)
    return sorted(sendings, key=lambda sending: last if sending.before is None else graph.order[sending.before])


def busy_ns(graph: CostGraph, devices: Mapping[str, str], cluster: Cluster) -> dict[str, int]:
    """Compute nanoseconds by device. O(nodes + devices)."""
    kinds = {device.name: device.kind for device in cluster.devices}
    busy = dict.fromkeys(kinds, 0)
    for node, device in devices.items():
        busy[device] += graph.node_ns(node, kinds[device])
    return busy


def transfer_ns(cluster: Cluster, src: str, dst: str, hop: Transfer) -> int:
    """Nanoseconds of the hop's tensor from ``src`` to ``dst``, and of its gradient back where it returns one."""
    there = cluster.transfer_ns(src, dst, hop.size_bytes)
    return there + cluster.transfer_ns(dst, src, hop.size_bytes) if hop.returns_gradient else there


def load_ns(busy: Mapping[str, int], found: Iterable[Route], cluster: Cluster, model: CostModel) -> dict[str, int]:
    """Compute and transfer nanoseconds by device, in the cost model. O(devices + transfers).

    Args:
        busy: compute nanoseconds by device.
        found: the transfers.
        cluster: the devices; those of kind "cpu" are the host's memory in the model "host".
        model: who pays for a transfer, and whether it runs beside compute.
    """
    traffic = dict.fromkeys((*busy, HOST), 0)
    hosts = {HOST, *(device.name for device in cluster.devices if device.kind == "cpu")}
    for route in found:
        if model.transfers == "host" and route.origin not in hosts:
            traffic[route.origin] += transfer_ns(cluster, route.origin, HOST, route.hops[0])
        for hop in route.hops:
            if model.transfers == "host":
                traffic[hop.dst] += 0 if hop.dst in hosts else transfer_ns(cluster, HOST, hop.dst, hop)
                continue
            cost = transfer_ns(cluster, hop.src, hop.dst, hop)
            traffic[hop.dst] += cost
            traffic[hop.src] += cost if model.transfers == "direct" else 0
    return {name: max(work, traffic[name]) if model.overlap else work + traffic[name] for name, work in busy.items()}
