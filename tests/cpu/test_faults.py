"""Ranks that die, hang, raise, run out of memory or get a loss that is nan: the run ends soon and names the rank.

The script is tests/crashing.py; each run is a launch as a user's, in processes of its own. A run that hangs fails its
test by the time limit.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "crashing.py"
RANKS = 2
LIMIT_S = 60  # between two attempts, and for one that ends the run
POINTS = ["start:0", "forward:1", "backward:2", "optimizer:3", "checkpoint:4"]
STRATEGIES = ["replicate", "pipeline"]


@dataclass
class Run:
    """What is left of a launch."""

    folder: Path
    code: int
    stderr: str
    ended_at: float

    @property
    def results(self) -> list[dict[str, Any]]:
        return [json.loads((self.folder / f"result{rank}.json").read_text()) for rank in range(RANKS)]

    @property
    def log(self) -> list[tuple[float, int, int, str, int]]:
        """Time, attempt, rank, what and step of each line."""
        lines = [line.split() for line in (self.folder / "log").read_text().splitlines()]
        return sorted((float(at), int(attempt), int(rank), what, int(step)) for at, attempt, rank, what, step in lines)


def launch(folder: Path, strategy: str, *faults: str, options: tuple[str, ...] = (), limit_s: int = 2 * LIMIT_S) -> Run:
    """Run the script on two ranks."""
    folder.mkdir(exist_ok=True)
    words = ["--devices", str(RANKS), *options, str(SCRIPT), str(folder), strategy, *faults]
    done = subprocess.run(
        [sys.executable, "-m", "autosplit", "run", *words],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Run(folder, done.returncode, done.stderr, time.time())


def check_restarts(tmp_path: Path, strategy: str, faults: list[str]) -> None:
    """Each attempt but the last is killed as ``faults`` say; the last ends as a run that nothing disturbed."""
    options = ("--max-restarts", str(len(faults)), "--timeout", "40")
    disturbed = launch(tmp_path / "disturbed", strategy, *faults, options=options, limit_s=LIMIT_S * (len(faults) + 1))
    assert disturbed.code == 0, disturbed.stderr
    deaths = [
        f"{what.removeprefix('dies:')}:{step}:{rank}" for _, _, rank, what, step in disturbed.log if "dies" in what
    ]
    assert deaths == faults
    times = [at for at, *_ in disturbed.log]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < LIMIT_S
    undisturbed = launch(tmp_path / "undisturbed", strategy)
    assert undisturbed.code == 0, undisturbed.stderr
    for ours, want in zip(disturbed.results, undisturbed.results, strict=True):
        assert ours["losses"]  # the steps of the last attempt
        assert ours["losses"] == {step: want["losses"][step] for step in ours["losses"]}
        assert ours["digest"] == want["digest"]
        assert ours["names"] == want["names"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_killed_at_any_point_is_restarted_to_the_same_loss(tmp_path: Path, strategy: str) -> None:
    check_restarts(tmp_path, strategy, [f"{point}:1" for point in POINTS])


@pytest.mark.long
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("kind", ["start", "forward", "backward", "optimizer", "checkpoint", "metadata"])
def test_every_point_step_and_rank(tmp_path: Path, strategy: str, kind: str, step: int, rank: int) -> None:
    if (kind == "start" and step > 0) or (kind == "metadata" and rank > 0):
        pytest.skip("an attempt begins once, and rank 0 alone writes the metadata")
    check_restarts(tmp_path, strategy, [f"{kind}:{step}:{rank}"])


RAISED = "rank 1 raised an error"
OOM = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    ("strategy", "fault", "options", "said"),
    [
        ("replicate", "raise:0:1", (), [RAISED, "in misbehave", "KeyError: 'a column that is not there'"]),
        ("replicate", "oom:0:1", (), [RAISED, OOM]),
        ("replicate", "nan:0:1", ("--check-loss",), [RAISED, "LossError: the loss is nan"]),
        ("replicate", "hang:0:1", ("--timeout", "5"), ["waited for another rank", "rank 1 was stopped", "misbehave"]),
        ("pipeline", "oom:1:1", (), [RAISED, OOM, "in stage 1 of rank 1 on cpu, micro-batch 0, forward"]),
        (
            "pipeline",
            "nan:1:0",
            ("--check-loss",),
            ["LossError", "in stage 1 of rank 1 on cpu, micro-batch 0, forward"],
        ),
    ],
)
def test_a_fault_ends_the_run_and_names_the_rank(
    tmp_path: Path, strategy: str, fault: str, options: tuple[str, ...], said: list[str]
) -> None:
    run = launch(tmp_path, strategy, fault, options=options)
    assert run.code == 1
    assert run.ended_at - run.log[-1][0] < LIMIT_S
    summary = run.stderr[run.stderr.index("error[run]") :]
    for words in said:
        assert words in summary
    assert "rank 0 " in summary
    assert "autosplit/launch" not in summary  # the traceback is the script's


def test_a_killed_rank_is_named_before_those_that_lost_it(tmp_path: Path) -> None:
    run = launch(tmp_path, "replicate", "backward:0:1")
    assert run.code == 128 + 9
    first, *others = run.stderr[run.stderr.index("error[run]") :].splitlines()
    assert first.startswith(f"error[run]: {SCRIPT}: rank 1 was killed by SIGKILL")
    # torchrun may stop rank 0 before that sees that it has lost its peer
    assert any(line.startswith(("rank 0 raised an error: RuntimeError", "rank 0 was stopped")) for line in others)


def test_of_a_killed_rank_of_a_pipeline_the_pass_is_named(tmp_path: Path) -> None:
    run = launch(tmp_path, "pipeline", "forward:1:1")
    assert run.code == 128 + 9
    summary = run.stderr[run.stderr.index("error[run]") :]
    assert "rank 1 was killed by SIGKILL" in summary
    assert "in stage 1 of rank 1 on cpu, micro-batch 0, forward" in summary
