"""The devices of several ranks as one cluster, with the ways between the ranks as its links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations, product

import msgspec

from autosplit.device import HOST, Cluster, Link
from autosplit.ranks.seats import rank_name
from autosplit.ranks.wires import Wire, Wires


def joined(clusters: Mapping[int, Cluster], wires: Wires | None) -> Cluster:
    """One cluster of the devices of all ranks of a pipeline, each with its position before its name.

    Args:
        clusters: what each rank has, by rank, in the order of their positions.
        wires: between all ranks of the world, where they were measured; None leaves the first cluster's defaults.
    """
    devices = [
        msgspec.structs.replace(device, name=rank_name(position, device.name))
        for position, cluster in enumerate(clusters.values())
        for device in cluster.devices
    ]
    said = dict.fromkeys(words for cluster in clusters.values() for words in cluster.assumptions)
    first = next(iter(clusters.values()))
    if wires is None or len(clusters) == 1:
        links = tuple(link for position, cluster in enumerate(clusters.values()) for link in _own(position, cluster))
        return msgspec.structs.replace(first, devices=tuple(devices), links=links, assumptions=tuple(said))
    said = dict.fromkeys([*(words for words in said if not words.startswith("links:")), *_in_words(wires)])
    common = wires.far or wires.near
    assert common is not None  # there are two ranks
    return msgspec.structs.replace(
        first,
        devices=tuple(devices),
        links=(*_all_own(clusters), *_across(clusters, wires, common)),
        default_bandwidth_bytes_per_s=common.bandwidth_bytes_per_s,
        default_latency_ns=common.latency_ns,
        assumptions=tuple(said),
    )


def _own(position: int, cluster: Cluster) -> Iterator[Link]:
    """The links between the devices of a rank that are not its cluster's defaults."""
    for link in cluster.links:
        if HOST not in (link.src, link.dst):
            yield msgspec.structs.replace(link, src=rank_name(position, link.src), dst=rank_name(position, link.dst))


def _all_own(clusters: Mapping[int, Cluster]) -> Iterator[Link]:
    """Every link within a rank, and of its devices with the host: their defaults are not those between ranks."""
    for position, cluster in enumerate(clusters.values()):
        for src, dst in permutations((HOST, *cluster.names), 2):
            ends = [name if name == HOST else rank_name(position, name) for name in (src, dst)]
            yield msgspec.structs.replace(cluster.link(src, dst), src=ends[0], dst=ends[1])


def _across(clusters: Mapping[int, Cluster], wires: Wires, common: Wire) -> Iterator[Link]:
    """The links between ranks that are not as most: of one host, where there are several."""
    for (a, rank), (b, other) in permutations(enumerate(clusters), 2):
        wire = wires.between(rank, other)
        if wire is common:
            continue
        for src, dst in product(clusters[rank].names, clusters[other].names):
            yield Link(
                src=rank_name(a, src),
                dst=rank_name(b, dst),
                bandwidth_bytes_per_s=wire.bandwidth_bytes_per_s,
                latency_ns=wire.latency_ns,
            )


def _in_words(wires: Wires) -> Iterator[str]:
    for where, wire in (("within a host", wires.near), ("between hosts", wires.far)):
        if wire is not None:
            yield f"links: {where}: measured: {wire}"
