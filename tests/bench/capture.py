"""Capture a Llama-2-70B shape on the meta device: no weight is made.

    python tests/bench/capture.py [--layers 80]

Prints nodes, seconds (wall clock, and CPU time of the thread, which a busy machine does not stretch) and the memory
that the process has, beside that of importing the libraries. To plan, layers that are alike are traced once; to serve
calls, or with a KV cache that they all write to, each is.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autosplit.capture import Frontend
from autosplit.graph import Mode
from autosplit.units import format_bytes


def main() -> int:
    """Print a line a capture; exit 1 when one takes more than 10 s of CPU time, or the process more than 1 GB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=80)
    options = parser.parse_args()
    config = LlamaConfig(
        num_hidden_layers=options.layers, hidden_size=8192, intermediate_size=28672, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=32000, max_position_embeddings=4096, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = sum(weight.nbytes for weight in model.parameters())
    before = peak_bytes()
    print(f"{options.layers} layers, weights of {format_bytes(weights)}, before: {format_bytes(before)} resident")
    good = True
    captures: list[tuple[str, Mode, bool, bool]] = [
        ("to plan a training step", "train", False, False),
        ("to plan a forward pass", "infer", False, False),
        ("to serve training steps", "train", False, True),
        ("to plan a forward pass with the KV cache", "infer", True, False),
    ]
    for name, mode, cache, serves in captures:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        ids = torch.zeros(1, 2048, dtype=torch.int64, device="meta")
        frontend = Frontend(model, LlamaForCausalLM, serves=serves)
        program = frontend.capture((), {"input_ids": ids, "use_cache": cache}, mode)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
        print(
            f"{name}: {len(program.graph_module.graph.nodes)} nodes, {len(program.nodes)} placed, {wall_s:.1f} s wall, "
            f"{cpu_s:.1f} s CPU, peak {format_bytes(peak_bytes())} resident"
        )
        good &= cpu_s < 10 and peak_bytes() < 10**9
    return 0 if good else 1


def peak_bytes() -> int:
    """Most memory that this process had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
