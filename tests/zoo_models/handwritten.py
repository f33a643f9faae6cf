"""Models as people write them: Python that decides by values, has side effects, and takes and returns anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from zoo_models.entry import Entry, Inputs, ids
from zoo_models.torch_nn import W, sequence


def linears(count: int) -> nn.ModuleList:
    """Square linear layers."""
    return nn.ModuleList(nn.Linear(W, W) for _ in range(count))


class EarlyExit(nn.Module):
    """Leaves the loop when the values are small enough, or does more when they are not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.more, self.head = linears(5), nn.Linear(W, W), nn.Linear(W, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
            if x.abs().mean() < 0.15:
                break
        if x.sum() > 0:
            x = self.more(x) + x
        return self.head(x)


class Printing(nn.Module):
    """Prints while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = linears(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = F.gelu(layer(x))
            print(f"layer {i}: {tuple(x.shape)}")
        return x


class PrintingValues(Printing):
    """Prints a value that it computed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = F.gelu(layer(x))
            print(f"layer {i}: {x.mean().item():.6f}")
        return x


class Counting(nn.Module):
    """Counts its calls on attributes and keeps a log of shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.calls, self.log = linears(4), 0, []
        self.by_name: dict[str, int] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.log.append(tuple(x.shape))
        self.by_name["rows"] = self.by_name.get("rows", 0) + x.shape[0]
        for layer in self.layers:
            x = F.gelu(layer(x))
        return x * self.calls


class Remembering(nn.Module):
    """Keeps tensors of the call on attributes and in a list, and reads them in the next."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last, self.seen = linears(4), None, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x))
            self.seen.append(x.detach().mean())
        if self.last is not None:
            x = x + self.last
        self.last = x.detach().mean()
        return x


def remembered(model: Any) -> Any:
    """What the forward left, as numbers."""
    return [float(value) for value in model.seen], None if model.last is None else float(model.last)


class Experts(nn.Module):
    """Routes each token to two of four experts, and skips the experts that nobody chose."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(W, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(W, 64), nn.SiLU(), nn.Linear(64, W)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, W)
        weights, chosen = self.gate(tokens).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(tokens)
        for k, expert in enumerate(self.experts):
            mask = chosen == k
            if not mask.any():
                continue
            rows, columns = mask.nonzero(as_tuple=True)
            out = out.index_add(0, rows, expert(tokens[rows]) * weights[rows, columns, None])
        return out.view_as(x)


class Packed(nn.Module):
    """A bidirectional GRU over a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(96, W), nn.GRU(W, W, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * W, 5)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        y, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.head(y.mean(dim=1))


class Numpy(nn.Module):
    """Goes through numpy in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = linears(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[1](F.gelu(self.layers[0](x)))
        ranks = np.argsort(np.argsort(x.detach().cpu().numpy(), axis=-1), axis=-1).astype(np.float32) / W
        x = x + torch.from_numpy(ranks).to(x.device)
        return self.layers[3](F.gelu(self.layers[2](x)))


class Tree(nn.Module):
    """Folds a sequence by a recursion over its halves."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf, self.left, self.right, self.head = *linears(3), nn.Linear(W, 4)

    def fold(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(1) == 1:
            return torch.tanh(self.leaf(x[:, 0]))
        half = x.size(1) // 2
        return torch.tanh(self.left(self.fold(x[:, :half])) + self.right(self.fold(x[:, half:])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.fold(x))


class Generator(nn.Module):
    """Its inner loop is a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = linears(4)

    def steps(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for layer in self.layers:
            x = F.gelu(layer(x))
            yield x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x)
        for i, y in enumerate(self.steps(x)):
            total = total + y * (i + 1)
        return total


class Trying(nn.Module):
    """Takes another path where the first raises."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.wide = linears(4), nn.Linear(2 * W, W)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            try:
                x = x + self.wide(x)
            except RuntimeError:
                x = F.gelu(layer(x))
        return x


class Finding(nn.Module):
    """Looks a layer up by a key that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(i): nn.Linear(W, W) for i in (0, 1, 3)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(4):
            try:
                x = torch.tanh(self.layers[str(i)](x))
            except KeyError:
                x = x * 2
            finally:
                x = x + 1
        return x


@dataclass
class Batch:
    """What Nested takes."""

    x: torch.Tensor
    extra: dict[str, Any]


@dataclass
class Result:
    """What Nested returns."""

    scores: torch.Tensor
    parts: dict[str, Any]
    name: str = "result"


class Nested(nn.Module):
    """Takes and returns dataclasses, dicts, lists and tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = linears(4)

    def forward(self, batch: Batch, scales: tuple[float, list[torch.Tensor]]) -> Result:
        factor, (shift, gain) = scales
        x = self.layers[0](batch.x) * factor + shift
        if batch.extra.get("mask") is not None:
            x = x * batch.extra["mask"][..., None]
        y = self.layers[2](F.gelu(self.layers[1](x)))
        return Result(self.layers[3](y) * gain, {"hidden": [x, (y, None)], "count": x.shape[1]})


class TakesDicts(Nested):
    """Takes and returns nested dicts and tuples, no class of its own."""

    def forward(self, batch: dict[str, Any], scales: tuple[float, list[torch.Tensor]]) -> Any:
        factor, (shift, gain) = scales
        x = self.layers[0](batch["x"]) * factor + shift
        y = self.layers[2](F.gelu(self.layers[1](x * batch["extra"]["mask"][..., None])))
        return {"scores": (self.layers[3](y) * gain,), "hidden": [x, {"deep": (y, None, "kept")}]}


class Normed(nn.Module):
    """BatchNorm, whose running statistics the forward writes, in three places."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.norms = linears(3), nn.ModuleList(nn.BatchNorm1d(W) for _ in range(3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(0, 1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        if self.training:
            self.steps += 1
        return x


def _nested(size: int, length: int) -> Inputs:
    extra = {"mask": torch.rand(size, length), "unused": 3}
    return {"batch": Batch(torch.randn(size, length, W), extra), "scales": (0.5, [torch.randn(W), torch.randn(W)])}


def _dicts(size: int, length: int) -> Inputs:
    made = _nested(size, length)
    return made | {"batch": vars(made["batch"])}


def _lengths(size: int, length: int) -> Inputs:
    return {"tokens": ids(size, length), "lengths": torch.arange(length, length - size, -1)}


def written(name: str, model: type[nn.Module], inputs: Any = sequence, state: Any = None) -> Entry:
    """A model of this file."""
    return Entry(f"py-{name}", "hand-written", model, inputs, state=state)


ENTRIES = (
    written("early-exit", EarlyExit),
    written("print", Printing),
    written("print-values", PrintingValues),
    written("counter", Counting, state=lambda model: (model.calls, model.log, model.by_name)),
    written("memory", Remembering, state=remembered),
    written("experts", Experts),
    written("packed-gru", Packed, _lengths),
    written("numpy", Numpy),
    written("tree", Tree),
    written("generator", Generator),
    written("try", Trying),
    written("try-key", Finding),
    written("dataclasses", Nested, _nested),
    written("dicts", TakesDicts, _dicts),
    written("batch-norm", Normed),
)
