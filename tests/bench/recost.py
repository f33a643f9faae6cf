"""How long `recost` takes, and how near it comes to planning again, for a GPT-2 shape of some 1,000 nodes.

    python tests/bench/recost.py [--layers 24]

Prints the time of the thread (median of 20) and, for single-device training, estimated against exact peaks by batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import autosplit

DEVICES = "1x1TiB"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    options = parser.parse_args()
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=options.layers, n_embd=256, n_head=4, use_cache=False))
    made = plan(model, 4)
    wall_s = time.perf_counter()
    autosplit.recost(made, batch=8)
    print(
        f"{len(made.placement)} nodes; first recost at another batch {time.perf_counter() - wall_s:.1f} s (a capture)"
    )
    print(f"later, at another batch  {median_ms(lambda: autosplit.recost(made, batch=8)):.0f} ms")
    print(f"on other devices         {median_ms(lambda: autosplit.recost(made, devices='2x80GiB')):.0f} ms")
    print("batch   exact peak  estimated   error      step   error")
    for batch in (1, 2, 8, 16, 64):
        exact, guess = plan(model, batch).prediction, autosplit.recost(made, batch=batch)
        peaks = [predicted.devices["gpu:0"].peak_bytes for predicted in (exact, guess)]
        print(
            f"{batch:5} {peaks[0] / 2**20:8.1f} MiB {peaks[1] / 2**20:6.1f} MiB {peaks[1] / peaks[0] - 1:+7.2%} "
            f"{exact.step_ns / 1e6:6.1f} ms {guess.step_ns / exact.step_ns - 1:+7.2%}"
        )


def plan(model: torch.nn.Module, batch: int) -> autosplit.Plan:
    """The plan of one training step."""
    ids = torch.empty(batch, 128, dtype=torch.int64, device="meta")
    return autosplit.plan(model, DEVICES, kwargs={"input_ids": ids, "labels": ids}, mode="train")


def median_ms(run: Callable[[], object]) -> float:
    """Milliseconds of CPU time of the thread."""
    times = []
    for _ in range(20):
        start = time.thread_time_ns()
        run()
        times.append((time.thread_time_ns() - start) / 1e6)
    return statistics.median(times)


if __name__ == "__main__":
    main()
