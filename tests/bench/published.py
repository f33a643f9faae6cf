"""Published placement problems, solved and scored by an evaluator that is not ours.

``python tests/bench/published.py --data DIR``: DIR holds the data sets, their ``evaluate.py`` and a README.md whose
throughput table has the best known values. Values in ms per sample; seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from workloads import UNIT_MS, Workload, load

from autosplit.solvers.anneal import Budget, anneal
from autosplit.solvers.settle import settle
from autosplit.solvers.shares import share_bound

_FOLDER = "tarnawski2020/throughput-inputs"
_SLIP = 1000.0  # LayerGraphs there have transfers a thousand times too cheap; the derived variants put that right


class Row(NamedTuple):
    """One solved problem."""

    value: float
    bound: float
    seconds: float
    problems: list[str]


def evaluator(data: Path) -> ModuleType:
    """The evaluator that comes with the data."""
    spec = importlib.util.spec_from_file_location("evaluate", data / "evaluate.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"no evaluator: {data / 'evaluate.py'} cannot be imported; give the folder that has it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def references(data: Path) -> dict[str, float]:
    """The best known non-contiguous values by kind and name: the last column of the README's throughput table."""
    found = re.findall(r"^\| ([LO] \S+) \|.*\| ([0-9.]+) [=>][^|]*\|$", (data / "README.md").read_text(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def equal_cut(problem: Workload) -> list[int]:
    """Stages of equal work on the accelerators, in the order of the blocks."""
    kind = problem.fleet.kinds[0]
    done = np.cumsum(problem.quotient.work_ns[0]) / max(1, int(problem.quotient.work_ns[0].sum()))
    return [kind.devices[min(len(kind.devices) - 1, int(d * len(kind.devices)))] for d in done]


def scaled(path: Path, scale: float) -> str:
    """The file's text with every transfer's cost multiplied."""
    data = json.loads(path.read_text())
    for edge in data["edges"]:
        edge["cost"] *= scale
    return json.dumps(data)


def solved(path: Path, judge: Any, budget: Budget, scale: float = 1.0) -> Row:
    """Solve without contiguity and score with the evaluator."""
    problem = load(path, cost_scale=scale)
    started = time.process_time()
    labels = anneal(problem.quotient, problem.fleet, equal_cut(problem), budget)
    seconds = time.process_time() - started
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(scaled(path, scale))
        file.flush()
        score = judge.throughput(judge.load_workload(file.name), problem.placement(labels))
    bound = share_bound(problem.quotient, problem.fleet)
    if score.feasible:
        bound = settle(problem.quotient, problem.fleet, labels, bound).bound_ns
    return Row(score.value, bound * UNIT_MS, seconds, score.violations)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--moves", type=int, default=40_000, help="array moves for each problem")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    judge, best = evaluator(given.data), references(given.data)
    budget = Budget(moves=given.moves, seed=given.seed)
    print(f"{'non-contiguous':32} {'ours':>12} {'best known':>11} {'bound':>9} {'gap':>7} {'s':>6}  evaluator")
    for path in sorted((given.data / _FOLDER).glob("*/*.json")):
        for scale in (1.0, _SLIP) if path.parent.name.startswith("Layer") else (1.0,):
            row = solved(path, judge, budget, scale)
            name = f"{path.parent.name[0]} {path.stem}"
            known = f"{best[name]:11.4f}" if scale == 1 and name in best else f"{'':>11}"
            label = name + (f" x{scale:.0f}" if scale != 1 else "")
            verdict = "; ".join(row.problems) or "ok"
            figures = f"{row.bound:9.4f} {100 * (row.value / row.bound - 1):6.2f}% {row.seconds:6.1f}"
            print(f"{label:32} {row.value:12.6f} {known} {figures}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
