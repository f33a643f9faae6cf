"""Train a transformers GPT-2 over devices too small for it, beside the same model unsplit.

The model is built from a config with random weights, so nothing is downloaded. It is partitioned by its first batch;
its tied embedding and head stay one parameter, and the optimizer made before the split stays valid.

Run: python examples/transformer_train.py     (needs transformers: pip install -e '.[test]')
"""

from __future__ import annotations

import copy

import torch
from transformers import GPT2Config, GPT2LMHeadModel, logging

import autosplit
from autosplit import report

STEPS = 5


def main() -> None:
    logging.set_verbosity_error()
    torch.set_num_threads(1)  # so small a model runs fastest on one thread
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "n_positions": 64, "n_embd": 256, "n_layer": 4, "n_head": 8}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=False)
    whole = GPT2LMHeadModel(config).train()
    split = copy.deepcopy(whole)
    tokens = torch.randint(0, config.vocab_size, (STEPS, 2, 64))

    with autosplit.sim.cluster("2x80MiB") as cluster:
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (whole, split)]
        autosplit.partition(split, cluster.devices, optimizer="adamw")  # planned at the first call
        for step in range(STEPS):
            losses = [train(model, opt, tokens[step]) for model, opt in zip((whole, split), optimizers, strict=True)]
            if step == 0:
                print(report.text(split.plan))
            print(f"step {step}: loss unsplit {losses[0]!r}, split {losses[1]!r}")
        pairs = zip(split.parameters(), whole.parameters(), strict=True)
        equal = all(torch.equal(ours.cpu(), theirs) for ours, theirs in pairs)
        print(f"parameters equal after {STEPS} steps: {equal}")
        print(f"still tied: {split.lm_head.weight is split.transformer.wte.weight}")
        print(cluster.report())


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> float:
    """One training step; the same random numbers for both models, as dropout draws some."""
    torch.manual_seed(1)
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


if __name__ == "__main__":
    main()
