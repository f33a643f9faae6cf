"""Latency: ``solve`` on graphs with branches.

``python tests/bench/latency.py`` prints, for synthetic graphs on accelerators, the makespan of one device, of the
two-device cut where it applies, and of ``solve``, with bound, gap and seconds. Published problems: published.py.
"""

from __future__ import annotations

import random
import time
from typing import Any

from autosplit.device import Cluster, Device
from autosplit.graph import CostGraph, Node, Tensor
from autosplit.solvers import solve
from autosplit.solvers.orders.candidates import two_devices
from autosplit.solvers.problem import Pool, Problem


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


if __name__ == "__main__":
    synthetic()
