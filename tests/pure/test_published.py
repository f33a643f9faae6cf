"""Published workloads through the public door: CostGraph.from_networkx, a cost model, and the checker's figures against
those of the evaluator that comes with the data (``AUTOSPLIT_WORKLOADS``, or shared/workloads beside the repository)."""

import itertools
import random

import networkx as nx
import pytest
from published_problems import DATA, MODEL, PER_MS, cluster_of, cost_graph, evaluator

from autosplit.checker import replay
from autosplit.device import Cluster

FILES = sorted((DATA / "tarnawski2020").rglob("*-inputs/*/*.json"))

pytestmark = pytest.mark.skipif(not FILES, reason=f"no workloads in {DATA}: set AUTOSPLIT_WORKLOADS to their folder")


def placements(workload: nx.DiGraph, cluster: Cluster, rng: random.Random):
    """Any that keep colours together; by runs of an order, so that some edges stay inside, and node by node."""
    colours = list(dict.fromkeys(data["color"] for _, data in workload.nodes(data=True)))
    pinned = {data["color"] for _, data in workload.nodes(data=True) if not data["supported"]}
    for run in (1, 3, 10, 40):
        names = itertools.cycle(rng.sample(cluster.names, len(cluster.names)))
        by_colour: dict[object, str] = {}
        name = next(names)
        for i, colour in enumerate(colours):
            name = next(names) if i % run == 0 else name
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
