"""The place of a pass: in the exception that leaves it, and in a file that outlives a killed process."""

import math
import signal
import subprocess
import sys

import pytest

from autosplit import faults
from autosplit.errors import LossError

PLACE = "stage 2 of rank 1 on cuda:1, micro-batch 3, backward"
DIES_WITHIN = """
import os, pathlib, signal, sys
from autosplit import faults
faults.record_passes(pathlib.Path(sys.argv[1]))
with faults.passing(0, 3, "forward", rank=1):
    pass
with faults.passing(2, 3, "backward", "cuda:1", rank=1):
    if sys.argv[2] == "within":
        os.kill(os.getpid(), signal.SIGKILL)
assert "torch" not in sys.modules
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
    monkeypatch.setattr(faults._Watched, "loss", False)
    monkeypatch.setattr(faults._Watched, "record", None)


def test_an_exception_is_the_same_with_a_note():
    error = MemoryError("no more")
    with pytest.raises(MemoryError) as caught, faults.passing(2, 3, "backward", "cuda:1", rank=1):
        raise error
    assert caught.value is error
    assert error.__notes__ == [f"in {PLACE}"]
    assert str(error) == "no more"


def test_in_one_process_no_rank_is_named():
    with pytest.raises(KeyError) as caught, faults.passing(0, 1, "forward"):
        raise KeyError("x")
    assert caught.value.__notes__ == ["in stage 0, micro-batch 1, forward"]


@pytest.mark.parametrize("when", ["within", "after"])
def test_a_killed_process_leaves_its_last_pass(tmp_path, when):
    path = tmp_path / "pass"
    done = subprocess.run([sys.executable, "-c", DIES_WITHIN, str(path), when], check=False)
    assert done.returncode == -signal.SIGKILL
    where = faults.last_pass(path)
    assert (where.place, where.inside) == (PLACE, when == "within")
    assert where.since_ns > 0


def test_a_long_name_is_cut(tmp_path):
    faults.record_passes(tmp_path / "pass")
    with faults.passing(0, 0, "forward", "é" * 100):
        pass
    assert "é" * 40 in faults.last_pass(tmp_path / "pass").place


@pytest.mark.parametrize("content", [None, b"", b"x" * 7])
def test_without_a_pass_nothing_is_said(tmp_path, content):
    path = tmp_path / "pass"
    if content is not None:
        path.write_bytes(content)
    assert faults.last_pass(path) is None
    faults.record_passes(tmp_path / "new")
    assert faults.last_pass(tmp_path / "new") is None


def test_a_loss_is_looked_at_only_where_that_was_asked_for():
    faults.check_loss(math.nan)
    faults.watch_loss()
    faults.check_loss(1.0)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(LossError, match=f"the loss is {value}"):
            faults.check_loss(value)
