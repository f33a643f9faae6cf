"""Two processes of one thread each: throughput of a pipeline against one process, and against two that share nothing.

    PYTHONPATH=tests/cpu python tests/bench/pipeline.py [--rounds 5] [--microbatches 8] [--schedule gpipe] [--only cnn]

The ceiling is what two independent processes do on this machine at the same time, each with batches of its own: they
share caches and memory bandwidth as the two stages of a pipeline do. The schedule's ideal share of it is
m / (m + p - 1) for m micro-batches and p stages. All four ways run in turn in every round; the median is shown. Wall
clock: run it on a machine that does nothing else, or the figures say little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from ranks.harness import run_ranks
from torch import nn
from torch.nn import functional as F

import autosplit
from autosplit.capture import Frontend
from autosplit.placement import Pipeline
from autosplit.program import module_path

RANKS = 2
LIMIT_S = 1800


class Layer(nn.Module):
    """A transformer layer, the norm first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            t.view(batch, length, 4, width // 4).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Eight equal layers, and a head that weighs about two of them."""

    def __init__(self, width: int = 192, layers: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(4000, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.head = nn.Linear(width, 4000)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), ids.flatten())


class Cnn(nn.Module):
    """Eight convolutions of which the first, at full resolution, take most of the time."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, stride=2 if i in (1, 3) else 1) for i in range(8)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for layer in self.layers:
            x = F.relu(layer(x))
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)


def inputs(name: str) -> dict[str, torch.Tensor]:
    """One batch."""
    torch.manual_seed(1)
    if name in LENGTHS:
        return {"ids": torch.randint(0, 4000, (16, LENGTHS[name]))}
    return {"x": torch.randn(32, 3, 48, 48), "labels": torch.randint(0, 10, (32,))}


MODELS: dict[str, Callable[[], nn.Module]] = {"transformer": Transformer, "short": Transformer, "cnn": Cnn}
LENGTHS = {"transformer": 256, "short": 64}
"""Tokens of each of 16 samples; with 8 micro-batches the operators of "short" are so small that they lose a tenth."""


def equal_layers(model: nn.Module, name: str, microbatches: int, schedule: str) -> autosplit.Plan:
    """The first half of the layers on one rank, the others on the next."""
    program = Frontend(model, type(model)).capture((), inputs(name), "train")
    at: dict[Any, int] = {}
    for node in program.nodes:
        layer = next((int(part) for part in module_path(node).split(".") if part.isdecimal()), None)
        before = max((at.get(argument, 0) for argument in node.all_input_nodes), default=0)
        at[node] = before if layer is None or not module_path(node).startswith("layers.") else layer // 4
    device = autosplit.Device(name="rank0/cpu", kind="cpu", memory_bytes=2**33)
    devices = (device, msgspec.structs.replace(device, name="rank1/cpu"))
    placement = {program.names[node]: f"rank{stage}/cpu" for node, stage in at.items()}
    plan = autosplit.plan(
        model, autosplit.Cluster(devices=devices), kwargs=inputs(name), placement=placement, profile=False
    )
    stages = tuple(tuple(node for node, home in plan.placement.items() if home == d.name) for d in devices)
    pipeline = Pipeline(microbatches=microbatches, schedule=schedule, stages=stages)
    return msgspec.structs.replace(plan, strategy="pipeline", pipeline=pipeline)


def step_of(model: nn.Module, name: str) -> Callable[[], None]:
    """One training step, the same for all."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    batch = inputs(name)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).backward()
        optimizer.step()

    return step


def on_rank(rank: int, name: str, rounds: int, steps: int, microbatches: int, schedule: str) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    how = {"strategy": "pipeline", "microbatches": microbatches, "schedule": schedule, "profile": True}
    ours = autosplit.partition(MODELS[name](), ["cpu"], kwargs=inputs(name), **how)
    equal_plan = equal_layers(MODELS[name](), name, microbatches, schedule)
    equal = autosplit.partition(MODELS[name](), ["cpu"], kwargs=inputs(name), plan=equal_plan)
    alone = step_of(MODELS[name](), name)
    ways = {"alone": alone, "two": alone, "ours": step_of(ours, name), "equal": step_of(equal, name)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way in (*ways, *(way for _ in range(rounds) for way in ways)):
        dist.barrier()
        start = time.perf_counter()
        for _ in range(steps if rank == 0 or way != "alone" else 0):
            ways[way]()
        dist.barrier()
        seconds[way].append((time.perf_counter() - start) / steps)
    cut = [len(nodes) for nodes in ours.plan.pipeline.stages]
    return {"seconds": {way: statistics.median(found[1:]) for way, found in seconds.items()}, "cut": cut}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*MODELS], nargs="+", default=[*MODELS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--schedule", choices=["gpipe", "1f1b"], default="gpipe")
    asked = parser.parse_args()
    m, p = asked.microbatches, RANKS
    ideal = m / (m + p - 1)
    print(f"steps a second; {p} processes of one thread, {asked.schedule}, {m} micro-batches: ideal {ideal:.3f}")
    print(
        f"{'model':12} {'one':>7} {'ceiling':>8} {'ours':>7} {'equal':>7}  ours/(ceiling x ideal)  equal/(...)  nodes"
    )
    for name in asked.only:
        with tempfile.TemporaryDirectory() as folder:
            said = run_ranks(
                on_rank, p, Path(folder), name, asked.rounds, asked.steps, m, asked.schedule, limit_s=LIMIT_S
            )[0]
        rate = {way: 1 / seconds for way, seconds in said["seconds"].items()}
        ceiling = 2 * rate["two"]
        share = {way: rate[way] / (ceiling * ideal) for way in ("ours", "equal")}
        print(
            f"{name:12} {rate['alone']:7.2f} {ceiling:8.2f} {rate['ours']:7.2f} {rate['equal']:7.2f}  "
            f"{share['ours']:22.3f}  {share['equal']:11.3f}  {said['cut']}"
        )


if __name__ == "__main__":
    main()
