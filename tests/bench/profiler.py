"""Profile: the measured times of all operations, added up, against whole passes of the model in the same run.

    python tests/bench/profiler.py [--scale 4] [--rounds 9] [--only GPT-2]

One row a model and mode. "large" is the share of the forward that operations of LARGE_NS or more take. "sum / whole" is
the sum over all operations, measured in passes with marks, over the median of unmarked passes that take turns with
those, forward and backward; "alone" is the same for a device that the model does not fit, where each distinct operation
runs by itself. Each is the median over the rounds. "machine" is the unmarked passes of one half of a round over those
of the other, which is 1.00 on a machine that keeps its speed: the quartiles over the rounds. "cost" is the time of the
profile in forward passes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx

sys.path.insert(0, str(Path(__file__).parents[1]))
from models import ARCHITECTURES, Architecture

from autosplit.capture import Frontend, climb
from autosplit.emit import assign, rewrite
from autosplit.hardware import resolve, torch_devices
from autosplit.profiler import Profile, profile
from autosplit.profiler.materials import differentiable, make
from autosplit.program import Program
from autosplit.runtime import unsplit_class

CPU = torch.device("cpu")
ALONE_ROUNDS = 3
LARGE_NS = 200_000
"""Beside which what it takes to call an operation, some 5 to 10 us, is small."""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | mode | operations, distinct | large | whole ms | sum / whole | alone / whole | machine | cost |")
    print(f"|{'---|' * 9}")
    for architecture in [*ARCHITECTURES, DEEP, PLAIN]:
        if options.only in architecture.name:
            for mode in ("infer", "train"):
                print(row(architecture, options.scale, mode, options.rounds), flush=True)
    return 0


def _deep(scale: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = torch.randint(0, 512, (4, 32 * scale))
    config = LlamaConfig(
        num_hidden_layers=32, hidden_size=128 * scale, intermediate_size=256 * scale, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=512, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def _plain(scale: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    width = 256 * scale
    layers = [layer for _ in range(8) for layer in (torch.nn.Linear(width, width), torch.nn.GELU())]
    return torch.nn.Sequential(*layers), {"input": torch.randn(128 * scale, width)}


DEEP = Architecture("32 layers", _deep)
PLAIN = Architecture("MLP", _plain)

Times = tuple[float, float]
"""Of a forward and a backward pass, in ns; the latter 0 where there is none."""


class Round(NamedTuple):
    """What one round found: whole passes, the sums of a profile, its share of large operations, and its CPU time."""

    whole: Times
    machine: Times
    found: Times
    large: float
    cost_ns: int
    distinct: int


class Alone(NamedTuple):
    """Whole passes, the sums of a profile operation by operation, and its CPU time."""

    whole: Times
    found: Times
    cost_ns: int


def row(architecture: Architecture, scale: int, mode: Any, count: int) -> str:
    """Profile one model, between whole passes."""
    program, emitted = captured(architecture, scale, mode)
    run = whole(program, emitted)
    run()
    rounds = [in_turns(program, emitted, run) for _ in range(count)]
    alone = [by_itself(program, emitted, run) for _ in range(min(count, ALONE_ROUNDS))]
    sides = [side for side in range(2) if rounds[0].whole[side]]
    times = ", ".join(f"{statistics.median(each.whole[side] for each in rounds) / 1e6:.1f}" for side in sides)
    costs = (statistics.median(each.cost_ns / each.whole[0] for each in found) for found in (rounds, alone))
    drift = statistics.quantiles([each.machine[side] for each in rounds for side in sides], n=4)
    return (
        f"| {architecture.name} | {mode} | {len(program.nodes)}, {rounds[0].distinct} | "
        f"{statistics.median(each.large for each in rounds):.0%} | {times} | {ratios(rounds, sides)} | "
        f"{ratios(alone, sides)} | {drift[0]:.2f}-{drift[2]:.2f} | {', '.join(f'{cost:.1f}' for cost in costs)} |"
    )


def in_turns(program: Program, emitted: fx.GraphModule, run: Callable[[], tuple[int, int]]) -> Round:
    """A profile, with an unmarked pass before each of its passes and one after the last."""
    passes: list[tuple[int, int]] = []

    def unmarked(done: int, total: int) -> None:
        passes.append(run())

    found, cost_ns = timed(lambda: profile(program, emitted, CPU, fits=True, progress=unmarked))
    with torch.set_grad_enabled(program.mode == "train"):
        unmarked(0, 0)
    cost_ns -= sum(map(sum, passes[:-1]))
    after = passes[1:]  # the profile's first pass is not counted either
    half = len(after) // 2
    earlier, later = middle(after[:half]), middle(after[half:])
    drift = later[0] / earlier[0], later[1] / earlier[1] if earlier[1] else 0.0
    times = [timing.forward_ns for timing in found.timings.values()]
    large = sum(ns for ns in times if ns >= LARGE_NS) / sum(times)
    return Round(middle(after), drift, total(found), large, cost_ns, found.distinct)


def by_itself(program: Program, emitted: fx.GraphModule, run: Callable[[], tuple[int, int]]) -> Alone:
    """A profile of single operations, between two unmarked passes."""
    with torch.set_grad_enabled(program.mode == "train"):
        before = run()
    found, cost_ns = timed(lambda: profile(program, emitted, CPU, fits=False))
    with torch.set_grad_enabled(program.mode == "train"):
        return Alone(middle([before, run()]), total(found), cost_ns)


def middle(passes: list[tuple[int, int]]) -> Times:
    """The medians of forward and backward."""
    forward, backward = map(statistics.median, zip(*passes, strict=True))
    return forward, backward


def total(found: Profile) -> Times:
    """The sums over all operations."""
    timings = found.timings.values()
    return sum(t.forward_ns for t in timings), sum(t.backward_ns for t in timings)


def ratios(rounds: Sequence[Round] | Sequence[Alone], sides: list[int]) -> str:
    """The sums over the whole passes of their rounds: medians."""
    found = [statistics.median(each.found[side] / each.whole[side] for each in rounds) for side in sides]
    return ", ".join(f"{ratio:.2f}" for ratio in found)


def timed(run: Callable[[], Profile]) -> tuple[Profile, int]:
    """What a profile says, and the CPU time that it took."""
    start = time.thread_time_ns()
    found = run()
    return found, time.thread_time_ns() - start


def captured(architecture: Architecture, scale: int, mode: Any) -> tuple[Program, fx.GraphModule]:
    """The model's program, and what is emitted of it for one CPU."""
    torch.manual_seed(0)
    model, inputs = architecture.build(scale)
    model.train(mode == "train")
    program = climb(Frontend(model, unsplit_class(model)), (), inputs, mode, None).program
    placement = dict.fromkeys(program.names.values(), "cpu")
    emitted = rewrite(program, assign(program, placement, {}, "cpu"), torch_devices(resolve(["cpu"])), "cpu")
    return program, emitted.graph_module


def whole(program: Program, emitted: fx.GraphModule) -> Callable[[], tuple[int, int]]:
    """Runs one unmarked pass; forward and backward ns."""
    inputs = make([program.facts[node].form for node in program.inputs], CPU)

    def run() -> tuple[int, int]:
        start = time.thread_time_ns()
        outputs = emitted.forward(*inputs)
        middle = time.thread_time_ns()
        descended = differentiable([output for i, output in enumerate(outputs) if program.returns(i)])
        del outputs
        if not descended:
            return middle - start, 0
        gradients = [torch.ones_like(output) for output in descended]
        start_ns = time.thread_time_ns()
        torch.autograd.backward(descended, gradients)
        end_ns = time.thread_time_ns()
        for tensor in differentiable(inputs):
            tensor.grad = None
        return middle - start, end_ns - start_ns

    return run


if __name__ == "__main__":
    sys.exit(main())
