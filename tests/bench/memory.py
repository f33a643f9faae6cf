"""Memory: predicted against tracked peaks of models of the zoo, in inference and in training, whole and split.

    python tests/bench/memory.py [--only gpt2 resnet] [--devices 1 2 4] [--cases forward sgd adamw] [--process]

One row a case: the largest relative error, over the devices, of the predicted peak against the one that virtual
devices tracked, and of what the caching allocator reserves. With ``--process`` the model runs on the plain CPU, and the
prediction is compared with the requests that the process made of its own allocator.
"""

from __future__ import annotations

import argparse
import copy
import gc
import logging
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

sys.path.insert(0, str(Path(__file__).parents[1]))
from zoo_models import ENTRIES, Entry

import autosplit
from autosplit import sim
from autosplit.api.problem import Problem, Request
from autosplit.api.search import search
from autosplit.capture import Frontend, climb
from autosplit.hardware import resolve
from autosplit.predict import training_loss
from autosplit.units import format_bytes

MODELS = (
    "gpt2", "gpt_neox", "bloom", "llama", "mistral", "qwen2", "gemma2", "bert", "t5", "bart", "vit", "swin", "resnet",
    "convnext", "mixtral", "clip", "nn-lstm", "nn-attention", "nn-transformer", "timm-efficientnet",
)  # fmt: skip
CASES = {"forward": None, "sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
ROOM = 2**36
STEPS = 3
LIMIT = 0.01


@dataclass
class Row:
    """One model in one case on some devices: bytes by device, predicted and seen."""

    name: str
    case: str
    devices: int
    predicted: list[int]
    seen: list[int]
    predicted_reserved: list[int]
    seen_reserved: list[int]

    @property
    def error(self) -> float:
        """Largest relative error of a device's peak."""
        return worst(self.predicted, self.seen)

    def line(self) -> str:
        """One row of the table."""
        peaks = " ".join(f"{format_bytes(p)}/{format_bytes(s)}" for p, s in zip(self.predicted, self.seen, strict=True))
        reserved = f"{worst(self.predicted_reserved, self.seen_reserved):7.2%}" if self.seen_reserved else "      -"
        flag = "" if self.error <= LIMIT else "  OVER"
        return f"{self.name:16} {self.case:8} {self.devices:>2}  {self.error:7.2%} {reserved}  {peaks}{flag}"


def worst(predicted: list[int], seen: list[int]) -> float:
    """Largest relative error; what was seen as nothing must be predicted as nothing."""
    return max(abs(p - s) / max(s, 1) for p, s in zip(predicted, seen, strict=True))


def main() -> int:
    """Print the table and what it comes to; exit 1 when a peak is more than 1 % off."""
    options = _options()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    entries = {entry.name: entry for entry in ENTRIES}
    rows: list[Row] = []
    print(f"{'model':16} {'case':8} {'on':>2}  {'peak':>7} {'reserve':>7}  predicted / seen peak a device")
    for name in options.only or MODELS:
        missing = entries[name].missing() if name in entries else "no such model"
        if missing:
            print(f"{name:16} skipped: {missing}")
            continue
        for row in _rows(entries[name], options):
            rows.append(row)
            print(row.line(), flush=True)
    _summarise(rows)
    return 0 if rows and all(row.error <= LIMIT for row in rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="models of the zoo, by name")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--process", action="store_true", help="on the plain CPU, against the process's own allocator")
    return parser.parse_args()


def _rows(entry: Entry, options: argparse.Namespace) -> list[Row]:
    torch.manual_seed(0)
    model, inputs = entry.build()
    found = []
    for case in options.cases:
        for devices in [1] if options.process else options.devices:
            torch._dynamo.reset()
            gc.collect()
            run = in_process if options.process else on_virtual_devices
            try:
                found.append(run(entry.name, copy.deepcopy(model), inputs, case, devices))
            except autosplit.AutosplitError as error:
                print(f"{entry.name:16} {case:8} {devices:>2}  {type(error).__name__}: {str(error)[:150]}", flush=True)
    return found


def on_virtual_devices(name: str, model: nn.Module, inputs: dict[str, Any], case: str, devices: int) -> Row:
    """Plan for so many virtual devices, run there, and read what they held."""
    with sim.cluster([ROOM] * devices) as cluster:
        here = _on(inputs, "sim:0")
        names = [str(device) for device in cluster.devices]
        split = autosplit.partition(
            model.train(case != "forward"),
            names,
            kwargs=here,
            strategy="single" if devices == 1 else "split",
            objective="auto" if devices == 1 else "memory",
            optimizer=None if case == "forward" else case,
        )
        gc.collect()
        cluster.reset_peaks()
        run(split, here, case)
        predicted = [split.plan.prediction.devices[device] for device in names]
        row = Row(
            name,
            case,
            devices,
            [device.peak_bytes for device in predicted],
            [cluster.peak_bytes(device) for device in names],
            [device.reserved_bytes for device in predicted],
            [cluster.peak_reserved_bytes(device) for device in names],
        )
        del split, here, model
    return row


def in_process(name: str, model: nn.Module, inputs: dict[str, Any], case: str, devices: int) -> Row:
    """Plan for the CPU, run there, and add up what the process's allocator was asked for."""
    model.train(case != "forward")
    mode = "infer" if case == "forward" else "train"
    request = Request(resolve(["cpu"]), mode, strategy="single", optimizer=None if mode == "infer" else case)
    captured = climb(Frontend(copy.deepcopy(model), type(model)), (), inputs, mode)
    predicted = search(Problem(model, request, captured, "cpu")).footprints["cpu"].requested_bytes
    split = autosplit.partition(model, ["cpu"], kwargs=inputs, strategy="single", optimizer=request.optimizer)
    run(split, inputs, case, steps=1)  # what is captured, compiled and kept at the first call is not the model's
    held = [*model.parameters(), *model.buffers(), *tensors(inputs)]
    held_bytes = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run(split, inputs, case)
    return Row(name, case, devices, [predicted], [held_bytes + requested_peak(seen)], [], [])


def requested_peak(seen: Any) -> int:
    """Most bytes that were asked for and not given back, of all that was asked for inside the profile."""
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now, most = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def run(model: nn.Module, inputs: dict[str, Any], case: str, steps: int = STEPS) -> None:
    """One forward pass, or some training steps with an optimizer of their own."""
    if case == "forward":
        with torch.no_grad():
            model(**inputs)
        return
    optimizer = CASES[case](model.parameters(), lr=1e-4, **_foreach(model))
    for _ in range(steps):
        step(model, optimizer, inputs)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, Any]) -> None:
    """One training step; its outputs live as long as it does, as in a plan's prediction."""
    outputs = model(**inputs)
    training_loss(tensors(outputs)).backward()
    optimizer.step()
    optimizer.zero_grad()


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of a nested value."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _foreach(model: nn.Module) -> dict[str, bool]:
    """What torch chooses on accelerators; virtual devices are none that it knows."""
    return {"foreach": next(model.parameters()).device.type != "cpu"}


def _on(inputs: dict[str, Any], device: str) -> dict[str, Any]:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), inputs)


def _summarise(rows: list[Row]) -> None:
    for case in CASES:
        for devices in sorted({row.devices for row in rows}):
            found = [row for row in rows if (row.case, row.devices) == (case, devices)]
            if found:
                errors = [row.error for row in found]
                last = max(found, key=lambda row: row.error)
                print(
                    f"{case:8} on {devices}: {len(found)} models, median error {statistics.median(errors):.2%}, "
                    f"worst {last.error:.2%} ({last.name}), exact {sum(error == 0 for error in errors)}, "
                    f"over {LIMIT:.0%}: {', '.join(row.name for row in found if row.error > LIMIT) or 'none'}"
                )


if __name__ == "__main__":
    sys.exit(main())
