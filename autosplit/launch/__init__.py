"""Launch: a thin front of torchrun. It counts processes, gives waits a limit, and says in one place what went wrong.

Agents, rendezvous, restarts and logs are torch.distributed.run's own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import get_args_parser, run

from autosplit.errors import DeviceError, DeviceFaultError
from autosplit.launch.summary import Ended, ended, summary

DEFAULT_TIMEOUT_S = 300.0
"""Longest wait of a rank for another: more than planning or a checkpoint on one rank takes, less than torch's."""

_RANK = "autosplit.launch.rank"


def launch(words: Sequence[str], devices: str | None, timeout_s: float | None, *, check_loss: bool = False) -> int:
    """Run a script on several processes, as torchrun does.

    Args:
        words: torchrun's options, the script and its arguments; ``--devices``, ``--timeout`` and ``--check-loss`` may
            be among the options too.
        devices: a number of processes, "cuda:0,cuda:2", "cuda", "cpu", or None: one process for each accelerator, one
            where there is none.
        timeout_s: longest wait for another rank, in seconds; 0 leaves torch's; None: DEFAULT_TIMEOUT_S.
        check_loss: stop at a loss that is not finite.

    Returns:
        0, or the exit code of the rank that failed first; 128 + its number where a signal ended it.

    Raises:
        DeviceError: a device is not there, or the number of processes is given twice.
        DeviceFaultError: the other nodes cannot be reached.
        SystemExit: the options are wrong; argparse has said how.
    """
    asked = _parser(devices, timeout_s, check_loss).parse_args(list(words))
    asked.nproc_per_node = _processes(asked)
    script = asked.training_script
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # what torchrun takes too, and warns of in four lines
    with tempfile.TemporaryDirectory(prefix="autosplit-run-") as folder:
        _wrap(asked, Path(folder))
        _separate_attempts(asked)
        try:
            run(asked)
        except ChildFailedError as error:
            found = ended(error.failures, Path(folder))
            sys.stderr.write(summary(script, found))
            return _exit_code(found[0])
        except SignalException as stopped:
            return 128 + stopped.sigval
        except RendezvousError as error:
            raise DeviceFaultError(
                f"the other nodes cannot be reached at {asked.rdzv_endpoint or asked.master_addr!r}: {error}; look at "
                "--nnodes, --rdzv-endpoint and the network between the nodes"
            ) from error
    return 0


def _parser(devices: str | None, timeout_s: float | None, check_loss: bool) -> ArgumentParser:
    parser = get_args_parser()
    parser.prog = "autosplit run"
    parser.add_argument("--devices", default=devices)
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s)
    parser.add_argument("--check-loss", action="store_true", default=check_loss)
    parser.set_defaults(nproc_per_node=os.environ.get("PET_NPROC_PER_NODE"))  # to tell whether it was given
    return parser


def _processes(asked: Namespace) -> str:
    """Processes of this node, as torchrun wants it; where devices are named, only those are left visible."""
    if asked.nproc_per_node is not None:
        if asked.devices is not None:
            raise DeviceError(
                f"--devices {asked.devices} and --nproc-per-node {asked.nproc_per_node} both say how many processes "
                "there are: give one of them"
            )
        return str(asked.nproc_per_node)
    devices = asked.devices or "auto"
    if devices.isascii() and devices.isdecimal() and int(devices) > 0:
        return str(int(devices))
    if devices == "cpu":
        return "1"
    count = torch.accelerator.device_count()
    kind = torch.accelerator.current_accelerator().type if count else "cpu"  # type: ignore[union-attr]  # there is one
    if devices in ("auto", kind):
        return str(max(count, 1))
    indices = [_index(word.strip(), kind, count) for word in devices.split(",")]
    if len(set(indices)) < len(indices):
        raise DeviceError(f"--devices {devices} names a device twice: each process has its own")
    _leave_visible(devices, kind, indices)
    return str(len(indices))


def _index(word: str, kind: str, count: int) -> int:
    name, _, index = word.partition(":")
    if count == 0 or name != kind or not index.isdecimal() or int(index) >= count:
        there = f"{kind}:0 to {kind}:{count - 1}" if count else "no accelerator"
        raise DeviceError(
            f"--devices: no device {word!r}; there is {there}. Give names such as cuda:0,cuda:1, or a number"
        )
    return int(index)


def _leave_visible(devices: str, kind: str, indices: Sequence[int]) -> None:
    if kind == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else None
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] if names else str(i) for i in indices)
    elif list(indices) != list(range(len(indices))):
        raise DeviceError(f"--devices {devices}: only cuda devices can be chosen; give the first ones, or a number")


def _wrap(asked: Namespace, folder: Path) -> None:
    """Let each rank run the script through autosplit.launch.rank; what is no Python script stays as it is."""
    if asked.no_python or asked.run_path:
        return
    options = [f"--folder={folder}", f"--timeout={asked.timeout}"]
    options += ["--check-loss"] * asked.check_loss + ["-m"] * asked.module
    asked.training_script_args = [*options, asked.training_script, *asked.training_script_args]
    asked.training_script, asked.module = _RANK, True


def _separate_attempts(asked: Namespace) -> None:
    """Give each attempt a store of its own.

    torch 2.13 lets a restarted group use the store of the attempt before, whose keys are still in it: gloo and NCCL
    then may connect to addresses of processes that are gone, until the timeout (pytorch issues 135712, 167288).
    """
    least, _, most = asked.nnodes.partition(":")
    if asked.max_restarts > 0 or (most and most != least):
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")


def _exit_code(first: Ended) -> int:
    return first.exit_code if first.exit_code > 0 else 128 - first.exit_code
