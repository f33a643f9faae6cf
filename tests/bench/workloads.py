"""Published placement problems as the engine sees them: ``load(path)`` reads any of the three formats.

Tarnawski et al. (NeurIPS 2020): JSON with accelerators and host cores, times in ms. Piper (Tarnawski, Narayanan,
Phanishayee, NeurIPS 2021): JSON with a memory per micro-batch in flight, times in seconds. PipeDream (Narayanan et
al., SOSP 2019): text, times in ms. One unit of ``work_ns`` here is ``UNIT_MS`` ms, so that no tie of the file is lost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from autosplit.solvers.fleet import Fleet, Kind
from autosplit.solvers.quotient import Quotient, Wire

UNIT_MS = 1e-9
_PIPEDREAM = re.compile(
    r"(?P<id>\S+) -- (?P<what>.*) -- "
    r"forward_compute_time=(?P<forward>[^,]+), backward_compute_time=(?P<backward>[^,]+), "
    r"activation_size=(?P<activation>\[[^]]*\]|[^,]+), parameter_size=(?P<parameters>\S+)"
)


@dataclass(frozen=True, eq=False)
class Workload:
    """A published problem.

    Attributes:
        quotient: the blocks; block b stands for the nodes ``quotient.members[b]``.
        fleet: the devices.
        nodes: the file's id of each node, by its position.
        devices: the name of each device, by its position.
    """

    quotient: Quotient
    fleet: Fleet
    nodes: tuple[Any, ...]
    devices: tuple[str, ...]

    def placement(self, labels: Sequence[int]) -> dict[Any, str]:
        """What labels of blocks say of the file's nodes."""
        blocks = enumerate(self.quotient.members)
        return {self.nodes[node]: self.devices[labels[block]] for block, members in blocks for node in members}


@dataclass
class _Parts:
    """A file's nodes by position, before any are tied together."""

    ids: list[Any]
    work: list[list[int]]  # [kinds, nodes]
    fixed: list[int]
    stash: list[int]
    classes: list[Any]  # nodes of one class stay together
    wires: list[tuple[int, int, list[int]]]  # cost, producer, readers
    order: list[tuple[int, int]]  # (u, v): v never before u
    wish: list[tuple[int, int]]  # the same, dropped where it would close a cycle


def load(path: str | Path, *, contiguous: bool = False, cost_scale: float = 1.0, **fleet: Any) -> Workload:
    """Read a published problem.

    Args:
        path: a file of any of the three formats.
        contiguous: keep the order between blocks, and tie together those that lie on a cycle of it; without,
            ``before`` is empty and blocks are as small as the file allows.
        cost_scale: multiplies the cost of every transfer.
        **fleet: what to use instead of the file's own values: ``k``, ``memory_bytes``, ``bandwidth`` (B/s, not for
            Tarnawski's files).
    """
    text = Path(path).read_text(encoding="utf-8")
    if str(path).endswith(".txt"):
        parts, devices = _pipedream(text, fleet)
    else:
        data = json.loads(text)
        parts, devices = _piper(data, fleet) if "maxDevices" in data else _tarnawski(data, fleet)
    parts.wires = [(round(cost * cost_scale), producer, readers) for cost, producer, readers in parts.wires]
    names = tuple(f"{'acc' if kind.pays else 'cpu'}{i}" for kind in devices.kinds for i in range(len(kind.devices)))
    return Workload(_quotient(parts, contiguous), devices, tuple(parts.ids), names)


def supported_on_accelerator(data: Mapping[str, Any]) -> list[bool]:
    """By position, whether each node of a file of Tarnawski et al. may run on an accelerator."""
    return [bool(node["supportedOnFpga"]) for node in data["nodes"]]


def _tarnawski(data: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[_Parts, Fleet]:
    """Host cores never pay: a transfer goes through their memory. Sender and receiver pay."""
    nodes, k = data["nodes"], given.get("k", int(data["maxFPGAs"]))
    position = {node["id"]: i for i, node in enumerate(nodes)}
    backward = [bool(node["isBackwardNode"]) for node in nodes]
    readers: dict[int, dict[int, None]] = {}
    cost: dict[int, float] = {}
    order, wish = [], []
    for edge in data["edges"]:
        u, v = position[edge["sourceId"]], position[edge["destId"]]
        readers.setdefault(u, {})[v] = None
        cost[u] = float(edge["cost"])
        if not backward[u] and not backward[v]:
            order.append((u, v))
        elif backward[u] and backward[v]:
            wish.append((v, u))
    parts = _Parts(
        ids=[node["id"] for node in nodes],
        work=[[_units(node[key]) for node in nodes] for key in ("fpgaLatency", "cpuLatency")],
        fixed=[math.ceil(node.get("size", 0)) for node in nodes],
        stash=[0] * len(nodes),
        classes=[node.get("colorClass", ("own", i)) for i, node in enumerate(nodes)],
        wires=[(_units(cost[u]), u, list(readers[u])) for u in sorted(readers)],
        order=order,
        wish=wish,
    )
    supported = supported_on_accelerator(data)
    parts.work[0] = [w if ok else -1 for w, ok in zip(parts.work[0], supported, strict=True)]
    memory = math.floor(given.get("memory_bytes", data["maxSizePerFPGA"]))
    hosts = range(k, k + int(data["maxCPUs"]))
    return parts, Fleet((Kind(tuple(range(k)), memory), Kind(tuple(hosts), pays=False)))


def _piper(data: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[_Parts, Fleet]:
    """Without tensor parallelism or recomputation; each edge is paid by itself, there and back, by both its ends."""
    nodes = data["nodes"]
    position = {node["id"]: i for i, node in enumerate(nodes)}
    plain = [next(c for c in node["TMPCs"]["1"] if c["id"] == "vanilla") for node in nodes]
    if any(value for c in plain for key in ("syncTimeFw", "syncTimeBw") for value in c[key].values()):
        raise ValueError("one device per operator has nothing to synchronise, but the file has a time for it")
    ms_per_byte = 2e3 / given.get("bandwidth", float(data["bandwidth"]))
    edges = [(position[e["sourceId"]], position[e["destId"]], e["communicationCost"]) for e in data["edges"]]
    parts = _Parts(
        ids=[node["id"] for node in nodes],
        work=[[_units(c["timePerSample"] * 1e3) for c in plain]],
        fixed=[math.ceil(c["memoryUsageB"]) for c in plain],
        stash=[math.ceil(c["memoryUsageA"]) for c in plain],
        classes=list(range(len(nodes))),
        wires=[(_units(size * ms_per_byte), u, [v]) for u, v, size in edges],
        order=[(u, v) for u, v, _ in edges],
        wish=[],
    )
    memory = math.floor(given.get("memory_bytes", data["maxMemoryPerDevice"]))
    return parts, Fleet((Kind(tuple(range(given.get("k", int(data["maxDevices"])))), memory),))


def _pipedream(text: str, given: Mapping[str, Any]) -> tuple[_Parts, Fleet]:
    """Forward and backward in one node; a transfer's bytes go there and back over one link. Inputs cost nothing."""
    found = [match for line in text.splitlines() if (match := _PIPEDREAM.match(line))]
    position = {match["id"]: i for i, match in enumerate(found)}
    edges = [line.strip().split(" -- ") for line in text.splitlines() if line.startswith("\t")]
    readers: dict[int, dict[int, None]] = {}
    for source, target in edges:
        readers.setdefault(position[source], {})[position[target]] = None
    sizes = [sum(map(float, match["activation"].strip("[]").split(";"))) for match in found]
    ms_per_byte = 2e3 / given.get("bandwidth", 1e9)
    free = [match["what"].startswith("Input") for match in found]
    parts = _Parts(
        ids=[match["id"] for match in found],
        work=[
            [0 if f else _units(float(m["forward"]) + float(m["backward"])) for m, f in zip(found, free, strict=True)]
        ],
        fixed=[math.ceil(float(match["parameters"])) for match in found],
        stash=[math.ceil(size) for size in sizes],
        classes=list(range(len(found))),
        wires=[(0 if free[u] else _units(sizes[u] * ms_per_byte), u, list(readers[u])) for u in sorted(readers)],
        order=[(u, v) for u in sorted(readers) for v in readers[u]],
        wish=[],
    )
    return parts, Fleet((Kind(tuple(range(given.get("k", 4))), given.get("memory_bytes", Kind(()).capacity_bytes)),))


def _units(ms: float) -> int:
    return round(ms / UNIT_MS)


def _quotient(parts: _Parts, contiguous: bool) -> Quotient:
    block_of, order = _blocks(parts, contiguous)
    count = 1 + max(block_of)
    before: list[set[int]] = [set() for _ in range(count)]
    for u, v in order:
        before[v].add(u)
    members: list[list[int]] = [[] for _ in range(count)]
    for node, block in enumerate(block_of):
        members[block].append(node)
    node_work = np.array(parts.work, dtype=np.int64)
    allowed = np.array([[bool((row[m] >= 0).all()) for m in members] for row in node_work], dtype=np.bool_)
    return Quotient(
        before=tuple(tuple(sorted(blocks)) for blocks in before),
        wires=tuple(_wires(parts.wires, block_of)),
        work_ns=np.array([[int(row[m].clip(0).sum()) for m in members] for row in node_work], dtype=np.int64),
        fixed_bytes=np.array([sum(parts.fixed[node] for node in m) for m in members], dtype=np.int64),
        stash_bytes=np.array([sum(parts.stash[node] for node in m) for m in members], dtype=np.int64),
        allowed=allowed,
        members=tuple(map(tuple, members)),
    )


def _wires(wires: Iterable[tuple[int, int, list[int]]], block_of: Sequence[int]) -> Iterable[Wire]:
    for cost, producer, readers in wires:
        home = block_of[producer]
        others = sorted({block_of[reader] for reader in readers} - {home})
        if others:
            yield Wire(cost, home, tuple(others))


def _blocks(parts: _Parts, contiguous: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """The block of each node, and the order between blocks: none unless contiguous."""
    number = {c: i for i, c in enumerate(dict.fromkeys(parts.classes))}
    of_class = [number[c] for c in parts.classes]
    net: nx.DiGraph[int] = nx.DiGraph()
    net.add_nodes_from(range(len(number)))
    net.add_edges_from(_between(parts.order, of_class))
    tied = nx.condensation(net)  # nodes: strongly connected classes
    component = [tied.graph["mapping"][c] for c in of_class]
    rank = {
        c: i
        for i, c in enumerate(nx.lexicographical_topological_sort(tied, key=lambda c: min(tied.nodes[c]["members"])))
    }
    if not contiguous:
        ranked = sorted(range(len(number)), key=lambda c: (rank[tied.graph["mapping"][c]], c))
        place = {c: i for i, c in enumerate(ranked)}
        return [place[c] for c in of_class], []
    for u, v in _between(parts.wish, component):
        if not tied.has_edge(u, v) and not nx.has_path(tied, v, u):
            tied.add_edge(u, v)
    order = list(nx.lexicographical_topological_sort(tied, key=lambda c: rank[c]))
    place = {c: i for i, c in enumerate(order)}
    return [place[c] for c in component], [(place[u], place[v]) for u, v in tied.edges]


def _between(edges: Iterable[tuple[int, int]], block_of: Sequence[int]) -> list[tuple[int, int]]:
    ends = ((block_of[u], block_of[v]) for u, v in edges)
    return list(dict.fromkeys((u, v) for u, v in ends if u != v))
