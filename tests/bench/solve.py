"""Seconds, value, bound and gap of ``solve`` on synthetic transformers.

    python tests/bench/solve.py [--nodes 1000 10000 100000] [--devices 8] [--modes infer] [--loose]

Llama-70B-like layers of 46 nodes. Memory is tight: all devices together have 1.25 times what the weights take; with
--loose it does not bind. Seconds are thread CPU time; MiB are the most that the process had resident until then.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time

from autosplit.device import Cluster, Device
from autosplit.errors import CapacityError
from autosplit.graph import CostGraph, Mode, Node, Tensor
from autosplit.solvers import solve

_WIDTH, _TOKENS, _STEP = 8192, 2048, 46


def transformer(nodes: int, mode: Mode = "infer") -> CostGraph:
    """A chain of layers with two residuals each; every fourth node of a layer has a weight."""
    activation = 2 * _WIDTH * _TOKENS
    made: list[Node] = []
    tensors: list[Tensor] = []
    readers: dict[str, list[str]] = {}
    residual, last = "", ""
    for i in range(nodes):
        name = f"n{i}"
        heavy = i % 4 == 0
        made.append(Node(name=name, forward_ns={"*": 900_000 if heavy else 40_000}, backward_ns={"*": 1_800_000}))
        for source in dict.fromkeys((last, residual) if i and i % (_STEP // 2) == 0 else (last,) * bool(last)):
            readers[source].append(name)
        readers[name] = []
        last = name
        if i % (_STEP // 2) == 0:
            residual = name
        if heavy:
            size = 150_000_000
            tensors.append(
                Tensor(
                    name=f"w{i}",
                    producer=name,
                    size_bytes=size,
                    kind="parameter",
                    requires_grad=True,
                    state_bytes=2 * size,
                )
            )
    for i, name in enumerate(readers):
        saved = tuple(readers[name][:1]) if mode == "train" else ()
        tensors.append(
            Tensor(
                name=f"t{i}",
                producer=name,
                readers=tuple(readers[name]),
                size_bytes=activation,
                requires_grad=True,
                saved_by=saved,
                is_output=name == last,
            )
        )
    return CostGraph(made, tensors, mode)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--devices", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--modes", nargs="*", default=["infer", "train"])
    parser.add_argument("--objectives", nargs="*", default=["latency", "throughput", "memory"])
    parser.add_argument("--loose", action="store_true", help="memory does not bind")
    options = parser.parse_args()
    print(
        f"{'nodes':>6} {'k':>2} {'mode':6} {'objective':10} {'s':>6} {'MiB':>5} {'value':>16} {'bound':>16} {'gap':>6}"
    )
    for nodes, mode in itertools.product(options.nodes, options.modes):
        graph = transformer(nodes, mode)
        static = sum(
            t.size_bytes * (4 if mode == "train" else 1) if t.is_weight else t.size_bytes * (mode == "train")
            for t in graph.tensors.values()
        )
        for k, objective in itertools.product(options.devices, options.objectives):
            room = 2**50 if options.loose else static * 5 // 4 // k + 4 * 2 * _WIDTH * _TOKENS
            cluster = Cluster(devices=tuple(Device(name=f"gpu:{i}", kind="gpu", memory_bytes=room) for i in range(k)))
            start = time.thread_time()
            row = f"{nodes:6} {k:2} {mode:6} {objective:10}"
            try:
                found = solve(graph, cluster, objective=objective)
            except CapacityError as error:
                print(row, f"{time.thread_time() - start:6.2f}", error)
                continue
            seconds, resident = time.thread_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(
                row, f"{seconds:6.2f} {resident:5} {found.value:16,} {found.bound:16,} {found.gap:6.1%}  {found.method}"
            )


if __name__ == "__main__":
    main()
