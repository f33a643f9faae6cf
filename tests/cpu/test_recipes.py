"""The recipes for several processes in examples/, run as a user runs them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
AUTOSPLIT = ("-m", "autosplit", "run", "--devices", "2")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


def run(launcher: tuple[str, ...], *words: str) -> list[str]:
    """What the recipe prints, sorted."""
    done = subprocess.run(
        [sys.executable, *launcher, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr
    return sorted(re.findall(r"rank \d.*|step \d: .*", done.stdout.replace("rank", "\nrank")))


@pytest.mark.parametrize("name", ["ddp_fallback.py", "pipeline_gpt2.py"])
def test_a_recipe_is_short(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    below = text.splitlines()[ast.parse(text).body[0].end_lineno :]  # the docstring
    assert len([line for line in below if line.strip() and not line.startswith("#")]) < 40


def test_replicas_go_on_from_the_last_complete_checkpoint(tmp_path: Path) -> None:
    words = (str(EXAMPLES / "ddp_fallback.py"), str(tmp_path))
    printed = run(TORCHRUN, *words)
    assert len(printed) == 2 * 4
    assert all("DistributedDataParallel" in line for line in printed)
    (tmp_path / "step-000020" / ".metadata").unlink()  # as if the ranks had been killed before it was written
    assert run(AUTOSPLIT, *words) == [line for line in printed if "step 20" in line]
