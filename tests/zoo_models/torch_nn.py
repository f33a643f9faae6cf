"""torch.nn's own models, called as a user calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zoo_models.entry import Entry, Inputs, ids

W = 32


def sequence(size: int, length: int) -> Inputs:
    """Vectors over time, batch first."""
    return {"x": torch.randn(size, length, W)}


def under(name: str) -> Any:
    """Makes vectors over time under another name."""
    return lambda size, length: {name: torch.randn(size, length, W)}


class Translator(nn.Module):
    """nn.Transformer between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, W)
        self.transformer = nn.Transformer(W, 4, 2, 2, 64, batch_first=True)
        self.head = nn.Linear(W, 96)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1), device=target.device)
        return self.head(self.transformer(self.embed(source), self.embed(target), tgt_mask=mask))


class Recurrent(nn.Module):
    """An embedding, recurrent layers of one kind, and a head; the last state is returned too."""

    def __init__(self, kind: Callable[..., nn.Module], **values: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, W)
        self.layers = kind(W, W, num_layers=2, batch_first=True, **values)
        self.head = nn.Linear(2 * W if values.get("bidirectional") else W, 96)

    def forward(self, tokens: torch.Tensor) -> Any:
        y, state = self.layers(self.embed(tokens))
        return self.head(y), state


class Attentive(nn.Module):
    """nn.MultiheadAttention with padding, its weights returned."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(W, 4, dropout=0.1, batch_first=True)
        self.out = nn.Linear(W, W)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, weights = self.attention(x, x, x, key_padding_mask=padding)
        return self.out(y), weights


class Cells(nn.Module):
    """An LSTMCell stepped by a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LSTMCell(W, W), nn.LSTMCell(W, W), nn.Linear(W, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = [(x.new_zeros(x.size(0), W), x.new_zeros(x.size(0), W)) for _ in range(2)]
        out = []
        for t in range(x.size(1)):
            state[0] = self.first(x[:, t], state[0])
            state[1] = self.second(state[0][0], state[1])
            out.append(self.head(state[1][0]))
        return torch.stack(out, dim=1)


class Bag(nn.Module):
    """An EmbeddingBag over ragged rows, a bilinear form and a distance."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.form, self.head = nn.EmbeddingBag(96, W), nn.Bilinear(W, W, W), nn.Linear(W, 4)

    def forward(self, tokens: torch.Tensor, offsets: torch.Tensor) -> Any:
        rows = self.bag(tokens, offsets)
        return {"scores": self.head(self.form(rows, rows.tanh())), "near": F.cosine_similarity(rows, rows.roll(1, 0))}


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.Dropout2d(0.1),
        nn.ConvTranspose2d(32, 16, 2, stride=2), nn.InstanceNorm2d(16, affine=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def _layer(kind: Callable[..., nn.Module]) -> nn.Module:
    return kind(W, 4, 64, batch_first=True)


def own(name: str, model: Callable[[], nn.Module], inputs: Any) -> Entry:
    """A model of torch.nn."""
    return Entry(f"nn-{name}", "torch.nn", model, inputs)


ENTRIES = (
    own("transformer", Translator, lambda b, s: {"source": ids(b, s), "target": ids(b, s + 3)}),
    own("encoder", lambda: nn.TransformerEncoder(_layer(nn.TransformerEncoderLayer), 3), under("src")),
    own(
        "decoder",
        lambda: nn.TransformerDecoder(_layer(nn.TransformerDecoderLayer), 2),
        lambda b, s: {"tgt": torch.randn(b, s, W), "memory": torch.randn(b, s + 2, W)},
    ),
    own("lstm", lambda: Recurrent(nn.LSTM, dropout=0.1), lambda b, s: {"tokens": ids(b, s)}),
    own("lstm-bidirectional", lambda: Recurrent(nn.LSTM, bidirectional=True), lambda b, s: {"tokens": ids(b, s)}),
    own("gru", lambda: Recurrent(nn.GRU), lambda b, s: {"tokens": ids(b, s)}),
    own("rnn", lambda: Recurrent(nn.RNN), lambda b, s: {"tokens": ids(b, s)}),
    own("lstm-cells", Cells, sequence),
    own(
        "attention", Attentive, lambda b, s: {**sequence(b, s), "padding": torch.arange(s).expand(b, s) >= s - 2}
    ),
    own("bag", Bag, lambda b, s: {"tokens": ids(1, b * s)[0], "offsets": torch.arange(0, b * s, s)}),
    own("convolutions", _convolutions, lambda b, _: {"input": torch.randn(b, 3, 16, 16)}),
    own("mlp", lambda: nn.Sequential(nn.Linear(W, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.SELU(),
                                     nn.Linear(64, W)), under("input")),
)  # fmt: skip
