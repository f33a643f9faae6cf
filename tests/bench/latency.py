"""Latency: ``solve`` on graphs with branches, and ``offload`` on published problems.

``python tests/bench/latency.py`` prints, for synthetic graphs on accelerators, the makespan of one device, of the
two-device cut where it applies, and of ``solve``, with bound, gap and seconds. ``--data DIR`` adds the published
latency problems (Tarnawski et al. 2020) under DIR, scored by the evaluator DIR/evaluate.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
from pathlib import Path
from typing import Any

import networkx as nx

from autosplit.device import Cluster, Device
from autosplit.graph import CostGraph, Node, Tensor
from autosplit.solvers import solve
from autosplit.solvers.candidates import two_devices
from autosplit.solvers.fleet import Fleet, Kind
from autosplit.solvers.offload import offload
from autosplit.solvers.problem import Pool, Problem
from autosplit.solvers.quotient import Quotient

BEST_KNOWN_MS = {
    "LayerGraphs/bert24_inference": 100.2185,
    "OperatorGraphs/bert_l-3_inference": 408.4744,
    "OperatorGraphs/bert_l-6_inference": 438.0625,
}
"""Upper bounds to 4 digits, from the README beside the data; no optimum is known."""
_UNITS_PER_MS = 10**9


class Builder:
    """A graph in the making: nodes of some microseconds, tensors of some MiB."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.readers: dict[str, list[str]] = {}
        self.sizes: dict[str, int] = {}

    def node(self, us: int, mib: float, *reads: str) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(Node(name=name, forward_ns={"*": us * 1000}, backward_ns={"*": 2000 * us}))
        self.readers[name], self.sizes[name] = [], int(mib * 2**20)
        for source in dict.fromkeys(reads):
            self.readers[source].append(name)
        return name

    def graph(self, mode: Any) -> CostGraph:
        tensors = [
            Tensor(
                name=f"t{name}",
                producer=name,
                readers=tuple(readers),
                size_bytes=self.sizes[name],
                requires_grad=True,
                is_output=not readers,
            )
            for name, readers in self.readers.items()
        ]
        inputs = [
            Tensor(name=f"x{node.name}", producer=node.name, size_bytes=2**20, kind="input")
            for node in self.nodes
            if not any(node.name in readers for readers in self.readers.values())
        ]
        return CostGraph(self.nodes, [*tensors, *inputs], mode)


def two_towers(mode: Any, count: int = 1000) -> CostGraph:
    """Two chains of residual blocks, issued in alternation, that meet in the last node."""
    rng, made = random.Random(1), Builder()
    ends, skips = ["", ""], ["", ""]
    for i in range(count // 2):
        for side in (0, 1):
            reads = [r for r in ((ends[side], skips[side]) if i % 8 == 0 else (ends[side],)) if r]
            ends[side] = made.node(rng.choice((20, 60, 200)), 4, *reads)
            skips[side] = ends[side] if i % 8 == 0 else skips[side]
    made.node(10, 0.1, *ends)
    return made.graph(mode)


def inception(mode: Any, modules: int = 40) -> CostGraph:
    """Modules of four branches of one to seven convolutions; each module ends in a concatenation."""
    rng, made = random.Random(2), Builder()
    last = made.node(100, 8)
    for _ in range(modules):
        ends = []
        for length in (1, 3, 5, 7):
            end = last
            for _ in range(length):
                end = made.node(rng.choice((40, 120, 250)), 2, end)
                end = made.node(15, 2, end)
            ends.append(end)
        last = made.node(20, 8, *ends)
    return made.graph(mode)


def accelerators(count: int) -> Cluster:
    """Equal ones, with launches of 5 us and links of 25 GB/s and 10 us."""
    return Cluster(devices=tuple(Device(name=f"gpu:{i}", kind="k", memory_bytes=2**40) for i in range(count)))


def synthetic() -> None:
    print(
        f"{'graph':24}{'nodes':>6}{'k':>3}{'alone ms':>10}{'cut ms':>9}{'ours ms':>9}{'gain':>6}{'gap':>7}{'s':>6}  by"
    )
    for build in (two_towers, inception):
        for mode in ("infer", "train"):
            for k in (2, 4):
                graph, cluster = build(mode), accelerators(k)
                problem = Problem(graph, cluster, "latency")
                pool = Pool(problem)
                alone = problem.judge.step_ns([0] * problem.n)
                cut = "-"
                if k == 2:
                    two_devices(pool)
                    assert pool.best is not None
                    cut = f"{pool.best.score.value / 1e6:.2f}"
                start = time.perf_counter()
                found = solve(graph, cluster)
                seconds = time.perf_counter() - start
                print(
                    f"{build.__name__ + ' ' + mode:24}{len(graph):6}{k:3}{alone / 1e6:10.2f}{cut:>9}"
                    f"{found.value / 1e6:9.2f}{alone / found.value:6.2f}{found.gap:7.1%}{seconds:6.1f}  {found.method}",
                    flush=True,
                )


def published(data: Path) -> None:
    evaluator = _evaluator(data / "evaluate.py")
    print(f"{'published':36}{'best known':>12}{'ours ms':>14}{'bound':>10}{'gap':>7}{'s':>6}")
    for path in sorted((data / "tarnawski2020" / "latency-inputs").glob("*/*.json")):
        workload = evaluator.load_workload(path)
        order, quotient, fleet, together = compile_workload(workload)
        start = time.perf_counter()
        found = offload(quotient, fleet, together)
        seconds = time.perf_counter() - start
        k = workload.graph["k"]
        placement = {v: f"acc{label}" if label < k else "cpu0" for v, label in zip(order, found.labels, strict=True)}
        score = evaluator.latency(workload, placement, max_pieces=1)
        assert score.feasible, score.violations
        name = f"{path.parent.name}/{path.stem}"
        bound = found.bound_ns / _UNITS_PER_MS
        print(
            f"{name:36}{BEST_KNOWN_MS.get(name, float('nan')):12.4f}{score.value:14.6f}{bound:10.3f}"
            f"{1 - bound / score.value:7.1%}{seconds:6.1f}",
            flush=True,
        )


def compile_workload(workload: Any) -> tuple[list[Any], Quotient, Fleet, list[list[int]]]:
    """An evaluator's graph as numbers: nodes in order, a block for each, the devices, and what stays together."""
    order = list(nx.lexicographical_topological_sort(workload, key=str))
    position = {v: i for i, v in enumerate(order)}
    nodes = [workload.nodes[v] for v in order]
    quotient = Quotient.of_numbers(
        [[round(node[time_ms] * _UNITS_PER_MS) for node in nodes] for time_ms in ("acc_time", "cpu_time")],
        [
            (
                round(workload.nodes[v]["out_cost"] * _UNITS_PER_MS),
                position[v],
                sorted(position[w] for w in workload.succ[v]),
            )
            for v in order
            if workload.succ[v]
        ],
        before=[[position[u] for u in workload.pred[v]] for v in order],
        fixed_bytes=[int(node["mem"]) for node in nodes],
    )
    quotient.allowed[0] = [node["supported"] for node in nodes]
    k = workload.graph["k"]
    fleet = Fleet((Kind(tuple(range(k)), int(workload.graph["mem"])), Kind((k,), pays=False)))
    together: dict[Any, list[int]] = {}
    for v in order:
        together.setdefault(workload.nodes[v]["color"], []).append(position[v])
    return order, quotient, fleet, [group for group in together.values() if len(group) > 1]


def _evaluator(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("published_evaluator", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python file; --data is the folder that has evaluate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with evaluate.py and tarnawski2020/")
    arguments = parser.parse_args()
    if arguments.data is not None:
        published(arguments.data)
    synthetic()


if __name__ == "__main__":
    main()
