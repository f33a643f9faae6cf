"""Split every model of the zoo over three virtual devices, and compare it with the unsplit model in all it does.

    python tests/bench/zoo.py [--list] [--only NAME] [--family FAMILY] [--checks CHECK ...] [--random SEED]

One row a model: how it was captured, its nodes, seconds to plan, devices used, and a verdict for each of

- forward: outputs, their class and what was printed, in train mode;
- steps: weights and buffers after three SGD steps;
- other: the same after one more, with another batch and length, not planned again;
- eval: outputs in eval mode without gradients, not planned again;
- python: what the forward left on the model's attributes;
- names: state_dict, its names, order and values; class: isinstance and the name of the class;
- greedy, sample, cached: tokens of generate without a cache, sampled from a seed, and as generate is by default.

"equal" is bit for bit; "close" is within 1e-6 (of the largest gradient, or of a tensor's largest value), where sums
were taken in another order.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from zoo_models import ENTRIES, Entry
from zoo_models.compare import CHECKS, Comparison, Verdict, compare

WIDTH = 400
"""Most characters of a reason."""


def main() -> int:
    """Print the table; exit 1 when a row is not good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a model's name; may be repeated")
    parser.add_argument("--family", help="the models of one family")
    parser.add_argument("--list", action="store_true", help="print the models and what they need, and stop")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=CHECKS, help="only some of the checks")
    parser.add_argument("--random", type=int, metavar="SEED", help="every operator on a device of its own choice")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one model")
    options = parser.parse_args()
    chosen = [
        entry
        for entry in ENTRIES
        if (not options.only or entry.name in options.only) and options.family in (None, entry.family)
    ]
    if not chosen:
        parser.error("no such model: see --list")
    if options.list:
        for entry in chosen:
            print(f"{entry.name:24} {entry.family:14} {entry.missing() or entry.needs}")
        return 0
    _be_quiet()
    rows, skipped = _run(chosen, options)
    _summarise(rows, skipped)
    return 0 if all(row.good for row in rows) else 1


def _run(chosen: list[Entry], options: argparse.Namespace) -> tuple[list[Comparison], dict[str, str]]:
    rows: list[Comparison] = []
    skipped: dict[str, str] = {}
    print(f"{'model':22} {'rung':7} {'nodes':>5} {'plan':>6} {'used':>4}  {' '.join(f'{name:8}' for name in CHECKS)}")
    for entry in chosen:
        missing = entry.missing()
        if missing:
            skipped[entry.name] = missing
            continue
        rows.append(_guarded(entry, options))
        print(_line(rows[-1]), flush=True)
        for name, verdict in rows[-1].verdicts.items():
            if not verdict.good:
                print(f"    {verdict.word} {name}: {verdict.why[:WIDTH]}", flush=True)
    return rows, skipped


def _guarded(entry: Entry, options: argparse.Namespace) -> Comparison:
    """The comparison of one entry; whatever goes wrong is its verdict."""
    torch._dynamo.reset()
    try:
        with _time_limit(options.limit):
            return compare(entry, options.checks, seed=options.random)
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Comparison(entry, verdicts={"forward": Verdict("crashed", why)})


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _line(row: Comparison) -> str:
    words = [row.verdicts[name].word if name in row.verdicts else "-" for name in CHECKS]
    return (
        f"{row.entry.name:22} {row.rung:7} {row.nodes:>5} {row.plan_seconds:>5.1f}s {row.used:>4}  "
        f"{' '.join(f'{word:8}' for word in words)}{'' if row.good else ' NOT GOOD'}"
    )


def _summarise(rows: list[Comparison], skipped: dict[str, str]) -> None:
    """Totals of each check, and what the rows do not say."""
    good = sum(row.good for row in rows)
    print(f"\n{good} of {len(rows)} models good ({good / max(1, len(rows)):.0%}), {len(skipped)} skipped")
    print("rungs: " + ", ".join(f"{count} {rung}" for rung, count in Counter(row.rung for row in rows).most_common()))
    for name in CHECKS:
        words = Counter(row.verdicts[name].word for row in rows if name in row.verdicts)
        total = sum(words.values())
        print(f"{name:8} " + ", ".join(f"{n} {word} ({n / total:.0%})" for word, n in words.most_common()))
    for row in rows:
        if row.rung != "-" and row.used < 3:
            print(f"used {row.used} of 3: {row.entry.name}")
    for row in rows:
        if row.good and any(verdict.word == "close" for verdict in row.verdicts.values()):
            print(f"close    {row.entry.name}: {', '.join(f'{n} {v.why}' for n, v in row.verdicts.items() if v.why)}")
    for name, why in skipped.items():
        print(f"skipped  {name}: {why}")


def _be_quiet() -> None:
    """The models' and the libraries' warnings are not about the split."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
