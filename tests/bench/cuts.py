"""Cuts by measured times against the best cut: is what the profiler says good enough to decide by?

    python tests/bench/cuts.py [--scale 4] [--stages 4]

A contiguous cut into stages is made from the profile of a model, and from its FLOPs. Both are judged by held-out
times: passes made afterwards, at other times than the profile's. "bottleneck / best" is the slowest stage of the cut
over the slowest stage of the cut that is best by the held-out times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.profiler import CPU, captured
from models import ARCHITECTURES

from autosplit.profiler import profile
from autosplit.program import Program

MODELS = ("GPT-2", "Llama", "BERT", "ResNet", "UNet")
HELD_OUT = 3


def main() -> int:
    """Print the table; exit 1 when a cut by measured times is more than 5 % above the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--stages", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    good = True
    print(f"{'model':8} {'mode':6} bottleneck / best: {'measured':>9} {'FLOPs':>7}")
    for architecture in ARCHITECTURES:
        for mode in ("infer", "train") if architecture.name in MODELS else ():
            program, emitted = captured(architecture, options.scale, mode)
            decided = times(program, emitted)
            runs = [times(program, emitted) for _ in range(HELD_OUT)]
            held_out = [int(statistics.median(ns)) for ns in zip(*runs, strict=True)]
            best = bottleneck(held_out, cut(held_out, options.stages))
            measured = bottleneck(held_out, cut(decided, options.stages)) / best
            by_flops = bottleneck(held_out, cut(flops(program), options.stages)) / best
            good &= measured <= 1.05
            print(f"{architecture.name:8} {mode:6} {'':18} {measured:9.3f} {by_flops:7.3f}", flush=True)
    return 0 if good else 1


def times(program: Program, emitted: Any) -> list[int]:
    """Forward and backward ns of each node, newly measured."""
    timings = profile(program, emitted, CPU, fits=True).timings
    both = {name: timing.forward_ns + timing.backward_ns for name, timing in timings.items()}
    return [both[program.names[node]] for node in program.nodes]


def flops(program: Program) -> list[int]:
    """Arithmetic of each node."""
    return [program.facts[node].flops for node in program.nodes]


def cut(costs: Sequence[int], stages: int) -> list[int]:
    """Ends of the stages of the contiguous cut with the least bottleneck; bisection over its value."""
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_ends(costs, middle)) <= stages else (middle + 1, high)
    return _ends(costs, low)


def _ends(costs: Sequence[int], limit: int) -> list[int]:
    ends, load = [], 0
    for place, cost in enumerate(costs):
        if load + cost > limit:
            ends.append(place)
            load = 0
        load += cost
    return [*ends, len(costs)]


def bottleneck(costs: Sequence[int], ends: Sequence[int]) -> int:
    """The largest sum of a stage."""
    sums = [0, *accumulate(costs)]
    return max(sums[end] - sums[start] for start, end in zip([0, *ends], ends, strict=False))


if __name__ == "__main__":
    sys.exit(main())
