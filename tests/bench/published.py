"""Published placement problems, solved by ``solve`` and scored by an evaluator that is not ours.

    python tests/bench/published.py [--data DIR] [--effort 10] [--only bert24]

DIR holds the data sets, their ``evaluate.py``, and a README.md whose tables have the best known values. Every row is
what the evaluator says of our placement; it stops where the evaluator finds a violation. Values in ms per sample;
seconds are those of thread CPU time of ``solve``. "x1000": the LayerGraphs have transfers a thousand times too cheap
(milliseconds against seconds); these rows put that right, and no values are published for them, except in README.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import pipelines
from published_problems import DATA, MODEL, PER_MS, cluster_of, cost_graph, evaluator

from autosplit.placement import Placement
from autosplit.solvers import solve

_SLIP = 1000.0


class Known(NamedTuple):
    """Best known values by "L bert24_inference" and the like, from the tables of README.md."""

    contiguous: dict[str, float]
    any: dict[str, float]
    latency: dict[str, float]
    slipped: dict[str, float]


def main() -> int:
    """Print the tables; exit 1 when a value is worse than the best known one (as far as its digits go)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--effort", type=int, default=10)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    judge, known = evaluator(given.data), references((given.data / "README.md").read_text())
    good = True
    print(f"{'tarnawski2020':44} {'ours':>12} {'best known':>11} {'bound':>11} {'gap':>7} {'s':>6}  method", flush=True)
    for row in tarnawski(judge, given.data, known, given.effort, given.only):
        good &= not row.endswith("WORSE")
        print(row, flush=True)
    for row in pipelines.rows(judge, given.data, given.only):
        print(row, flush=True)
    return 0 if good else 1


def references(text: str) -> Known:
    """The best known values."""
    row = r"^\| ([LO] \S+) \|.*\| ([0-9.]+) \| ([0-9.]+) [=>][^|]*\|$"
    throughput = re.findall(row, text, re.MULTILINE)
    latency = re.findall(r"^\| ([LO] \S+) \|[^|]*\|[^|]*\|[^|]*\|[^|]*\|[^|]*\| ([0-9.]+) \|$", text, re.MULTILINE)
    slipped = re.findall(r"(\w+) [0-9.]+ / ([0-9.]+)[;.]", text)
    return Known(
        {name: float(value) for name, value, _ in throughput},
        {name: float(value) for name, _, value in throughput},
        {name: float(value) for name, value in latency},
        {f"L {name}": float(value) for name, value in slipped},
    )


def tarnawski(judge: Any, data: Path, known: Known, effort: int, only: str) -> Iterator[str]:
    """Rows of the throughput and latency problems."""
    for path in sorted((data / "tarnawski2020" / "throughput-inputs").glob("*/*.json")):
        name = f"{path.parent.name[0]} {path.stem}"
        for scale in (1.0, _SLIP) if name.startswith("L") else (1.0,):
            label = f"{name} x{scale:.0f}" if scale > 1 else name
            if only in label:
                workload = scaled(judge.load_workload(path), scale)
                best = known.contiguous if scale == 1 else known.slipped
                yield row(judge, workload, f"{label}, contiguous", best.get(name), effort, contiguous=True)
                best = known.any if scale == 1 else {}
                yield row(judge, workload, f"{label}, any", best.get(name), effort)
    for path in sorted((data / "tarnawski2020" / "latency-inputs").glob("*/*.json")):
        name = f"{path.parent.name[0]} {path.stem.removesuffix('_inference')}"
        if only in name:
            best_known = known.latency.get(name)
            yield row(judge, judge.load_workload(path), f"{name}, latency", best_known, effort, objective="latency")


def scaled(workload: Any, scale: float) -> Any:
    """The workload with every transfer's cost multiplied."""
    for node in workload:
        workload.nodes[node]["out_cost"] *= scale
    for _, _, edge in workload.edges(data=True):
        edge["cost"] *= scale
    return workload


def row(judge: Any, workload: Any, label: str, best: float | None, effort: int, **asked: Any) -> str:
    """Solve one problem and let the evaluator score it."""
    graph, cluster = cost_graph(workload), cluster_of(workload)
    began = time.thread_time()
    found = solve(graph, cluster, cost_model=MODEL, effort=effort, **{"objective": "throughput", **asked})
    seconds = time.thread_time() - began
    value = scored(judge, workload, found, contiguous=asked.get("contiguous", False))
    bound = found.bound / PER_MS
    text = f"{label:44} {value:12.6f} {best or '':>11} {bound:11.6f} {1 - bound / value:7.2%} {seconds:6.2f}"
    worse = best is not None and value > best + 0.5 * 10.0 ** -len(f"{best}".partition(".")[2])
    return f"{text}  {found.method}{'  WORSE' if worse else ''}"


def scored(judge: Any, workload: Any, found: Placement, *, contiguous: bool) -> float:
    """The evaluator's value; a violation ends the run."""
    placement = {node: found.devices[str(node)] for node in workload}
    if found.objective == "latency":
        score = judge.latency(workload, placement, max_pieces=1)
    else:
        score = judge.throughput(workload, placement, contiguous="chain" if contiguous else None)
    if not score.feasible:
        raise SystemExit(f"the evaluator refuses our placement: {score.violations}")
    return float(score.value)


if __name__ == "__main__":
    sys.exit(main())
