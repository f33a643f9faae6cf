"""Eight real architectures, split over devices too small for them: training against the unsplit model, and memory.

    python tests/bench/architectures.py [--scale 4] [--only GPT-2]

One row a device: the peak that the plan predicts (reserved by the caching allocator, and allocated) against what was
tracked while the model trained; and for each split whether the forward and five AdamW steps were bit-equal.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from models import ARCHITECTURES, Architecture, Inputs, loss_of

import autosplit
from autosplit import sim
from autosplit.units import format_bytes

STEPS = 5
SPLITS = ((2, 0.6), (4, 0.35))
ROOM = 2**36


@dataclass
class Row:
    """One split of one architecture: what was predicted, tracked and compared."""

    name: str
    devices: int
    capacity_bytes: int
    forward_equal: bool
    steps_equal: bool
    used: int
    predicted: list[int] = field(default_factory=list)
    tracked: list[int] = field(default_factory=list)
    reserved: list[int] = field(default_factory=list)
    predicted_reserved: list[int] = field(default_factory=list)

    @property
    def worst_error(self) -> float:
        """Largest relative error of a device's predicted peak."""
        return max(abs(p - t) / t for p, t in zip(self.predicted, self.tracked, strict=True) if t)

    @property
    def good(self) -> bool:
        """Equal, within capacity, and predicted within 2 %."""
        fits = all(size <= self.capacity_bytes for size in self.reserved)
        return self.forward_equal and self.steps_equal and fits and self.worst_error <= 0.02


def main() -> int:
    """Print the table; exit 1 when a row is not good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    good = True
    print(
        f"{'model':8} {'devices':>7} {'capacity':>10} {'forward':>8} {'5 steps':>8}  predicted / tracked peak a device"
    )
    for architecture in ARCHITECTURES:
        if options.only in architecture.name:
            for row in compare(architecture, options.scale):
                good &= row.good
                print(line(row), flush=True)
    return 0 if good else 1


def line(row: Row) -> str:
    """One row of the table."""
    peaks = "  ".join(f"{format_bytes(p)}/{format_bytes(t)}" for p, t in zip(row.predicted, row.tracked, strict=True))
    forward, steps = ("equal" if same else "DIFFER" for same in (row.forward_equal, row.steps_equal))
    return (
        f"{row.name:8} {row.used} of {row.devices:>2} {format_bytes(row.capacity_bytes):>10} {forward:>8} {steps:>8}  "
        f"{peaks}  worst error {row.worst_error:.2%}{'' if row.good else '  NOT GOOD'}"
    )


def compare(architecture: Architecture, scale: int, splits: tuple[tuple[int, float], ...] = SPLITS) -> list[Row]:
    """Train the unsplit model on one large virtual device, then each split, from the same weights and seed."""
    torch.manual_seed(0)
    model, inputs = architecture.build(scale)
    model.train()
    with sim.cluster([ROOM]) as cluster:
        unsplit = copy.deepcopy(model).to("sim:0")
        cluster.reset_peaks()
        want = train(unsplit, inputs)
        peak = cluster.peak_reserved_bytes("sim:0")
        del unsplit
    return [split_and_train(architecture.name, model, inputs, want, k, int(peak * share)) for k, share in splits]


def split_and_train(
    name: str, model: nn.Module, inputs: Inputs, want: dict[str, torch.Tensor], devices: int, capacity: int
) -> Row:
    """One split of a copy of the model."""
    with sim.cluster([capacity] * devices) as cluster:
        split = autosplit.partition(
            copy.deepcopy(model), cluster.devices, kwargs=on(inputs, "sim:0"), optimizer="adamw"
        )
        have = train(split, inputs)
        plan, names = split.plan, [str(device) for device in cluster.devices]
        row = Row(
            name,
            devices,
            capacity,
            forward_equal=torch.equal(have["first loss"], want["first loss"]),
            steps_equal=all(torch.equal(have[key], want[key]) for key in want),
            used=len(set(plan.placement.values())),
            predicted=[plan.prediction.devices[device].peak_bytes for device in names],
            tracked=[cluster.peak_bytes(device) for device in names],
            reserved=[cluster.peak_reserved_bytes(device) for device in names],
            predicted_reserved=[plan.prediction.devices[device].reserved_bytes for device in names],
        )
        del split
    return row


def on(inputs: Inputs, device: str) -> Inputs:
    """The inputs on a device."""
    return {name: value.to(device) for name, value in inputs.items()}


def train(model: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """The first loss, and parameters and buffers after five AdamW steps."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = on(inputs, "sim:0")
    losses = [step(model, optimizer, inputs) for _ in range(STEPS)]
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {"first loss": losses[0]} | {name: weight.detach().cpu().clone() for name, weight in weights.items()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Inputs) -> torch.Tensor:
    """One training step; its outputs live as long as it does, as in a plan's prediction."""
    outputs = model(**inputs)
    loss = loss_of(outputs)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach().cpu()


if __name__ == "__main__":
    sys.exit(main())
