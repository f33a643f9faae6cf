"""Random cost graphs and clusters, with all that a graph may have: skips, views, ties, groups, unequal devices."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from autosplit.device import HOST, Cluster, Device, Link
from autosplit.graph import CostGraph, Mode, Node, Tensor


@dataclass(frozen=True)
class Case:
    """One problem: a graph, a cluster, and where inputs arrive."""

    graph: CostGraph
    cluster: Cluster
    io_device: str


class _Builder:
    def __init__(self, rng: random.Random, count: int, mode: Mode) -> None:
        self.rng, self.count, self.mode = rng, count, mode
        self.tensors: list[Tensor] = []
        self.read_by: dict[int, list[Tensor]] = {i: [] for i in range(count)}

    def add(self, i: int, prefix: str, **fields: object) -> None:
        rng = self.rng
        later = range(i + 1, self.count)
        readers = sorted(rng.sample(later, min(len(later), rng.choice((0, 1, 1, 1, 2, 3)))))
        if rng.random() < 0.6 and later:  # a spine, so that graphs hang together
            readers = sorted({i + 1, *readers})
        near = [i, *readers]
        tensor = Tensor(
            name=f"{prefix}{len(self.tensors)}",
            producer=f"n{i}",
            readers=tuple(f"n{reader}" for reader in readers),
            saved_by=tuple(f"n{s}" for s in near if rng.random() < 0.4),
            **{"size_bytes": rng.randrange(1, 9), "requires_grad": rng.random() < 0.6, **fields},
        )
        self.tensors.append(tensor)
        for reader in readers:
            self.read_by[reader].append(tensor)
        if tensor.kind != "activation":
            self.read_by[i].append(tensor)

    def node(self, i: int) -> None:
        rng = self.rng
        if i == 0 or rng.random() < 0.1:
            self.add(i, "x", kind="input", is_output=rng.random() < 0.1)
        if rng.random() < 0.6:
            tied = [t for t in self.tensors if t.is_weight]
            mate = rng.choice(tied) if tied and rng.random() < 0.15 else None
            self.add(
                i,
                "w",
                kind=rng.choice(("parameter", "parameter", "buffer")),
                size_bytes=mate.size_bytes if mate else rng.randrange(1, 20),
                storage=mate.allocation if mate else "",
                state_bytes=rng.choice((0, 3)),
                step_bytes=rng.choice((0, 2)),
            )
        for _ in range(rng.choice((1, 1, 1, 2)) if i < self.count - 1 else 1):
            base = rng.choice(self.read_by[i]) if self.read_by[i] and rng.random() < 0.25 else None
            self.add(
                i,
                "t",
                is_output=i == self.count - 1 or rng.random() < 0.08,
                storage=base.allocation if base else "",
                storage_bytes=base.allocation_bytes if base else rng.choice((0, 0, 12)),
            )


def random_graph(rng: random.Random, count: int, mode: Mode, groups: bool = True) -> CostGraph:
    """A graph of ``count`` nodes n0, n1, ..."""
    builder = _Builder(rng, count, mode)
    nodes = []
    for i in range(count):
        builder.node(i)
        times = {"*": rng.randrange(0, 30), "fast": rng.randrange(0, 15)}
        nodes.append(
            Node(
                name=f"n{i}",
                forward_ns=times,
                backward_ns=times,
                group=rng.choice(("g", "h")) if groups and rng.random() < 0.12 else None,
                workspace_bytes=rng.choice((0, 0, 0, 6)),
            )
        )
    return CostGraph(nodes, builder.tensors, mode)


def random_cluster(rng: random.Random, k: int, low: int, high: int, equal: bool | None = None) -> Cluster:
    """``k`` devices with ``low`` to ``high`` bytes each; half of the clusters have equal devices.

    A quarter of the clusters has only accelerators, a quarter only virtual devices, and half may have both.
    """
    equal = rng.random() < 0.5 if equal is None else equal
    shared = rng.randrange(low, high + 1)
    types = rng.choice((("d",), ("sim",), ("d", "sim"), ("d", "sim")))
    launch_ns = rng.choice((0, 1, 4, 1000))
    devices = tuple(
        Device(
            name=f"{rng.choice(types)}:{i}",
            kind="plain" if equal else rng.choice(("plain", "fast")),
            memory_bytes=shared if equal else rng.randrange(low, high + 1),
            launch_ns=launch_ns,
        )
        for i in range(k)
    )
    links = ()
    if rng.random() < 0.3 and k > 1:
        ends = (devices[0].name, devices[1].name)
        links = (Link(src=ends[0], dst=ends[1], bandwidth_bytes_per_s=10**9 // rng.randrange(1, 5), latency_ns=7),)
    return Cluster(
        devices=devices,
        links=links,
        default_bandwidth_bytes_per_s=10**9 // rng.randrange(1, 4),
        default_latency_ns=rng.randrange(0, 6),
    )


def random_case(rng: random.Random, count: int, k: int, groups: bool = True) -> Case:
    """A problem whose memory is anything from far too little to plenty."""
    graph = random_graph(rng, count, rng.choice(("infer", "train")), groups)
    total = sum(t.allocation_bytes * (1 if graph.mode == "infer" else 2) for t in graph.tensors.values())
    cluster = random_cluster(rng, k, max(8, total // (2 * k)), max(16, total))
    return Case(graph, cluster, rng.choice((HOST, *cluster.names)))


@st.composite
def cases(draw: st.DrawFn, most_nodes: int = 9, most_devices: int = 3, groups: bool = True) -> Case:
    """The same for hypothesis."""
    rng = draw(st.randoms(use_true_random=False))
    return random_case(rng, draw(st.integers(1, most_nodes)), draw(st.integers(1, most_devices)), groups)


def random_placement(rng: random.Random, case: Case) -> dict[str, str]:
    """Any placement that keeps groups together."""
    by_group = {group: rng.choice(case.cluster.names) for group in sorted(case.graph.groups)}
    return {
        name: by_group.get(node.group or "", rng.choice(case.cluster.names)) for name, node in case.graph.nodes.items()
    }
