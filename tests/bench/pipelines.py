"""Replicated, split and recomputed pipelines on published workloads: ``python tests/bench/pipelines.py --data DIR``.

DIR holds ``piper2021/*.json``, ``pipedream2019/*.txt`` and ``evaluate.py``, an evaluator that knows nothing of this
package: every plan is scored by it, in the cost model that its authors published. A reference is printed where one is
known; "proved" is the exhaustive search over all downsets, degrees and choices, in which None means that nothing fits.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from published_problems import DATA, evaluator

from autosplit import solve
from autosplit.device import Cluster, Device
from autosplit.errors import CapacityError
from autosplit.graph import CostGraph, Node, Tensor
from autosplit.graph import Recomputed as Recompute
from autosplit.placement import CostModel, Placement
from autosplit.solvers.blocks.fleet import Fleet, Kind
from autosplit.solvers.blocks.quotient import Bools, Ints, Quotient, Recomputed
from autosplit.solvers.stages.contiguous import orders
from autosplit.solvers.stages.dynamic import best_line
from autosplit.solvers.stages.family import Downsets, Family, Prefixes, Row
from autosplit.solvers.stages.lattice import all_downsets
from autosplit.solvers.stages.line import ALONE, NEVER, Flight, Line, Replication

UNITS = 10**12  # of time, in a second: picoseconds keep the files' ties
PLAIN, AGAIN = "vanilla", "activation recomp"
GIB = 2**30
MOST_DOWNSETS = 20_000
PIPER_REFERENCES = {("bert32a100", 8, 8): "0.165856", ("bert32a100", 8, 2): "infeasible"}
PIPEDREAM_REFERENCES = {
    ("alexnet", 4): (0.0853, 0.2046, 0.028721, 0.066454, 0.034217),
    ("alexnet", 8): (0.0853, 0.1176, 0.028721, 0.066454, 0.018874),
    ("vgg16", 4): (0.6725, 0.5832, 0.216450, 0.411042, 0.205521),
    ("vgg16", 8): (0.6725, 0.3262, 0.159531, 0.411042, 0.103833),
    ("gnmt", 4): (0.0894, 0.6037, 0.025868, 0.025868, 0.025868),
    ("gnmt", 8): (0.0894, 0.3503, 0.019032, 0.019285, 0.019285),
}


class Shape(NamedTuple):
    """Which downsets: the prefixes of an order, or the rows of ``members``."""

    order: Sequence[int] = ()
    members: Bools | None = None

    def family(self, quotient: Quotient) -> Family:
        return Prefixes(quotient, self.order) if self.members is None else Downsets(quotient, self.members)


class Found(NamedTuple):
    line: Line | None
    proved: bool
    seconds: float


def search(quotient: Quotient, solve: Callable[[Shape, int], Line | None]) -> Found:
    """The best over a few orders, then over all downsets where they are few."""
    start, best = time.perf_counter(), None
    for order in orders(quotient):
        best = solve(Shape(order), NEVER if best is None else best.value - 1) or best
    members = all_downsets(quotient, MOST_DOWNSETS)
    if members is not None:
        best = solve(Shape(members=members), NEVER if best is None else best.value - 1) or best
    proved = members is not None and (best is None or best.slack == 0)
    return Found(best, proved, time.perf_counter() - start)


class TwoSided(Family):
    """Stages of a quotient whose devices receive what one family says and send what another one says."""

    def __init__(self, quotient: Quotient, received: Family, sent: Family) -> None:
        self.received, self.sent = received, sent
        super().__init__(quotient)

    def total(self, values: Ints) -> Ints:
        return self.received.total(values)

    def row(self, start: int, first: int, last: int) -> Row:
        row = self.received.row(start, first, last)
        return Row(row.ends, row.in_ns, self.sent.row(start, first, last).out_ns)

    def blocks(self, start: int, end: int) -> list[int]:
        return self.received.blocks(start, end)

    def holds(self, start: int, ends: Ints) -> tuple[Ints, Bools]:
        return self.received.holds(start, ends)


class Relay(TwoSided):
    """PipeDream's transfers: all that is read beyond a boundary crosses it, and both boundaries of a stage overlap.

    As its planner does, the first stage is not charged for what it sends.
    """

    def __init__(self, quotient: Quotient, family: Family) -> None:
        super().__init__(quotient, family, family)
        blocks, inside = family.holds(0, np.arange(len(family)))
        inside = inside[:, np.argsort(blocks)]
        self.crossing = np.zeros(len(family), dtype=np.int64)
        for cost, producer, readers in quotient.wires:
            self.crossing += cost * (inside[:, producer] & ~inside[:, list(readers)].all(axis=1))

    def row(self, start: int, first: int, last: int) -> Row:
        ends = self.received.row(start, first, last).ends
        larger = np.maximum(self.crossing[start], self.crossing[ends]) * (start > 0)
        return Row(ends, larger, np.zeros_like(larger))


class Piper:
    """A file of Piper: blocks are its nodes; each edge is paid by itself, there and back, by both its ends."""

    def __init__(self, graph: nx.DiGraph[Any], devices: int, memory_gib: float) -> None:
        self.graph = graph
        graph.graph.update(k=devices, mem=memory_gib * GIB)
        self.ids = list(nx.lexicographical_topological_sort(graph, key=list(graph).index))
        self.position = {node: i for i, node in enumerate(self.ids)}
        self.shards = sorted(set.intersection(*(set(graph.nodes[node]["tmpc"]) for node in self.ids)))
        self.names: dict[int, list[tuple[str, str]]] = {}
        self.quotients = {t: self._quotient(t) for t in self.shards}

    def _quotient(self, shards: int) -> Quotient:
        """The faster way to run each node, and the other one, as what is recomputed."""
        ways = [sorted(self.graph.nodes[node]["tmpc"][shards].items(), key=_by_time) for node in self.ids]
        assert max(map(len, ways)) <= 2, "more than two ways to run a node"
        self.names[shards] = [(way[0][0], way[-1][0]) for way in ways]
        plain, slower = ([way[end][1] for way in ways] for end in (0, -1))

        def column(costs: list[dict[str, Any]], key: str, units: float = 1.0) -> Ints:
            return np.array([math.ceil(cost[key] * units - 1e-6) for cost in costs], dtype=np.int64)

        per_byte = UNITS / self.graph.graph["bandwidth"]
        return replace(
            Quotient.of_numbers([[0] * len(self.ids)], self._wires({}, "")),
            work_ns=column(plain, "timePerSample", UNITS)[None],
            fixed_bytes=column(plain, "memoryUsageB"),
            stash_bytes=column(plain, "memoryUsageA"),
            gradient_ns=column(plain, "parameterSize", per_byte)[None],
            recomputed=Recomputed(
                column(slower, "timePerSample", UNITS)[None],
                column(slower, "memoryUsageB"),
                column(slower, "memoryUsageA"),
            ),
        )

    def _wires(self, costs: Mapping[Any, dict[str, Any]], sync: str) -> list[tuple[int, int, list[int]]]:
        """A wire for each edge, with what one of its ends must synchronise for it besides."""
        wires = []
        for u, v in self.graph.edges:
            extra = 0.0
            if sync == "syncTimeFw":
                extra = costs[v][sync][str(u)]
            elif sync == "syncTimeBw":
                extra = costs[u][sync][str(v)]
            seconds = 2 * (self.graph.edges[u, v]["bytes"] + extra) / self.graph.graph["bandwidth"]
            wires.append((round(seconds * UNITS), self.position[u], [self.position[v]]))
        return wires

    def family(self, shape: Shape, shards: int) -> Family:
        """Numbered alike for every ``shards``: by the work of stages that are not split."""
        names = self.names[shards]
        costs = {
            node: self.graph.nodes[node]["tmpc"][shards][way[0]] for node, way in zip(self.ids, names, strict=True)
        }
        work = self.quotients[1].work_ns.tolist()
        before = self.quotients[1].before
        sides = [Quotient.of_numbers(work, self._wires(costs, sync), before) for sync in ("syncTimeFw", "syncTimeBw")]
        return TwoSided(self.quotients[shards], *(shape.family(side) for side in sides))

    def solve(self, shape: Shape, upper: int) -> Line | None:
        k, microbatches = self.graph.graph["k"], self.graph.graph["microbatches"]
        return best_line(
            self.family(shape, 1),
            Fleet((Kind(tuple(range(min(k, microbatches))), int(self.graph.graph["mem"])),)),
            Flight(microbatches, replication=Replication.up_to(k, microbatches), recompute=True),
            upper,
            sharded={t: self.family(shape, t) for t in self.shards if t > 1},
        )

    def stages(self, line: Line) -> list[dict[str, Any]]:
        """As the evaluator reads them."""
        return [
            {
                "nodes": [self.ids[block] for block in stage.blocks],
                "d": stage.replicas,
                "t": stage.shards,
                "tmpc": {self.ids[b]: self.names[stage.shards][b][b in stage.recomputed] for b in stage.blocks},
            }
            for stage in line.stages
        ]

    def public(self) -> Placement:
        """The answer of ``solve``, which knows no split stages; times are whole nanoseconds there."""
        nodes, tensors = [], []
        for node, way in zip(self.ids, self.names[1], strict=True):
            plain, slower = (self.graph.nodes[node]["tmpc"][1][name] for name in way)
            again = Recompute(**_node_figures(slower))
            nodes.append(Node(name=str(node), recomputed=again, **_node_figures(plain)))
            tensors.append(_tensor(f"weights of {node}", node, plain["parameterSize"], kind="parameter"))
        for u, v in self.graph.edges:
            tensors.append(_tensor(f"{u} to {v}", u, self.graph.edges[u, v]["bytes"], readers=(str(v),)))
        of = self.graph.graph
        devices = (Device(name=f"gpu:{i}", kind="gpu", memory_bytes=int(of["mem"])) for i in range(of["k"]))
        return solve(
            CostGraph(nodes, tensors, "train"),
            Cluster(devices=tuple(devices), default_bandwidth_bytes_per_s=int(of["bandwidth"]), default_latency_ns=0),
            objective="throughput",
            contiguous=True,
            cost_model=CostModel(microbatches=of["microbatches"]),
            replicate="stages",
            recompute=True,
        )


def _node_figures(cost: dict[str, Any]) -> dict[str, Any]:
    return {
        "forward_ns": {"*": round(cost["timePerSample"] * 1e9)},
        "fixed_bytes": math.ceil(cost["memoryUsageB"]),
        "inflight_bytes": math.ceil(cost["memoryUsageA"]),
    }


def _tensor(name: str, producer: Any, size: float, **fields: Any) -> Tensor:
    plain = {"requires_grad": True, "is_held": False, **fields}
    return Tensor(name=name, producer=str(producer), size_bytes=math.ceil(size), **plain)


class PipeDream:
    """A file of PipeDream; what it ignores (inputs, unused parts of tuples) is left out."""

    def __init__(self, graph: nx.DiGraph[Any], devices: int) -> None:
        self.graph, self.devices = graph, devices
        label = {node: graph.nodes[node]["label"] for node in graph}
        self.left_out = {node for node in graph if not graph.in_degree(node) and label[node].startswith("Input")}
        self.left_out |= {n for n in graph if not graph.out_degree(n) and label[n].startswith("__getitem__")}
        kept = graph.subgraph([node for node in graph if node not in self.left_out])
        self.ids = list(nx.lexicographical_topological_sort(kept, key=list(graph).index))
        position = {node: i for i, node in enumerate(self.ids)}
        per_byte = UNITS / graph.graph["bandwidth"]
        wires = [
            (round(2 * kept.nodes[u]["activation"] * per_byte), position[u], [position[v] for v in kept.succ[u]])
            for u in self.ids
            if kept.out_degree(u)
        ]
        work = [[round(kept.nodes[node]["acc_time"] * UNITS / 1000) for node in self.ids]]
        gradient = [[round(kept.nodes[node]["params"] * per_byte) for node in self.ids]]
        self.quotient = replace(Quotient.of_numbers(work, wires), gradient_ns=np.array(gradient, dtype=np.int64))

    def search(self, replication: Replication, *, transfers: bool) -> Found:
        fleet = Fleet((Kind(tuple(range(self.devices))),), sender_pays=False, overlap=True)
        quotient = self.quotient
        if not transfers:
            quotient = replace(quotient, wires=())

        def solve(shape: Shape, upper: int) -> Line | None:
            family = shape.family(quotient)
            if transfers:
                family = Relay(quotient, family)
            return best_line(family, fleet, Flight(self.devices, replication=replication), upper)

        return search(quotient, solve)

    def judged(self, evaluate: Any, line: Line, *, transfers: bool) -> float:
        stage_of = {self.ids[block]: i for i, stage in enumerate(line.stages) for block in stage.blocks}
        stage_of |= dict.fromkeys(self.left_out, 0)
        replicas = [stage.replicas for stage in line.stages]
        score = evaluate.pipedream_time(self.graph, stage_of, replicas, compression=1 if transfers else None)
        assert score.feasible, score.violations
        return float(score.value)


def _by_time(way: tuple[str, dict[str, Any]]) -> tuple[float, float]:
    return way[1]["timePerSample"], way[1]["memoryUsageA"]


def piper_problem(evaluate: Any, path: Path, devices: int, memory_gib: float) -> Piper:
    graph = evaluate.load_workload(path)
    graph.graph.update(bandwidth=25.0 * GIB, microbatches=1920)
    return Piper(graph, devices, memory_gib)


def piper_row(evaluate: Any, problem: Piper, path: Path) -> str:
    devices, memory_gib = problem.graph.graph["k"], problem.graph.graph["mem"] / GIB
    found = search(problem.quotients[1], problem.solve)
    reference = PIPER_REFERENCES.get((path.stem, devices, int(memory_gib)), "-")
    head = f"{path.stem:12} {devices:3} devices {memory_gib:5g} GiB"
    proof = "proved" if found.proved else "not proved"
    if found.line is None:
        return f"{head}  ours infeasible  reference {reference}  {proof}  {found.seconds:.2f} s"
    stages = problem.stages(found.line)
    score = evaluate.piper_tps(problem.graph, stages)
    assert score.feasible, score.violations
    what = " ".join(
        f"{len(s['nodes'])}x{s['d']}"
        + (f"/{s['t']}" if s["t"] > 1 else "")
        + f"r{list(s['tmpc'].values()).count(AGAIN)}"
        for s in stages
    )
    return f"{head}  ours {score.value:.8f}  reference {reference}  {proof}  {found.seconds:.2f} s  {what}"


def public_row(evaluate: Any, problem: Piper) -> str:
    start = time.perf_counter()
    try:
        placement = problem.public()
    except CapacityError as error:
        proof = "proved" if error.proved else "not proved"
        return f"    solve(), stages not split: infeasible, {proof}  {time.perf_counter() - start:.2f} s"
    seconds = time.perf_counter() - start
    named = {str(node): (node, way) for node, way in zip(problem.ids, problem.names[1], strict=True)}
    stages = [
        {
            "nodes": [named[name][0] for name in stage.nodes],
            "d": len(stage.devices),
            "t": 1,
            "tmpc": {named[n][0]: named[n][1][n in stage.recomputed] for n in stage.nodes},
        }
        for stage in placement.stages
    ]
    score = evaluate.piper_tps(problem.graph, stages)
    assert score.feasible, score.violations
    proof = "proved" if placement.gap == 0 else f"gap {placement.gap:.1%}"
    return f"    solve(), stages not split: ours {score.value:.8f}  {proof}  {seconds:.2f} s"


def pipedream_rows(evaluate: Any, path: Path, devices: int) -> Iterator[str]:
    graph = evaluate.load_workload(path)
    name = path.name.removesuffix(".graph.txt")
    columns = (
        ("single", 1, ALONE, False),
        ("data-parallel", devices, Replication((devices,)), False),
        ("straight", devices, ALONE, False),
        ("straight, transfers", devices, ALONE, True),
        ("replicated, transfers", devices, Replication.up_to(devices), True),
        ("replicated", devices, Replication.up_to(devices), False),
    )
    references = (*PIPEDREAM_REFERENCES.get((name, devices), (None,) * 5), None)
    for (column, count, replication, transfers), reference in zip(columns, references, strict=True):
        problem = PipeDream(graph, count)
        found = problem.search(replication, transfers=transfers)
        assert found.line is not None
        value = problem.judged(evaluate, found.line, transfers=transfers)
        degrees = [stage.replicas for stage in found.line.stages]
        proof = "proved" if found.proved else "not proved"
        known = "-" if reference is None else str(reference)
        head = f"{name:8} {devices:2} {column:22} ours {value:.6f}  reference {known:8}"
        yield f"{head}  {proof}  {found.seconds:.2f} s  {degrees}"


def rows(evaluate: Any, data: Path, only: str = "", devices: Sequence[int] = (4, 8)) -> Iterator[str]:
    """The table."""
    for path in sorted((data / "piper2021").glob("*.json")):
        for count, memory_gib in ((8, 8), (8, 2), (8, 80), (16, 4)) if only in path.stem else ():
            problem = piper_problem(evaluate, path, count, memory_gib)
            yield piper_row(evaluate, problem, path)
            yield public_row(evaluate, problem)
    for path in sorted((data / "pipedream2019").glob("*.graph.txt")):
        for count in devices if only in path.stem else ():
            yield from pipedream_rows(evaluate, path, count)


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--devices", type=int, nargs="*", default=[4, 8], help="for PipeDream's files")
    given = parser.parse_args()
    for row in rows(evaluator(given.data), given.data, devices=given.devices):
        print(row, flush=True)


if __name__ == "__main__":
    main()
