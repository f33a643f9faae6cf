"""Real architectures from config with random weights: what the tests and benchmarks split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Architecture:
    """A model and its training inputs, at a width of ``scale``: 1 for a test, 4 for a benchmark."""

    name: str
    build: Callable[[int], tuple[nn.Module, Inputs]]


def _text(vocab: int, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, vocab, (batch, length))


def _gpt2(scale: int) -> tuple[nn.Module, Inputs]:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = _text(512, 4, 64 * scale)
    config = GPT2Config(
        n_layer=8, n_embd=128 * scale, n_head=4, vocab_size=512, n_positions=64 * scale, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def _llama(scale: int) -> tuple[nn.Module, Inputs]:
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = _text(512, 4, 64 * scale)
    config = LlamaConfig(
        num_hidden_layers=8, hidden_size=128 * scale, intermediate_size=256 * scale, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=512, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def _bert(scale: int) -> tuple[nn.Module, Inputs]:
    from transformers import BertConfig, BertForMaskedLM

    ids = _text(512, 4, 64 * scale)
    config = BertConfig(
        num_hidden_layers=8, hidden_size=128 * scale, intermediate_size=512 * scale, num_attention_heads=4,
        vocab_size=512, max_position_embeddings=64 * scale,
    )  # fmt: skip
    return BertForMaskedLM(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def _vit(scale: int) -> tuple[nn.Module, Inputs]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        num_hidden_layers=8, hidden_size=128 * scale, intermediate_size=512 * scale, num_attention_heads=4,
        image_size=64, patch_size=8, num_labels=10,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    return model, {"pixel_values": torch.randn(2 * scale, 3, 64, 64), "labels": torch.arange(2 * scale) % 10}


def _resnet(scale: int) -> tuple[nn.Module, Inputs]:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16 * scale, hidden_sizes=[64 * scale, 128 * scale, 256 * scale, 512 * scale],
        depths=[2, 2, 4, 2], num_labels=10,
    )  # fmt: skip
    model = ResNetForImageClassification(config)
    side = 56 * scale
    return model, {"pixel_values": torch.randn(8, 3, side, side), "labels": torch.arange(8) % 10}


class UNet(nn.Module):
    """Three levels down and up; each level's output skips to the level of its size on the way up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([width, *widths], widths, strict=False))
        self.middle = _block(4 * width, 4 * width)
        self.up = nn.ModuleList(
            _block(a + b, b) for a, b in zip([4 * width, 4 * width, 2 * width], widths[::-1], strict=True)
        )
        self.leave = nn.Conv2d(width, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skips = self.enter(x), []
        for block in self.down:
            skips.append(block(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], dim=1))
        return self.leave(x)


def _block(inputs: int, outputs: int) -> nn.Module:
    convolutions = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
    norms = [nn.GroupNorm(4, outputs), nn.GroupNorm(4, outputs)]
    return nn.Sequential(convolutions[0], norms[0], nn.SiLU(), convolutions[1], norms[1], nn.SiLU(inplace=True))


def _unet(scale: int) -> tuple[nn.Module, Inputs]:
    return UNet(16 * scale), {"x": torch.randn(4, 3, 32 * scale, 32 * scale)}


class Tagger(nn.Module):
    """An embedding, four LSTM layers one after another, and a head tied to the embedding."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(4))
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)[0]
        return self.head(x)


def _lstm(scale: int) -> tuple[nn.Module, Inputs]:
    return Tagger(256, 128 * scale), {"ids": _text(256, 4 * scale, 24)}


def _moe(scale: int) -> tuple[nn.Module, Inputs]:
    from transformers import MixtralConfig, MixtralForCausalLM

    ids = _text(512, 4, 32 * scale)
    config = MixtralConfig(
        num_hidden_layers=6, hidden_size=96 * scale, intermediate_size=128 * scale, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=512, num_local_experts=4, use_cache=False,
    )  # fmt: skip
    return MixtralForCausalLM(config), {"input_ids": ids, "labels": ids}


ARCHITECTURES = (
    Architecture("GPT-2", _gpt2),
    Architecture("Llama", _llama),
    Architecture("BERT", _bert),
    Architecture("ViT", _vit),
    Architecture("ResNet", _resnet),
    Architecture("UNet", _unet),
    Architecture("LSTM", _lstm),
    Architecture("Mixtral", _moe),
)


def loss_of(outputs: Any) -> torch.Tensor:
    """The model's own loss, else the sum of its output."""
    return outputs["loss"] if isinstance(outputs, dict) else outputs.sum()
