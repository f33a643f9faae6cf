"""The recipes for several processes in examples/, run as a user runs them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from autosplit.demo import GPT

EXAMPLES = Path(__file__).parents[2] / "examples"
AUTOSPLIT = ("-m", "autosplit", "run", "--devices", "2")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


def run(launcher: tuple[str, ...], *words: str) -> list[str]:
    """What the recipe prints, sorted."""
    done = subprocess.run(
        [sys.executable, *launcher, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr
    return sorted(re.findall(r"rank \d.*|step \d: .*", done.stdout.replace("rank", "\nrank")))


@pytest.mark.parametrize("name", ["ddp_fallback.py", "pipeline_gpt2.py", "pipeline_checkpoint.py"])
def test_a_recipe_is_short(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    below = text.splitlines()[ast.parse(text).body[0].end_lineno :]  # the docstring
    assert len([line for line in below if line.strip() and not line.startswith("#")]) < 40


def test_replicas_go_on_from_the_last_complete_checkpoint(tmp_path: Path) -> None:
    words = (str(EXAMPLES / "ddp_fallback.py"), str(tmp_path))
    printed = run(TORCHRUN, *words)
    assert len(printed) == 2 * 4
    assert all("DistributedDataParallel" in line for line in printed)
    (tmp_path / "step-000020" / ".metadata").unlink()  # as if the ranks had been killed before it was written
    assert run(AUTOSPLIT, *words) == [line for line in printed if "step 20" in line]


def test_a_pipeline_trains_as_the_model_does() -> None:
    printed = run(AUTOSPLIT, str(EXAMPLES / "pipeline_gpt2.py"))
    losses = [float(line.partition("loss ")[2]) for line in printed if "loss" in line]
    assert losses == pytest.approx(losses_of_one_process(), rel=1e-5)  # sums in another order
    held = [int(line.split()[3]) for line in printed if "holds" in line]
    assert len(held) == 2
    assert all(0 < one < parameters() for one in held)


def test_a_pipeline_goes_on_from_its_checkpoint_on_another_number_of_ranks(tmp_path: Path) -> None:
    words = (str(EXAMPLES / "pipeline_checkpoint.py"), str(tmp_path / "kept"))
    first = run(AUTOSPLIT, *words)
    then = run((*AUTOSPLIT[:-1], "1"), *words)
    torch.manual_seed(0)
    model = GPT(vocabulary=256, width=64, layers=4, heads=4, length=16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    want = []
    for words_of_step in torch.randint(0, 256, (6, 8, 17)):
        optimizer.zero_grad()
        loss = model(words_of_step[:, :-1], words_of_step[:, 1:])
        loss.backward()
        optimizer.step()
        want.append(loss.item())
    losses = [float(line.partition("loss ")[2]) for line in (*first, *then)]
    assert losses == pytest.approx(want, rel=1e-5)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "n_positions": 32, "n_embd": 64, "n_layer": 4, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)).train()


def parameters() -> int:
    return sum(parameter.numel() for parameter in gpt2().parameters())


def losses_of_one_process() -> list[float]:
    model = gpt2()
    tokens = torch.randint(0, 512, (8, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
