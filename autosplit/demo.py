"""The demonstration: a GPT that fits no single virtual device trains split, bit for bit as it does unsplit.

``autosplit demo`` runs it; ``autosplit plan autosplit.demo:GPT`` plans its model for any devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from autosplit import sim
from autosplit.api import partition, plan
from autosplit.errors import CapacityError
from autosplit.placement import Plan
from autosplit.report import PlanTable
from autosplit.units import format_bytes

DEVICES = "2x128MiB"
"""The virtual devices: together large enough for a training step, each too small for it."""

STEPS = 10
_BATCH, _LENGTH, _VOCABULARY = 2, 64, 4096

Print = Callable[[RenderableType], None]
Progress = Callable[[str], AbstractContextManager[None]]


class Attention(nn.Module):
    """Causal self-attention with ``heads`` heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values mixed over earlier positions; x is (batch, length, width)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        return self.out(mixed)  # type: ignore[no-any-return]  # calling a module is untyped in torch


class Block(nn.Module):
    """Attention and a two-layer network, each after a norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output, of the shape of x."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]  # calling a module is untyped in torch


class GPT(nn.Module):
    """A small GPT that returns its loss, so that the whole training step is planned.

    Args:
        vocabulary, width, heads, layers, length: sizes, in the usual sense.
    """

    def __init__(
        self, vocabulary: int = _VOCABULARY, width: int = 256, heads: int = 8, layers: int = 8, length: int = _LENGTH
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(length, width))
        self.layers = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy of predicting ``targets`` from ``tokens``, both (batch, length) of int64."""
        x = self.embed(tokens) + self.position
        for block in self.layers:
            x = block(x)
        return nn.functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def example_batch() -> dict[str, torch.Tensor]:
    """The random batch of a training step: the same at each call."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, _VOCABULARY, (_BATCH, _LENGTH + 1), generator=generator)
    return {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}


def run(show: Print, progress: Progress) -> int:
    """Plan, split, train beside the unsplit model, compare.

    Args:
        show: prints one renderable.
        progress: a context manager that tells what is being done.

    Returns:
        0 when every loss and every parameter is equal bit for bit, and memory and copies are as planned, else 1.
    """
    whole, split = _build(), _build()
    with sim.cluster(DEVICES) as cluster, _one_thread():
        show(Text(f"A GPT of {sum(p.numel() for p in whole.parameters()):,} parameters, training with AdamW."))
        with progress("planning"):
            show(Text(_misfit(split, cluster)))
            made = plan(split, cluster.devices, kwargs=example_batch(), mode="train", optimizer="adamw")
        for renderable in (Text(), PlanTable(made), Text()):
            show(renderable)
        partition(split, cluster.devices, plan=made)
        cluster.clear_transfers()
        show(Text(f"{STEPS} steps on one batch, which the model learns by heart, unsplit and split:"))
        with progress(f"training {STEPS} steps, unsplit and split"):
            losses = list(zip(_train(whole), _train(split), strict=True))
        moved = list(cluster.transfers)
        for table in (_losses(losses), _memory(made, cluster)):
            show(table)
            show(Text())
        wrong = [f"step {i} loss" for i, (one, two) in enumerate(losses, 1) if one != two]
        wrong += [n for n, p in split.named_parameters() if not torch.equal(p.cpu(), whole.get_parameter(n))]
        wrong += _broken_promises(made, cluster, len(moved))
    show(Text(f"{len(moved)} copies between devices in {STEPS} steps; planned: {_planned(made)}."))
    if wrong:
        show(Text(f"not as unsplit, or not as planned: {', '.join(wrong[:5])}"))
    else:
        show(Text("Every loss, and every parameter after the last step: equal bit for bit."))
    show(Text("DIFFERENT", style="bold red") if wrong else Text("identical", style="bold green"))
    return 1 if wrong else 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a model runs fastest on one thread, most of all where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _build() -> GPT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT()


def _misfit(model: nn.Module, cluster: sim.Cluster) -> str:
    """What planning for one device says: it must not fit, or the demonstration shows nothing."""
    try:
        plan(model, cluster.devices[:1], kwargs=example_batch(), mode="train", optimizer="adamw", strategy="single")
    except CapacityError as error:
        return f"On one device: {error}."
    return "On one device: it fits."


def _train(model: nn.Module) -> Iterator[float]:
    """Losses of the training steps, exactly: they fall, as one batch is learnt by heart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        loss = model(**example_batch())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def _losses(losses: list[tuple[float, float]]) -> Table:
    grid = Table("step", "unsplit loss", "split loss", box=None, pad_edge=False, header_style="bold")
    for step, (one, two) in enumerate(losses, 1):
        grid.add_row(str(step), repr(one), repr(two) + ("" if one == two else "  differs"))
    return grid


def _memory(made: Plan, cluster: sim.Cluster) -> Table:
    """Predicted against seen memory by device."""
    headers = ("device", "peak predicted", "peak seen", "taken predicted", "taken seen", "capacity")
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        grid.add_column(header, justify="left" if header == "device" else "right")
    for device in made.cluster.devices:
        predicted = made.prediction.devices[device.name]
        figures = (
            predicted.peak_bytes,
            cluster.peak_bytes(device.name),
            predicted.reserved_bytes,
            cluster.peak_reserved_bytes(device.name),
            device.memory_bytes,
        )
        grid.add_row(device.name, *map(format_bytes, figures))
    return grid


def _planned(made: Plan) -> int:
    """Copies of all steps: each transfer once a step, and once more for its gradient."""
    return STEPS * sum(1 + transfer.returns_gradient for transfer in made.transfers)


def _broken_promises(made: Plan, cluster: sim.Cluster, copies: int) -> list[str]:
    over = [
        f"memory of {device.name}"
        for device in made.cluster.devices
        if cluster.peak_reserved_bytes(device.name) > device.memory_bytes
    ]
    return over if copies == _planned(made) else [*over, "number of copies"]
