"""Replicas: what exchanging the gradients of copies adds to a step, as DistributedDataParallel does it.

The gradients are summed in a ring, in buckets, in the order in which the backward makes them: a bucket is sent as soon
as it is full and the one before it is through, beside the rest of the backward (Li et al., PyTorch Distributed, VLDB
2020). What does not hide is what is still under way when the backward ends: the last bucket at least. That sending
slows no compute down, and that all devices start at once, is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autosplit.device import Cluster
from autosplit.graph import CostGraph

FIRST_BUCKET_BYTES = 2**20
BUCKET_BYTES = 25 * 2**20
"""What torch takes: a first bucket that starts soon, and the default of ``bucket_cap_mb``."""


def ring_ns(cluster: Cluster, ring: Sequence[str], size_bytes: int) -> int:
    """Nanoseconds to sum so many bytes over devices in a ring, each of which gets the sum.

    2 (r - 1) rounds, in each of which every device sends 1 / r of the bytes to the next, as fast as the slowest link
    lets it. Source: Patarasu and Yuan, Bandwidth optimal all-reduce, 2009.

    Args:
        cluster: devices and links.
        ring: names of r devices.
        size_bytes: of one copy.

    >>> from autosplit.device import parse_cluster
    >>> ring_ns(parse_cluster("4x1GiB"), ["gpu:0", "gpu:1", "gpu:2", "gpu:3"], 100_000_000)  # 6 rounds of 1.01 ms
    6060000
    """
    count = len(ring)
    if count < 2 or not size_bytes:
        return 0
    share = -(-size_bytes // count)
    pairs = zip(ring, (*ring[1:], ring[0]), strict=True)
    return 2 * (count - 1) * max(cluster.transfer_ns(src, dst, share) for src, dst in pairs)


def exchange_ns(graph: CostGraph, cluster: Cluster, ring: Sequence[str]) -> int:
    """Nanoseconds by which the exchange of gradients makes a step longer, when each device of the ring has a copy.

    Args:
        graph: what each copy runs; 0 in inference.
        cluster: devices and links.
        ring: names of the devices; the backward is timed on the first.

    Returns:
        From the end of the backward to that of the exchange. O(nodes + tensors).
    """
    if graph.mode == "infer":
        return 0
    kind = cluster.device(ring[0]).kind
    made = gradient_bytes(graph)
    now = sent = pending = 0
    room = FIRST_BUCKET_BYTES
    for name in reversed(graph.nodes):
        now += graph.node_ns(name, kind) - graph.forward_ns(name, kind)
        pending += made.get(name, 0)
        if pending >= room:
            sent = max(now, sent) + ring_ns(cluster, ring, pending)
            pending, room = 0, BUCKET_BYTES
    if pending:
        sent = max(now, sent) + ring_ns(cluster, ring, pending)
    return max(0, sent - now)


def group_exchange_ns(
    graph: CostGraph, placement: Mapping[str, str], cluster: Cluster, groups: Sequence[Sequence[str]]
) -> int:
    """Nanoseconds to exchange the gradients of replicas that are placed on several devices each.

    Args:
        graph: what each replica runs; 0 in inference.
        placement: device name in the first group by node name.
        cluster: devices and links.
        groups: names of the devices of each replica, in the same order.

    Returns:
        Of the ring that takes longest; all of it after the backward, as if nothing hid. O(tensors).
    """
    if graph.mode == "infer":
        return 0
    sizes = dict.fromkeys(groups[0], 0)
    for node, size in gradient_bytes(graph).items():
        sizes[placement[node]] += size
    rings = zip(*groups, strict=True)
    return max(ring_ns(cluster, ring, size) for ring, size in zip(rings, sizes.values(), strict=True))


def gradient_bytes(graph: CostGraph) -> dict[str, int]:
    """Bytes of the parameters whose gradient is complete with the backward of a node, by its name. O(tensors)."""
    made: dict[str, int] = {}
    for tensor in graph.tensors.values():
        if tensor.kind == "parameter" and tensor.requires_grad:
            made[tensor.producer] = made.get(tensor.producer, 0) + tensor.size_bytes
    return made
