"""Published placement problems as cost graphs, and the evaluator beside them: read where it is, never copied."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import Any

import networkx as nx

from autosplit.device import Cluster, Device
from autosplit.graph import CostGraph
from autosplit.placement import CostModel

DATA = Path(os.environ.get("AUTOSPLIT_WORKLOADS", Path(__file__).parents[2] / "shared" / "workloads"))
PER_MS = 10**9  # units of time; one is taken for 1 ns, and for 1 byte of a link that moves 1 byte in 1 ns
MODEL = CostModel(transfers="host")


def evaluator(data: Path = DATA) -> Any:
    """The module ``evaluate`` of the data's folder."""
    spec = importlib.util.spec_from_file_location("evaluate", data / "evaluate.py")
    if spec is None or spec.loader is None or not (data / "evaluate.py").exists():
        raise SystemExit(f"{data / 'evaluate.py'} cannot be imported: give the folder that has it")
    module = sys.modules["evaluate"] = importlib.util.module_from_spec(spec)  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def _units(ms: float) -> int:
    return round(ms * PER_MS)


def cost_graph(workload: nx.DiGraph) -> CostGraph:
    """A workload of Tarnawski et al. 2020, as the evaluator loads it. Its memory is of nodes, not of tensors."""
    digraph = nx.DiGraph()
    for node, data in workload.nodes(data=True):
        digraph.add_node(
            node,
            forward_ns={"accelerator": _units(data["acc_time"]), "cpu": _units(data["cpu_time"])},
            group=str(data["color"]),
            devices=() if data["supported"] else ("cpu",),
            is_backward=data["backward"],
            fixed_bytes=math.ceil(data["mem"]),
        )
    for src, dst, data in workload.edges(data=True):
        digraph.add_edge(src, dst, size_bytes=_units(data["cost"]), is_held=False)
    return CostGraph.from_networkx(digraph)


def cluster_of(workload: nx.DiGraph) -> Cluster:
    """Its accelerators and CPUs; a link moves a unit of transfer in a unit of time."""
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
