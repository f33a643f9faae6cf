"""How good the certificate is on hard graphs: ``python tests/bench/hard.py [--only gpt moe] [--devices 8 16]``.

One line for each case: the best plan known (found by orders, by its neighbourhood where there are few blocks, or by the
certificate itself), the bound, and seconds of thread CPU. Cases: every graph on several numbers of equal devices; some
on two kinds of devices, and some with 1.2 times the memory that is needed in all.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hard_cases import GRAPHS, fleet

from autosplit.solvers.blocks.contract import contracted
from autosplit.solvers.certificate.certify import certify
from autosplit.solvers.stages.contiguous import by_neighbours, by_orders
from autosplit.solvers.stages.line import Flight

_FEW = 1_200
_VARIED = ("gpt-24", "llama-70b", "unet-4x2", "inception-60", "irregular-40")


class Case(NamedTuple):
    graph: str
    devices: int
    unequal: bool = False
    tight: bool = False


class Result(NamedTuple):
    case: Case
    nodes: int
    plan_ns: int
    bound_ns: int


def cases(devices: list[int]) -> Iterator[Case]:
    for graph in GRAPHS:
        yield from (Case(graph, k) for k in devices)
    for graph in _VARIED:
        yield Case(graph, 4, unequal=True)
        yield Case(graph, 4, tight=True)
        yield Case(graph, 8, unequal=True, tight=True)


def measure(case: Case, effort: int) -> Result | None:
    quotient = GRAPHS[case.graph]().quotient(1 + case.unequal)
    devices = fleet(quotient, case.devices, unequal=case.unequal, tight=case.tight)
    start = time.thread_time()
    fewer, _ = contracted(quotient, devices, Flight())
    line = by_orders(fewer, devices, Flight())
    if line is not None and len(fewer) <= _FEW:
        line = by_neighbours(fewer, devices, Flight(), line, lambda: True)
    planned = time.thread_time()
    name = f"{case.graph}{' unequal' * case.unequal}{' tight' * case.tight}"
    if line is None:
        print(f"{name:32} {len(quotient):5} {case.devices:3}  no plan found", flush=True)
        return None
    found = certify(fewer, devices, line.value, effort=effort, merged=True)
    print(
        f"{name:32} {len(quotient):5} {case.devices:3} {found.best_ns / 1e6:10.3f} {found.bound_ns / 1e6:10.3f}"
        f" {found.bound_ns / found.best_ns:7.4f}  {'proved' if found.proved else '-':6}"
        f" {planned - start:7.2f} {time.thread_time() - planned:7.2f}",
        flush=True,
    )
    return Result(case, len(quotient), found.best_ns, found.bound_ns)


def summary(results: list[Result]) -> None:
    small = [r for r in results if r.nodes <= 4000]
    proved = sum(r.bound_ns == r.plan_ns for r in small)
    print(f"proved optimal up to 4000 nodes: {proved} of {len(small)} ({proved / max(1, len(small)):.1%}; target 90 %)")
    ratios = [r.bound_ns / r.plan_ns for r in results if r.case.devices == 16]
    mean = f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.4f}" if ratios else "unmeasured"
    print(f"bound / plan at 16 devices, geometric mean of {len(ratios)}: {mean} (target 0.95)")
    worst = min(results, key=lambda r: r.bound_ns / r.plan_ns)
    print(f"worst bound / plan: {worst.bound_ns / worst.plan_ns:.4f}, {worst.case} (target 0.75)")
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB (target 1024)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="graphs whose names start so")
    parser.add_argument("--devices", nargs="*", type=int, default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--effort", type=int, default=12_000_000, help="of the certificate")
    options = parser.parse_args()
    print(f"{'graph':32} nodes dev    plan ms   bound ms   ratio  proved  plan s  cert s")
    chosen = [c for c in cases(options.devices) if not options.only or c.graph.startswith(tuple(options.only))]
    summary([result for case in chosen if (result := measure(case, options.effort)) is not None])


if __name__ == "__main__":
    main()
