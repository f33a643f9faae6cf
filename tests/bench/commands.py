"""Seconds that the commands without a model take, and whether they import torch: ``python tests/bench/commands.py``.

CPU time of the process (user and system), median of ``RUNS``: on a machine that others use too, the wall clock tells of
them. Exits with 1 where one is over the limit or imports torch.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 7
LIMIT_S = 0.5
STORED = Path(__file__).parents[1] / "pure" / "attacks" / "told" / "code.json"
CODE = "import sys; from autosplit.cli import main; main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr)"


def seconds(words: list[str]) -> tuple[float, bool]:
    """CPU time, and whether torch was imported."""
    took, torch = [], False
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        torch |= done.stderr.strip() == "True"
    return statistics.median(took), torch


def main() -> int:
    """Print a row a command."""
    from autosplit.placement import Plan

    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "plan.json")
        Plan.load(STORED).save(file)
        wrong = 0
        for words in (["--help"], ["show", file], ["diff", file, file], ["check", file], ["schema", "plan"]):
            took, torch = seconds(words)
            wrong += took > LIMIT_S or torch
            print(f"autosplit {words[0]:<8} {took:.2f} s of CPU time, limit {LIMIT_S} s, torch imported: {torch}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
