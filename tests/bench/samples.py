"""Which models of the zoo treat each sample by itself, as `follow_samples` sees it.

    python tests/bench/samples.py [--only NAME] [--family NAME] [--lines N] [--check]

Each model is captured at two batch sizes, for inference and for training. A row says "exact" when nothing mixes
samples and every output has a merge; "N mixing" counts the nodes that let samples see each other or are not known not
to; "unknown" means that an output has no merge. The seconds are those of `follow_samples` alone. With --check the
model is run in inference on random data at the large batch and on its single samples, merged: "equal", or the largest
difference.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from micro_batches import compared, programs
from zoo_models import ENTRIES, Entry

from autosplit.samples import follow_samples

MODES = ("infer", "train")


def main() -> int:
    """Print the table; exit 1 when a model called exact is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a model's name; may be repeated")
    parser.add_argument("--family", help="the models of one family")
    parser.add_argument("--lines", type=int, default=1, help="how many mixing nodes to print of each model")
    parser.add_argument("--check", action="store_true", help="run the exact ones in micro-batches and compare")
    options = parser.parse_args()
    _be_quiet()
    words: dict[str, Counter[str]] = {mode: Counter() for mode in MODES}
    wrong = False
    for entry in ENTRIES:
        if (options.only and entry.name not in options.only) or options.family not in (None, entry.family):
            continue
        missing = entry.missing()
        if missing:
            print(f"{entry.name:24} skipped: {missing}")
            continue
        for mode in MODES:
            word, text, samples = _row(entry, mode)
            if options.check and word == "exact":
                found = _checked(entry, mode, samples)
                wrong |= found.startswith("WRONG")
                text += f"  {found}"
            words[mode][word.split()[-1]] += 1
            print(f"{entry.name:24} {mode:5} {word:12} {text}", flush=True)
            for line in (samples.mixing if samples else ())[: options.lines]:
                print(f"    {line[-260:]}")
    for mode in MODES:
        print(f"{mode}: " + ", ".join(f"{count} {word}" for word, count in words[mode].most_common()))
    return int(wrong)


def _row(entry: Entry, mode: str) -> tuple[str, str, Any]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    try:
        model, inputs = entry.build()
        small, large = programs(model, inputs, mode)
    except Exception as error:
        return "no program", f"{type(error).__name__}: {' '.join(str(error).split())[:150]}", None
    start = time.perf_counter()
    samples = follow_samples(small, large)
    text = f"{len(small.names):>6} nodes {time.perf_counter() - start:6.2f} s"
    if samples.mixing:
        return f"{len(samples.mixing)} mixing", text, samples
    if None in [merge for merge, node in zip(samples.outputs, small.results, strict=True) if _is_tensor(small, node)]:
        return "unknown", text, samples
    return "exact", text, samples


def _is_tensor(program: Any, node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and program.facts[node].is_tensor


def _checked(entry: Entry, mode: str, samples: Any) -> str:
    if samples.random:
        return "random: not compared"
    torch.manual_seed(0)
    model, inputs = entry.build()
    worst = max(gap for gap in compared(model, inputs, mode)[1] if gap is not None)
    return "equal" if worst <= 1e-4 else f"WRONG by {worst:.2e}"


def _be_quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
