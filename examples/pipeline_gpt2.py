"""A transformers GPT-2 as a pipeline over ranks: each holds its layers only, and all call the model as one calls it.

The model is built from a config with random weights, so nothing is downloaded.

Run: autosplit run --devices 2 examples/pipeline_gpt2.py     (or torchrun --nproc-per-node 2 examples/pipeline_gpt2.py)
"""

import os

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, logging

import autosplit

logging.set_verbosity_error()
dist.init_process_group()
if torch.accelerator.is_available():
    torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
torch.manual_seed(0)  # every rank builds the same model and the same batch
sizes = {"vocab_size": 512, "n_positions": 32, "n_embd": 64, "n_layer": 4, "n_head": 4}
dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}  # so that the losses are those of one process
config = GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
tokens = torch.randint(0, config.vocab_size, (8, 32))
batch = {"input_ids": tokens, "labels": tokens, "use_cache": False}
devices = "auto" if torch.accelerator.is_available() else ["cpu"]
split = autosplit.partition(model.train(), devices, kwargs=batch, strategy="pipeline", microbatches=4)
optimizer = torch.optim.AdamW(split.parameters(), lr=1e-3)
for step in range(5):
    loss = split(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if dist.get_rank() == 0:
        print(f"step {step}: loss {loss.item()!r}")
print(f"rank {dist.get_rank()} holds {sum(p.numel() for p in split.parameters())} parameters")
dist.destroy_process_group()
