"""``autosplit run``: words to torchrun's options, the script as python would run it, and the summary of failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

import autosplit.launch
from autosplit import faults
from autosplit.cli import main
from autosplit.launch.summary import ended, files_of, summary

SAYS_HOW_IT_RAN = """
import json, os, sys
import torch.distributed as dist
from torch.distributed import distributed_c10d
import beside
print(json.dumps({
    "name": __name__, "argv": sys.argv, "path": sys.path[0], "file": __file__, "rank": os.environ["RANK"],
    "seconds": distributed_c10d._get_default_timeout("gloo").total_seconds(),
}))
sys.exit(7)
"""


@pytest.fixture
def four_gpus(monkeypatch):
    """A machine with four, of which torchrun is told."""
    asked = []
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(autosplit.launch, "run", asked.append)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0")
    return asked


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ([], "4"),
        (["--devices", "auto"], "4"),
        (["--devices", "cuda"], "4"),
        (["--devices", "3"], "3"),
        (["--devices", "cpu"], "1"),
        (["--nnodes", "2", "--devices", "cuda:0,cuda:2"], "2"),
        (["--nproc-per-node", "8"], "8"),
    ],
)
def test_a_process_for_each_device(four_gpus, words, processes):
    assert main(["run", *words, "train.py", "--devices", "its own"]) == 0
    (asked,) = four_gpus
    assert asked.nproc_per_node == processes
    assert asked.training_script == "autosplit.launch.rank"
    assert asked.training_script_args[-3:] == ["train.py", "--devices", "its own"]


@pytest.mark.parametrize(
    ("seen", "left"), [(None, "1,3"), ("4,5,6,7", "5,7"), ("GPU-a,GPU-b,GPU-c,GPU-d", "GPU-b,GPU-d")]
)
def test_only_the_devices_that_are_named_are_visible(four_gpus, monkeypatch, seen, left):
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert main(["run", "--devices", "cuda:1,cuda:3", "train.py"]) == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_attempts_have_stores_of_their_own(four_gpus, monkeypatch):
    for words, separate in (([], False), (["--max-restarts", "2"], True), (["--nnodes", "1:2"], True)):
        monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
        assert main(["run", *words, "train.py"]) == 0
        assert (os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == "1") is separate


def test_what_is_no_python_script_is_left_as_it_is(four_gpus):
    assert main(["run", "--no-python", "train.sh", "x"]) == 0
    assert (four_gpus[0].training_script, four_gpus[0].training_script_args) == ("train.sh", ["x"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "cuda:4", "t.py"], "no device 'cuda:4'; there is cuda:0 to cuda:3"),
        (["--devices", "cuda:1,cuda:1", "t.py"], "names a device twice"),
        (["--devices", "2x24GiB", "t.py"], "no device '2x24GiB'"),
        (["--devices", "0", "t.py"], "no device '0'"),
        (["--devices", "2", "--nproc-per-node", "2", "t.py"], "give one of them"),
        (["--nproc-per-node", "many", "t.py"], "Unsupported nproc_per_node value: many"),
        (["--timeout", "-1", "t.py"], "--timeout"),
        ([], "Missing argument"),
    ],
)
def test_wrong_words(four_gpus, monkeypatch, capsys, words, said):
    from torch.distributed.run import run

    monkeypatch.setattr(autosplit.launch, "run", run)
    assert main(["run", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_an_option_that_torchrun_does_not_have(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "--no-such-option", "t.py"])
    assert caught.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize("as_module", [False, True])
def test_the_script_runs_as_python_runs_it(tmp_path: Path, as_module: bool) -> None:
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "script.py").write_text(SAYS_HOW_IT_RAN)
    words = ["-m", "script"] if as_module else [str(tmp_path / "script.py")]
    done = subprocess.run(
        [sys.executable, "-m", "autosplit", "run", "--timeout", "77", *words, "--an", "argument"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path if as_module else None,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(autosplit.__file__).parents[1])},
    )
    assert done.returncode == 7, done.stderr
    said = json.loads(done.stdout)
    assert said["name"] == "__main__"
    assert said["argv"][1:] == ["--an", "argument"]
    assert Path(said["file"]).name == "script.py"
    assert Path(said["path"] or tmp_path).resolve() == tmp_path.resolve()
    assert (said["rank"], said["seconds"]) == ("0", 77)
    assert "rank 0 ended with exit code 7" in done.stderr


@pytest.mark.parametrize(
    ("fault", "said", "options", "times"),
    [
        ("raise KeyError('a column')", "KeyError: 'a column'", (), 1),
        ("sys.exit('no such file')", "SystemExit: no such file", (), 1),
        ("raise KeyError('a column')", "KeyError: 'a column'", ("--max-restarts", "1"), 2),  # one for each attempt
    ],
)
def test_an_error_is_told_once(tmp_path: Path, fault: str, said: str, options: tuple[str, ...], times: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\ndef main():\n    {fault}\nmain()\n")
    done = subprocess.run(
        [sys.executable, "-m", "autosplit", "run", *options, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(autosplit.__file__).parents[1])},
    )
    assert done.returncode == 1
    assert sum(line.strip() == said for line in done.stderr.splitlines()) == times
    assert done.stderr.count("in main") == times
    summary = done.stderr[done.stderr.index("error[run]") :]
    assert "rank 0 raised an error" in summary
    assert said in summary


def failed(folder: Path, rank: int, code: int, error: str = "", at_s: int = 0, stack: str = "") -> ProcessFailure:
    """A rank's failure and the files that it leaves."""
    passes, stacks = files_of(folder, 1, rank)
    passes.write_bytes(b"")
    stacks.write_text(stack)
    file = folder / f"error{rank}.json"
    if error:
        extra = {"py_callstack": f"Traceback (most recent call last):\n  File\n{error}\n", "timestamp": str(at_s)}
        file.write_text(json.dumps({"message": {"message": error, "extraInfo": extra}}))
        os.utime(file, (at_s, at_s))
    return ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file=str(file))


WAITS = sysconfig.get_paths()["purelib"] + "/torch/x.py"
STACK = f'Stack\n  File "{WAITS}", line 5 in wait\n  File "/home/me/train.py", line 31 in main\n'


def test_the_first_to_fail_is_named_first(tmp_path: Path) -> None:
    failures = {
        0: failed(tmp_path, 0, 1, "RuntimeError: Connection closed by peer", 12),
        1: failed(tmp_path, 1, -signal.SIGTERM, stack=STACK),
        2: failed(tmp_path, 2, -signal.SIGTERM, "KeyError: 'x'", 11, stack=STACK),  # stopped while it was leaving
    }
    said = summary("train.py", ended(failures, tmp_path)).splitlines()
    assert said[0] == "error[run]: train.py: rank 2 raised an error"
    assert ended(failures, tmp_path)[0].exit_code == 1
    assert said[3] == "  KeyError: 'x'"
    assert said[4] == "rank 0 raised an error: RuntimeError: Connection closed by peer"
    assert said[5] == f"rank 1 was stopped by torchrun: at /home/me/train.py:31 main, in {WAITS}:5 wait"


def test_a_killed_rank_comes_before_those_that_lost_it(tmp_path: Path) -> None:
    failures = {
        0: failed(tmp_path, 0, 1, "RuntimeError: Connection closed by peer", 12),
        1: failed(tmp_path, 1, -signal.SIGSEGV),
        2: failed(tmp_path, 2, -signal.SIGKILL, stack=STACK),  # it did not heed torchrun's SIGTERM
    }
    assert [one.rank for one in ended(failures, tmp_path)] == [1, 0, 2]
    assert "rank 1 was killed by SIGSEGV" in summary("train.py", ended(failures, tmp_path))


def test_the_pass_of_a_killed_rank_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults._Watched, "record", None)
    failures = {3: failed(tmp_path, 3, -signal.SIGKILL)}
    faults.record_passes(files_of(tmp_path, 1, 3)[0])
    with faults.passing(3, 7, "forward", "cuda:3", rank=3):
        said = summary("train.py", ended(failures, tmp_path))
    assert "in stage 3 of rank 3 on cuda:3, micro-batch 7, forward" in said
    assert "after stage 3 of rank 3" in summary("train.py", ended(failures, tmp_path))


def test_of_many_ranks_some_are_listed(tmp_path: Path) -> None:
    failures = {rank: failed(tmp_path, rank, 1, "E: no", 20 + rank) for rank in range(20)}
    said = summary("train.py", ended(failures, tmp_path)).splitlines()
    assert said[-1] == "and 11 more ranks"
    assert len(said) == 4 + 8 + 1
