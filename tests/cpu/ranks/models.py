"""Small models of four kinds, their batches and their optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

BATCH = 8


class Block(nn.Module):
    """A residual block with batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.second(F.relu(self.norm(self.first(x)), inplace=True)))


class ResNet(nn.Module):
    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Experts(nn.Module):
    """A mixture of experts: every token goes to the best two of four, weighed by the router."""

    def __init__(self, width: int, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, 2 * width) * 0.1)
        self.down = nn.Parameter(torch.randn(experts, 2 * width, width) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, chosen = self.router(x).softmax(-1).topk(2, -1)
        weights = torch.zeros_like(self.router(x)).scatter(-1, chosen, scores)
        hidden = F.gelu(torch.einsum("btw,ewh->bteh", x, self.up))
        return torch.einsum("bteh,ehw,bte->btw", hidden, self.down, weights)


class MoE(nn.Module):
    def __init__(self, width: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, width)
        self.layers = nn.ModuleList(Experts(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.head = nn.Linear(width, 32)

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(ids)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        logits = self.head(x)
        return {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()), "logits": logits}


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=96, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return GPT2LMHeadModel(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2, dropout_rate=0, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


MODELS: dict[str, Callable[[], nn.Module]] = {"gpt2": gpt2, "t5": t5, "resnet": ResNet, "moe": MoE}
TIED = ("gpt2", "t5")


def build(name: str) -> nn.Module:
    """The model, from one seed; T5's decoder reads the encoder's output at every layer."""
    torch.manual_seed(0)
    return MODELS[name]().train()


def batch(name: str, step: int = 0, samples: int = BATCH) -> dict[str, Any]:
    """Keyword inputs; another for each step."""
    generator = torch.Generator().manual_seed(1 + step)

    def ids(high: int, length: int = 12) -> torch.Tensor:
        return torch.randint(1, high, (samples, length), generator=generator)

    if name == "gpt2":
        tokens = ids(96)
        return {"input_ids": tokens, "labels": tokens.clone(), "use_cache": False}
    if name == "t5":
        return {"input_ids": ids(64), "labels": ids(64, 8), "use_cache": False}
    if name == "resnet":
        x = torch.randn(samples, 3, 8, 8, generator=generator)
        return {"x": x, "labels": torch.randint(0, 10, (samples,), generator=generator)}
    return {"ids": ids(32)}


def optimizer_of(name: str, parameters: Any) -> torch.optim.Optimizer:
    """AdamW for the transformers, SGD with momentum for the others."""
    if name in TIED:
        return torch.optim.AdamW(parameters, lr=1e-3)
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def part_of(inputs: dict[str, Any], place: int, count: int) -> dict[str, Any]:
    """Part number ``place`` of ``count`` equal ones of a batch."""
    return {k: v.chunk(count)[place] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
