"""A model that fits one device, on several ranks: partition gives each a replica under DistributedDataParallel.

It writes a checkpoint every few steps and goes on from the last complete one, so a restart loses little.

Run: autosplit run --devices 2 --max-restarts 3 examples/ddp_fallback.py CHECKPOINTS     (or torchrun: docs/running.md)
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import autosplit

STEPS, SAVE_EVERY, FOLDER = 20, 5, Path(sys.argv[1])
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # by name: also what ranks with other weights can share


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=FLAT), strict=True))


def resume(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    complete = sorted(FOLDER.glob("step-*/.metadata"))  # torch writes this file last, and renames it into place
    if not complete:
        return 0
    dcp.load(saved := state(model, optimizer), checkpoint_id=complete[-1].parent)
    loaded = {"model_state_dict": saved["model"], "optim_state_dict": saved["optimizer"]}
    set_state_dict(model, optimizer, **loaded, options=FLAT)
    return int(complete[-1].parent.name.removeprefix("step-"))


dist.init_process_group()
if torch.accelerator.is_available():
    torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
torch.manual_seed(0)  # the same weights and data on every rank, of which it takes its part
model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 4))
mine = slice(dist.get_rank(), None, dist.get_world_size())
x, y = torch.randn(64, 32)[mine], torch.randint(0, 4, (64,))[mine]
model = autosplit.partition(model, "auto" if torch.accelerator.is_available() else ["cpu"], (x,), optimizer="adamw")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(resume(model, optimizer) + 1, STEPS + 1):
    loss = nn.functional.cross_entropy(model(x).cpu(), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % SAVE_EVERY == 0:
        dcp.save(state(model, optimizer), checkpoint_id=FOLDER / f"step-{step:06d}")
        print(f"rank {dist.get_rank()}, {type(model).__name__}, step {step}: loss {loss.item()!r}")
dist.destroy_process_group()
