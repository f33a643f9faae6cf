"""Overhead: the rewritten forward against eager and against Accelerate's dispatch hooks, where operators are small.

    python tests/bench/runtime.py [--rounds 200] [--only GPT] [--parts]

One thread, CPU time of the thread, all variants interleaved in one run and in an order that turns; a figure is the
median over the rounds of the ratio to eager in the same round. "A/A" is eager against eager: what the clock is worth.
"split" is a plan for one CPU, called as the user calls it; "two" the graph emitted for two devices which are both this
CPU, so that its copies cost a call and move nothing. With --parts, "graph" is the emitted graph alone on the weights
that it reads, without what decides at each call whether the graph still holds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import autosplit
from autosplit.capture import Frontend
from autosplit.emit import assign, rewrite
from autosplit.program import Program

CPU = torch.device("cpu")
TWO = {"gpu:0": CPU, "gpu:1": CPU, "host": CPU}
CALLS = 10


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            t.view(batch, tokens, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder with learned positions and a tied head."""

    def __init__(self, layers: int = 12, width: int = 64, vocabulary: int = 256) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def mlp(layers: int = 100, width: int = 64) -> nn.Module:
    """Linear layers with ReLU."""
    return nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())))


class Basic(nn.Module):
    """The block of ResNet18."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inside != out:
            self.short = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(inner + self.short(x))


def resnet18(width: int = 16) -> nn.Module:
    """He et al. 2016, 18 layers, its widths from ``width`` on."""
    sizes = [width, width, 2 * width, 4 * width, 8 * width]
    blocks = [
        Basic(sizes[i] if first else sizes[i + 1], sizes[i + 1], 2 if first and i else 1)
        for i in range(4)
        for first in (True, False)
    ]
    stem = (nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(True), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


@dataclass(frozen=True)
class Workload:
    """A model and its input."""

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], torch.Tensor]


WORKLOADS = (
    Workload("GPT 12L d64", GPT, lambda: torch.randint(0, 256, (1, 32))),
    Workload("MLP100 d64", mlp, lambda: torch.randn(8, 64)),
    Workload("ResNet18 w16", resnet18, lambda: torch.randn(2, 3, 32, 32)),
)

Call = Callable[..., torch.Tensor]


def eager(model: nn.Module, x: torch.Tensor) -> Call:
    """As it is."""
    return model


def split(model: nn.Module, x: torch.Tensor) -> Call:
    """As the user splits and calls it."""
    return autosplit.partition(model, ["cpu"], (x,), optimizer="sgd")


def two(model: nn.Module, x: torch.Tensor) -> Call:
    """Captured and called as a split model is, its graph emitted for two devices that are both the CPU."""

    def halves(program: Program) -> Any:
        nodes = [program.names[node] for node in program.nodes]
        placement = {name: f"gpu:{2 * i // len(nodes)}" for i, name in enumerate(nodes)}
        emitted = rewrite(program, assign(program, placement, {}, "gpu:0"), TWO, "gpu:0")
        if not emitted.moves:
            raise AssertionError("the two halves of the graph exchange nothing")
        return lambda inputs, *_: emitted.graph_module.forward(*inputs)

    return Frontend(model, type(model), halves)


def graph(model: nn.Module, x: torch.Tensor) -> Call:
    """The emitted graph and nothing else."""
    kept: list[Any] = []

    def keep(program: Program) -> Any:
        placement = dict.fromkeys((program.names[node] for node in program.nodes), "gpu:0")
        emitted = rewrite(program, assign(program, placement, {}, "gpu:0"), TWO, "gpu:0")
        place = [source.kind for source in program.inputs.values()].index("input")

        def run(inputs: Any, *_: Any) -> Any:
            kept[:] = [emitted.graph_module.forward, list(inputs), place]
            return emitted.graph_module.forward(*inputs)

        return run

    Frontend(model, type(model), keep)(x)
    forward, inputs, place = kept

    def call(x: torch.Tensor) -> torch.Tensor:
        inputs[place] = x
        return forward(*inputs)[0]

    return call


def accelerate_hooks(model: nn.Module, x: torch.Tensor) -> Call | None:
    """Accelerate's dispatch with a hook on every module; None where it is not installed."""
    try:
        from accelerate import dispatch_model
    except ImportError:
        return None
    device_map = {name: "cpu" for name, module in model.named_modules() if name and not list(module.children())}
    return dispatch_model(model, device_map, main_device="cpu", force_hooks=True)


VARIANTS = {"eager": eager, "A/A": eager, "split": split, "two": two, "graph": graph, "accelerate": accelerate_hooks}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--only", default="")
    parser.add_argument("--parts", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in VARIANTS if name != "graph" or options.parts]
    print(f"torch {torch.__version__}, {options.rounds} rounds; ratios to eager, median [quartiles]")
    print(f"{'model':13} {'pass':8} {'eager ms':>8}", *(f"{name:>18}" for name in names[1:]))
    for workload in WORKLOADS:
        if options.only in workload.name:
            for training in (False, True):
                print(row(workload, training, names, options.rounds), flush=True)
    return 0


def row(workload: Workload, training: bool, names: list[str], rounds: int) -> str:
    """Measure all variants of one model in one mode."""
    torch.manual_seed(0)
    x, first = workload.inputs(), workload.model().train(training)
    runs: dict[str, Callable[[], torch.Tensor]] = {}
    for name in names:
        model = copy.deepcopy(first)
        with torch.set_grad_enabled(training):
            call = VARIANTS[name](model, x)
        if call is not None:
            runs[name] = step(call, model, x) if training else forward(call, x)
    check({name: run() for name, run in runs.items()})
    times = measure(runs, rounds)
    cells = [ratios(times[name], times["eager"]) if name in times else "not installed: unmeasured" for name in names]
    head = f"{workload.name:13} {'training' if training else 'forward':8} {statistics.median(times['eager']):8.3f}"
    return " ".join([head, *(f"{cell:>18}" for cell in cells[1:])])


def forward(call: Call, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One forward pass without gradients."""

    def run() -> torch.Tensor:
        with torch.no_grad():
            return call(x)

    return run


def step(call: Call, model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One training step: forward, backward and SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run() -> torch.Tensor:
        optimizer.zero_grad()
        loss = call(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def check(results: dict[str, torch.Tensor]) -> None:
    """All variants compute what eager computes."""
    for name, result in results.items():
        torch.testing.assert_close(result, results["eager"], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def measure(runs: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU time of one call, by variant, round by round."""
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 5):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.thread_time_ns()
            for _ in range(CALLS):
                runs[name]()
            if number >= 5:  # the first rounds warm up
                times[name].append((time.thread_time_ns() - start) / CALLS / 1e6)
    return times


def ratios(times: list[float], base: list[float]) -> str:
    """Median and quartiles of the ratios round by round."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(times, base, strict=True)], n=4)
    return f"{middle:.3f} [{low:.2f} {high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
