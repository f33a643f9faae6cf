"""Several ranks on this machine: each a process with one thread, over gloo; a hang is a failure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT_S = int(os.environ.get("AUTOSPLIT_RANKS_LIMIT_S", "120"))


def run_ranks(function: Callable[..., Any], count: int, folder: Path, *args: Any, limit_s: int = LIMIT_S) -> list[Any]:
    """What ``function(rank, *args)`` returns on each of ``count`` ranks of a process group.

    Raises:
        ProcessRaisedException: a rank raised.
        TimeoutError: a rank was not done in time; all are stopped.
    """
    folder.mkdir(exist_ok=True)
    context = mp.start_processes(_main, (function, count, str(folder), args), count, join=False, start_method="spawn")
    assert context is not None
    end = time.monotonic() + limit_s
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{function.__name__} on {count} ranks was not done in {limit_s} s")
    return [torch.load(folder / f"said{rank}.pt", weights_only=False) for rank in range(count)]


def _main(rank: int, function: Callable[..., Any], count: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count, timeout=timedelta(seconds=LIMIT_S)
    )
    try:
        torch.save(function(rank, *args), f"{folder}/said{rank}.pt")
    finally:
        dist.destroy_process_group()
