"""Published workloads through the public door: CostGraph.from_networkx, a cost model, and the checker's figures against
those of the evaluator that comes with the data (``AUTOSPLIT_WORKLOADS``, or shared/workloads beside the repository)."""

import importlib.util
import itertools
import math
import os
import random
import sys
from pathlib import Path

import networkx as nx
import pytest

from autosplit.checker import replay
from autosplit.device import Cluster, Device
from autosplit.graph import CostGraph
from autosplit.placement import CostModel

DATA = Path(os.environ.get("AUTOSPLIT_WORKLOADS", Path(__file__).parents[3] / "shared" / "workloads"))
FILES = sorted((DATA / "tarnawski2020").rglob("*-inputs/*/*.json"))
PER_MS = 10**9  # units of time; one is taken for 1 ns, and for 1 byte of a link that moves 1 byte in 1 ns
MODEL = CostModel(transfers="host")

pytestmark = pytest.mark.skipif(not FILES, reason=f"no workloads in {DATA}: set AUTOSPLIT_WORKLOADS to their folder")


def evaluator():
    spec = importlib.util.spec_from_file_location("evaluate", DATA / "evaluate.py")
    module = sys.modules["evaluate"] = importlib.util.module_from_spec(spec)  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def units(ms: float) -> int:
    return round(ms * PER_MS)


def cost_graph(workload: nx.DiGraph) -> CostGraph:
    digraph = nx.DiGraph()
    for node, data in workload.nodes(data=True):
        digraph.add_node(
            node,
            forward_ns={"accelerator": units(data["acc_time"]), "cpu": units(data["cpu_time"])},
            group=str(data["color"]),
            devices=() if data["supported"] else ("cpu",),
            is_backward=data["backward"],
            fixed_bytes=math.ceil(data["mem"]),
        )
    for src, dst, data in workload.edges(data=True):
        digraph.add_edge(src, dst, size_bytes=units(data["cost"]), is_held=False)
    return CostGraph.from_networkx(digraph)


def cluster_of(workload: nx.DiGraph) -> Cluster:
    counts = {"acc": workload.graph["k"], "cpu": max(1, workload.graph["cpus"])}
    devices = [
        Device(
            name=f"{name}{i}",
            kind="cpu" if name == "cpu" else "accelerator",
            memory_bytes=2**60 if name == "cpu" else math.floor(workload.graph["mem"]),
        )
        for name, count in counts.items()
        for i in range(count)
    ]
    return Cluster(devices=tuple(devices), default_bandwidth_bytes_per_s=10**9, default_latency_ns=0)


def placements(workload: nx.DiGraph, cluster: Cluster, rng: random.Random):
    """Any that keep colours together; by runs of an order, so that some edges stay inside, and node by node."""
    colours = list(dict.fromkeys(data["color"] for _, data in workload.nodes(data=True)))
    pinned = {data["color"] for _, data in workload.nodes(data=True) if not data["supported"]}
    for run in (1, 3, 10, 40):
        names = itertools.cycle(rng.sample(cluster.names, len(cluster.names)))
        by_colour: dict[object, str] = {}
        for i, colour in enumerate(colours):
            name = next(names) if i % run == 0 else name  # noqa: F821
            by_colour[colour] = "cpu0" if colour in pinned else name
        yield {node: by_colour[data["color"]] for node, data in workload.nodes(data=True)}


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.parent.name}/{path.name}" for path in FILES])
def test_the_evaluator_finds_the_same(path):
    judge = evaluator()
    workload = judge.load_workload(path)
    graph, cluster, rng = cost_graph(workload), cluster_of(workload), random.Random(0)
    for placement in placements(workload, cluster, rng):
        expected = judge.throughput(workload, placement)
        found = replay(
            graph,
            {name: placement[node] for name, node in ((str(node), node) for node in workload)},
            cluster,
            objective="throughput",
            cost_model=MODEL,
        )
        for name, load in expected.load.items():
            assert found.load_ns[name] / PER_MS == pytest.approx(load, rel=1e-9, abs=1e-6)
        assert found.value / PER_MS == pytest.approx(expected.value, rel=1e-9, abs=1e-6)
        for name, size in expected.mem.items():
            if name.startswith("acc"):
                assert found.peak_bytes[name] == pytest.approx(size, rel=1e-9, abs=len(graph))
