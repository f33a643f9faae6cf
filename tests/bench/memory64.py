"""Predict a training step of LLaMA-65B's shape: 80 layers on the meta device, over eight devices, with AdamW.

    python tests/bench/memory64.py [--layers 80] [--profile]

Prints seconds of CPU time, and the memory that the process had resident at most, of the capture and of the prediction
(the emitted graph run on fake tensors: two forwards, two backwards, two updates), and what each device holds.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from capture import peak_bytes
from transformers import LlamaConfig, LlamaForCausalLM

from autosplit.api.problem import Candidate, Problem, Request
from autosplit.capture import Frontend, climb
from autosplit.device import HOST
from autosplit.hardware import resolve
from autosplit.placement import Placement
from autosplit.units import format_bytes

DEVICES = 8
LIMIT_S, LIMIT_BYTES = 15, 1_500_000_000

T = TypeVar("T")


def main() -> int:
    """Print the figures; exit 1 when it all takes 15 s of CPU time, or the process 1.5 GB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--profile", action="store_true", help="print where the prediction spends its time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build(options.layers)
    count = sum(weight.numel() for weight in model.parameters())
    print(f"{options.layers} layers, {count / 1e9:.1f}e9 parameters; before: {format_bytes(peak_bytes())} resident")
    problem, captured_s = _timed("capture", lambda: pose(model))
    _, costed_s = _timed("cost graph", lambda: problem.graph)
    profiler = cProfile.Profile()
    if options.profile:
        profiler.enable()
    candidate, predicted_s = _timed("emit and predict", lambda: predict(problem))
    profiler.disable()
    if options.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    for name, footprint in candidate.footprints.items():
        parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in footprint.breakdown.parts.items() if size)
        print(f"{name}: peak {format_bytes(footprint.peak_bytes)}: {parts}")
    return 0 if captured_s + costed_s + predicted_s < LIMIT_S and peak_bytes() < LIMIT_BYTES else 1


def build(layers: int) -> torch.nn.Module:
    """The model, without weights."""
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=8192, intermediate_size=22016, num_attention_heads=64,
        num_key_value_heads=64, vocab_size=32000, max_position_embeddings=4096, dtype="bfloat16", use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config).train()


def pose(model: torch.nn.Module) -> Problem:
    """The training step of 1 x 2048 tokens, captured as to plan it."""
    ids = torch.zeros(1, 2048, dtype=torch.int64, device="meta")
    captured = climb(Frontend(model, type(model), serves=False), (), {"input_ids": ids, "labels": ids}, "train")
    request = Request(resolve(f"{DEVICES}x141GiB"), "train", optimizer="adamw")
    return Problem(model, request, captured, HOST)


def predict(problem: Problem) -> Candidate:
    """The memory of a split into runs of as many nodes."""
    names, devices = list(problem.graph.nodes), problem.cluster.names
    groups = {name: node.group for name, node in problem.graph.nodes.items()}
    placed = {name: devices[i * len(devices) // len(names)] for i, name in enumerate(names)}
    first: dict[str, str] = {}
    for name, group in groups.items():
        if group is not None:
            placed[name] = first.setdefault(group, placed[name])
    return problem.evaluate(Placement(devices=placed, objective="memory", value=0, bound=0, method="equal runs"))


def _timed(what: str, call: Callable[[], T]) -> tuple[T, float]:
    began, wall = time.thread_time(), time.perf_counter()
    result = call()
    seconds = time.thread_time() - began
    print(
        f"{what}: {seconds:.1f} s CPU, {time.perf_counter() - wall:.1f} s wall; "
        f"{format_bytes(peak_bytes())} resident at most",
        flush=True,
    )
    return result, seconds


if __name__ == "__main__":
    sys.exit(main())
