"""Profile: the measured times of all operations, added up, against whole passes of the model in the same run.

    python tests/bench/profiler.py [--scale 4] [--only GPT-2]

One row a model and mode. "sum / whole" is the sum over all operations, each distinct one measured once or in passes
with marks, against the median of unmarked passes before and after; "alone" is the same for a device that the model
does not fit, where each distinct operation runs by itself. "cost" is the time of the profile in forward passes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
PASSES = 4


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'model':10} {'mode':6} {'nodes':>5} {'distinct':>8} {'whole ms':>17} {'sum / whole':>12} {'alone':>12} "
        f"{'cost':>11} {'noise':>6}"
    )
    for architecture in [*ARCHITECTURES, DEEP]:
        if options.only in architecture.name:
            for mode in ("infer", "train"):
                print(row(architecture, options.scale, mode), flush=True)
    return 0


def _deep(scale: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = torch.randint(0, 512, (4, 32 * scale))
    config = LlamaConfig(
        num_hidden_layers=32, hidden_size=128 * scale, intermediate_size=256 * scale, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=512, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


DEEP = Architecture("32 layers", _deep)


def row(architecture: Architecture, scale: int, mode: Any) -> str:
    """Profile one model, between whole passes."""
    program, emitted = captured(architecture, scale, mode)
    with torch.set_grad_enabled(mode == "train"):
        run = whole(program, emitted)
        before = [run() for _ in range(PASSES)][1:]
    found, cost_ns = timed(lambda: profile(program, emitted, CPU, fits=True))
    with torch.set_grad_enabled(mode == "train"):
        between = [run() for _ in range(PASSES)][1:]
    apart, apart_ns = timed(lambda: profile(program, emitted, CPU, fits=False))
    with torch.set_grad_enabled(mode == "train"):
        after = [run() for _ in range(PASSES)][1:]
    forward, backward = (statistics.median(times) for times in zip(*before, *between, *after, strict=True))
    return (
        f"{architecture.name:10} {mode:6} {len(program.nodes):5} {found.distinct:8} "
        f"{forward / 1e6:8.1f} {backward / 1e6:8.1f} {ratios(found, forward, backward):>12} "
        f"{ratios(apart, forward, backward):>12} {cost_ns / forward:5.1f} {apart_ns / forward:5.1f} {found.noise:6.1%} "
        f"{'; '.join(found.notes)}"
    )


def ratios(found: Profile, forward_ns: float, backward_ns: float) -> str:
    """Sums of the forward and of the backward times over the whole."""
    timings = found.timings.values()
    first = f"{sum(t.forward_ns for t in timings) / forward_ns:.2f}"
    return first if not backward_ns else f"{first} {sum(t.backward_ns for t in timings) / backward_ns:.2f}"


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
