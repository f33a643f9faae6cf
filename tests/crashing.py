"""A training script with a checkpoint a step, which fails on purpose: what the crash tests launch.

Attempt k (torchrun's restart count) fails as the k-th of ``faults`` says, "KIND:STEP:RANK"; an attempt beyond them does
not. Each attempt goes on from the last complete checkpoint. What happened goes to FOLDER/log, a line each; the losses
and a digest of the weights after the last step to FOLDER/result.json.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import autosplit

STEPS = 6


class Net(nn.Module):
    """Returns its loss, as a pipeline needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16)) for _ in range(4))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(self.head(x), y)


class Fault:
    """What this rank does wrong in this attempt, if anything."""

    def __init__(self, folder: Path, faults: list[str]) -> None:
        self.log, self.rank, attempt = folder / "log", dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        kind, step, rank = (faults[attempt] if attempt < len(faults) else "none:0:0").split(":")
        self.kind, self.step = (kind, int(step)) if int(rank) == self.rank else ("none", 0)
        self.attempt = attempt

    def say(self, what: str, step: int) -> None:
        with self.log.open("a") as log:
            log.write(f"{time.time()} {self.attempt} {self.rank} {what} {step}\n")

    def is_now(self, kind: str, step: int) -> bool:
        return (kind, step) == (self.kind, self.step)

    def die(self) -> None:
        self.say(f"dies:{self.kind}", self.step)
        os.kill(os.getpid(), signal.SIGKILL)


class DieAt(TorchDispatchMode):
    """Dies within the pass, at the first operator whose name has ``word`` in it."""

    def __init__(self, fault: Fault, word: str) -> None:
        super().__init__()
        self.fault, self.word = fault, word

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.word in str(func):
            self.fault.die()
        return func(*args, **(kwargs or {}))


def failing(fault: Fault, kind: str, step: int) -> contextlib.AbstractContextManager[object]:
    """Fail in the midst of a pass: at a tensor that a forward saves or a backward takes, or at an update."""
    if not fault.is_now(kind, step):
        return contextlib.nullcontext()
    if kind == "optimizer":
        return DieAt(fault, "addcdiv")
    calls = itertools.count()

    def fail_midway(tensor: torch.Tensor) -> torch.Tensor:
        if next(calls) == 5:
            if kind == "oom":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            fault.die()
        return tensor

    hooks = (torch.clone, fail_midway) if kind == "backward" else (fail_midway, torch.clone)
    return torch.autograd.graph.saved_tensors_hooks(*hooks)


def die_at_file(fault: Fault, step: int, event: str, ending: str) -> None:
    """Die in the middle of a checkpoint: when a file of such a name is opened or renamed."""

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == event and str(args[0]).endswith(ending) and f"step-{step:03d}" in str(args[0]):
            fault.die()

    sys.addaudithook(hook)


def misbehave(fault: Fault, step: int) -> None:
    if fault.step == step and fault.kind in ("raise", "oom", "hang"):
        fault.say(f"fails:{fault.kind}", step)
    if fault.is_now("raise", step):
        raise KeyError("a column that is not there")
    if fault.is_now("hang", step):
        time.sleep(600)


def save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    import torch.distributed.checkpoint as dcp  # slow, and most faults are before the first checkpoint
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    weights, state = get_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / f"step-{step:03d}")


def resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step to begin with. A checkpoint is complete when its .metadata is there: torch renames it in place last."""
    complete = sorted(folder.glob("step-*/.metadata"))
    if not complete:
        return 0
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    weights, state = get_state_dict(model, optimizer, options=flat)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=complete[-1].parent)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=flat)
    return int(complete[-1].parent.name.removeprefix("step-")) + 1


def batches(strategy: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A batch for each step: of replicas each rank has its part, of a pipeline all have the whole."""
    drawn = torch.Generator().manual_seed(1)
    whole = [(torch.randn(8, 16, generator=drawn), torch.randint(0, 4, (8,), generator=drawn)) for _ in range(STEPS)]
    if strategy == "pipeline":
        return whole
    rank, world = dist.get_rank(), dist.get_world_size()
    return [(x.chunk(world)[rank], y.chunk(world)[rank]) for x, y in whole]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("strategy", choices=["replicate", "pipeline"])
    parser.add_argument("faults", nargs="*")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    fault = Fault(asked.folder, asked.faults)
    torch.manual_seed(0)
    data = batches(asked.strategy)
    options: dict[str, Any] = {"profile": False}  # every attempt is to have the same plan
    if asked.strategy == "pipeline":
        options["microbatches"] = 4
    model = autosplit.partition(Net().train(), ["cpu"], data[0], strategy=asked.strategy, optimizer="adamw", **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = resume(asked.folder, model, optimizer)
    fault.say("begins", first)
    if fault.is_now("start", first):
        fault.die()
    for kind, event, ending in (("checkpoint", "open", ".distcp"), ("metadata", "os.rename", ".tmp")):
        if fault.kind == kind:
            die_at_file(fault, fault.step, event, ending)
    losses = train(model, optimizer, data, fault, first, asked.folder)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    result = asked.folder / f"result{dist.get_rank()}.json"
    result.write_text(json.dumps({"losses": losses, "digest": digest, "names": list(model.state_dict())}))
    dist.destroy_process_group()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[tuple[torch.Tensor, torch.Tensor]],
    fault: Fault,
    first: int,
    folder: Path,
) -> dict[int, float]:
    losses = {}
    for step in range(first, STEPS):
        x, y = data[step]
        if fault.is_now("nan", step):
            fault.say("fails:nan", step)
            x = x * float("nan")
        misbehave(fault, step)
        with failing(fault, "forward", step), failing(fault, "backward", step), failing(fault, "oom", step):
            loss = model(x, y)
            loss.backward()
        with failing(fault, "optimizer", step):
            optimizer.step()
        optimizer.zero_grad()
        losses[step] = loss.item()
        save(folder, step, model, optimizer)
    return losses


if __name__ == "__main__":
    main()
