"""A pipeline over ranks that is saved, and goes on from there in another process, under this plan or another.

Run twice: autosplit run --devices 2 examples/pipeline_checkpoint.py FOLDER     (the second time with 1, 3, ... ranks)
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import autosplit
from autosplit.demo import GPT

folder, steps = Path(sys.argv[1]), 3
flat = StateDictOptions(flatten_optimizer_state_dict=True)
dist.init_process_group()
torch.manual_seed(0)  # every rank builds the same model and the same batches
model = GPT(vocabulary=256, width=64, layers=4, heads=4, length=16)
ids = torch.randint(0, 256, (2 * steps, 8, 17))
batches = [{"tokens": words[:, :-1], "targets": words[:, 1:]} for words in ids]
strategy = {"strategy": "pipeline", "microbatches": 4} if dist.get_world_size() > 1 else {}
split = autosplit.partition(model.train(), ["cpu"], kwargs=batches[0], **strategy)
optimizer = torch.optim.AdamW(split.parameters(), lr=1e-3)
part = getattr(split, "module", split)  # of replicas (DistributedDataParallel, hybrid) what is copied
first = steps if (folder / ".metadata").exists() else 0  # written last: the checkpoint is whole
if first:
    weights, state = get_state_dict(part, optimizer, options=flat)  # of a new optimizer: its moments and steps are made
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(part, optimizer, model_state_dict=weights, optim_state_dict=state, options=flat)
for step in range(first, first + steps):
    loss = split(**batches[step])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if dist.get_rank() == 0:
        print(f"step {step}: loss {loss.item():.6f}")
weights, state = get_state_dict(part, optimizer, options=flat)
dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
dist.destroy_process_group()
