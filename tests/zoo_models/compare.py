"""A split model against the unsplit one: the same calls on both, and what they left, value for value."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from splitting import split_at_random
from torch import nn
from torch.utils import _pytree as pytree

import autosplit
from autosplit import sim
from autosplit.errors import AutosplitError
from zoo_models.entry import Entry, Inputs, tensors

STEPS = 3
RATE = 1e-3
CLOSE = 1e-6
"""What a sum in another order may change in single precision, relative to what ``scale`` says."""

ROOM = 2**36
CHECKS = ("forward", "steps", "other", "eval", "python", "names", "class", "greedy", "sample", "cached")
GENERATING = ("greedy", "sample", "cached")


@dataclass(frozen=True)
class Seen:
    """What one call gave: tensors by name, and values that must be the same as they are."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: tuple[Any, ...] = ()
    error: Exception | None = None


@dataclass(frozen=True)
class Verdict:
    """One check: "equal", "close", "DIFFERS", "refused" or "crashed"; and why."""

    word: str
    why: str = ""

    @property
    def good(self) -> bool:
        """Equal, or close enough."""
        return self.word in ("equal", "close")


@dataclass
class Comparison:
    """A split of one entry, and the verdict of each check; a check that does not apply has none."""

    entry: Entry
    rung: str = "-"
    nodes: int = 0
    plan_seconds: float = 0.0
    used: int = 0
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Split over more than one device, and every check is."""
        return self.used > 1 and all(verdict.good for verdict in self.verdicts.values())


def compare(
    entry: Entry, checks: Sequence[str] = CHECKS, steps: int = STEPS, devices: int = 3, seed: int | None = None
) -> Comparison:
    """Split a copy of the model over virtual devices and compare it with another on a single one.

    Args:
        entry: the model.
        checks: which of CHECKS to make.
        steps: of training.
        devices: how many.
        seed: of a random placement; None splits as a user would.
    """
    torch.manual_seed(0)
    model, inputs = entry.build()
    calls = _calls(entry, inputs, copy.deepcopy(model.state_dict()), steps)
    calls = {name: call for name, call in calls.items() if name in checks}
    with sim.cluster([ROOM]):
        unsplit = copy.deepcopy(model).to("sim:0")
        want = {name: observe(call, unsplit) for name, call in calls.items()}
        del unsplit
    row = Comparison(entry)
    with sim.cluster([ROOM] * devices) as cluster:
        try:
            split = _partition(row, model, cluster.devices, inputs, seed)
        except Exception as error:
            row.verdicts["forward"] = _fallen(error)
            return row
        row.verdicts["names"] = _names(model, split)
        row.verdicts["class"] = _class(model, split)
        row.verdicts |= {name: judge(want[name], observe(call, split)) for name, call in calls.items()}
        del split
    row.verdicts = {name: row.verdicts[name] for name in CHECKS if name in row.verdicts}
    return row


def _partition(row: Comparison, model: nn.Module, devices: Any, inputs: Inputs, seed: int | None) -> nn.Module:
    inputs, model = on_device(inputs), copy.deepcopy(model).train()
    began = time.perf_counter()
    if seed is None:
        split = autosplit.partition(model, devices, kwargs=inputs, strategy="split", optimizer="sgd")
    else:
        split = split_at_random(model, (), inputs, [str(device) for device in devices], seed)
    row.plan_seconds = time.perf_counter() - began
    plan = split.plan
    row.rung = getattr(plan, "capture", "graph")
    row.nodes, row.used = len(plan.placement), len(set(plan.placement.values()))
    return split


def _calls(entry: Entry, inputs: Inputs, first: dict[str, Any], steps: int) -> dict[str, Callable[[nn.Module], Seen]]:
    """What is done with each of the two models, in this order; the first weights are loaded again after the steps."""
    other = entry.other()
    calls: dict[str, Callable[[nn.Module], Seen]] = {
        "forward": lambda model: forward(model.train(), inputs),
        "steps": lambda model: train(entry, model, inputs, steps),
        "other": lambda model: train(entry, loaded(model, first), other, 1),
        "eval": lambda model: forward(loaded(model, first).eval(), inputs),
        "python": lambda model: Seen(values=(copy.deepcopy(entry.state(model)) if entry.state else None,)),
    }
    if entry.prompt is not None:
        prompt = entry.prompt()
        calls["greedy"] = lambda model: generate(model, prompt, use_cache=False, do_sample=False)
        calls["sample"] = lambda model: generate(model, prompt, use_cache=False, do_sample=True)
        calls["cached"] = lambda model: generate(model, prompt, do_sample=False)
    return calls


def observe(call: Callable[[nn.Module], Seen], model: nn.Module) -> Seen:
    """One call from a fixed seed; what it printed is among the values, what it raised is caught."""
    said = io.StringIO()
    torch.manual_seed(1)
    np.random.seed(1)  # wav2vec2 masks by NumPy's
    random.seed(1)
    try:
        with contextlib.redirect_stdout(said):
            seen = call(model)
    except Exception as error:
        return Seen(error=error)
    return dataclasses.replace(seen, values=(*seen.values, said.getvalue()))


def loaded(model: nn.Module, state: dict[str, Any]) -> nn.Module:
    """The model with its weights as they were, so that one difference is not found twice."""
    model.load_state_dict(state)
    return model


def forward(model: nn.Module, inputs: Inputs) -> Seen:
    """The outputs, their classes and places; gradients are on in training."""
    with torch.set_grad_enabled(model.training):
        out = model(**on_device(inputs))
    return _outputs(out)


def train(entry: Entry, model: nn.Module, inputs: Inputs, steps: int) -> Seen:
    """The first step's outputs and gradients, and the weights after some steps."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    kept: dict[str, torch.Tensor] = {}
    values: tuple[Any, ...] = ()
    for step in range(steps):
        out = model(**on_device(inputs))
        entry.loss(out).backward()
        if step == 0:
            values, kept = _outputs(out).values, _outputs(out).tensors
            kept |= {f"gradient {n}": p.grad.cpu().clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        kept[f"weight {name}"] = weight.detach().cpu().clone()
    return Seen(kept, values)


def generate(model: Any, prompt: Inputs, **options: Any) -> Seen:
    """Five tokens."""
    out = model.eval().generate(**on_device(prompt), max_new_tokens=5, min_new_tokens=5, **options)
    return Seen({"tokens": out.cpu()})


def _outputs(out: Any) -> Seen:
    leaves = tensors(out)
    where = tuple(leaf.device.type for leaf in leaves)
    kept = {f"out {i}": leaf.detach().cpu().clone() for i, leaf in enumerate(leaves)}
    return Seen(kept, (f"{type(out).__module__}.{type(out).__qualname__}", where))


def on_device(inputs: Inputs) -> Inputs:
    """A copy of the inputs on the first device, dataclasses included."""

    def move(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(
                value, **{f.name: on_device(getattr(value, f.name)) for f in dataclasses.fields(value)}
            )
        return value.clone().to("sim:0") if isinstance(value, torch.Tensor) else value

    moved: Inputs = pytree.tree_map(move, inputs)
    return moved


# ---------------------------------------------------------------- judging


def judge(want: Seen, have: Seen) -> Verdict:
    """One word for what differs, and the first thing that does."""
    if want.error is not None:
        if type(want.error) is type(have.error):
            return Verdict("equal", f"both raised {_said(want.error)}")
        return Verdict("crashed", f"the unsplit model raised {_said(want.error)}")
    if have.error is not None:
        return _fallen(have.error)
    if have.values != want.values:
        changed = next((h, w) for h, w in zip(have.values, want.values, strict=True) if h != w)
        return Verdict("DIFFERS", f"{changed[0]!r} for {changed[1]!r}")
    if list(have.tensors) != list(want.tensors):
        return Verdict("DIFFERS", f"tensors {sorted(set(have.tensors) ^ set(want.tensors))[:3]}")
    step = max((_largest(value) for name, value in want.tensors.items() if name.startswith("gradient")), default=0.0)
    far = {
        name: difference(have.tensors[name], value, scale(name, value, step)) for name, value in want.tensors.items()
    }
    name, worst = max(far.items(), key=lambda item: item[1], default=("", 0.0))
    if worst == 0:
        return Verdict("equal")
    return Verdict("close" if worst <= CLOSE else "DIFFERS", f"{name} by {worst:.1e}")


def scale(name: str, value: torch.Tensor, largest_gradient: float) -> float:
    """What a difference is relative to.

    For a gradient the model's largest one: some are zero but for rounding, as those of a bias before a softmax. For a
    weight its own largest value, or the largest step where that is more; for an output its largest value.
    """
    if name.startswith("gradient"):
        return largest_gradient
    return max(_largest(value), RATE * largest_gradient if name.startswith("weight") else 0.0)


def _largest(value: torch.Tensor) -> float:
    return float(_wide(value).abs().max()) if value.numel() else 0.0


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.nan_to_num().to(torch.complex128 if value.is_complex() else torch.float64)


def difference(have: torch.Tensor, want: torch.Tensor, scale: float = 1.0) -> float:
    """Largest difference over the scale; 0 for the same bits, infinity for another form or a NaN."""
    if have.shape != want.shape or have.dtype != want.dtype:
        return float("inf")
    if torch.equal(have, want) or (torch.equal(have.nan_to_num(), want.nan_to_num()) and _same_nans(have, want)):
        return 0.0
    if not (want.is_floating_point() or want.is_complex()) or not _same_nans(have, want):
        return float("inf")
    return float((_wide(have) - _wide(want)).abs().max()) / max(scale, 1e-30)


def _same_nans(have: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.equal(have.isnan(), want.isnan())


def _names(model: nn.Module, split: nn.Module) -> Verdict:
    """state_dict has the same names in the same order and the same values; so have the parameters."""
    want, have = model.state_dict(), split.state_dict()
    if list(want) != list(have):
        return Verdict("DIFFERS", f"state_dict: {sorted(set(want) ^ set(have))[:3] or 'another order'}")
    if [name for name, _ in model.named_parameters()] != [name for name, _ in split.named_parameters()]:
        return Verdict("DIFFERS", "named_parameters")
    changed = [name for name in want if difference(have[name].cpu(), want[name]) > 0]
    return Verdict("DIFFERS", f"values of {changed[:3]}") if changed else Verdict("equal")


def _class(model: nn.Module, split: nn.Module) -> Verdict:
    kept = isinstance(split, type(model)) and type(split).__qualname__ == type(model).__qualname__
    return Verdict("equal") if kept else Verdict("DIFFERS", type(split).__qualname__)


def _fallen(error: Exception) -> Verdict:
    """Refused where the error is one of ours that says what to do; a crash otherwise."""
    return Verdict("refused" if isinstance(error, AutosplitError) else "crashed", _said(error))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
