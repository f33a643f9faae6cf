"""A split model against the unsplit one: the same calls on both, and what they left, value for value."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import autosplit
from autosplit import sim
from autosplit.errors import AutosplitError
from zoo.entry import Entry, Inputs, tensors

STEPS = 3
CLOSE = 1e-6
"""Relative to the largest value of a tensor: what a sum in another order may change in single precision."""

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


def compare(entry: Entry, checks: tuple[str, ...] = CHECKS, steps: int = STEPS, devices: int = 3) -> Comparison:
    """Split a copy of the model over virtual devices and compare it with another on a single one."""
    torch.manual_seed(0)
    model, inputs = entry.build()
    calls = _calls(entry, inputs, steps)
    calls = {name: call for name, call in calls.items() if name in checks}
    with sim.cluster([ROOM]):
        unsplit = copy.deepcopy(model).to("sim:0")
        want = {name: observe(call, unsplit) for name, call in calls.items()}
        del unsplit
    row = Comparison(entry)
    with sim.cluster([ROOM] * devices) as cluster:
        try:
            split = _partition(row, model, cluster.devices, inputs)
        except Exception as error:
            row.verdicts["forward"] = _fallen(error)
            return row
        row.verdicts["names"] = _names(model, split)
        row.verdicts["class"] = _class(model, split)
        row.verdicts |= {name: judge(want[name], observe(call, split)) for name, call in calls.items()}
        del split
    row.verdicts = {name: row.verdicts[name] for name in CHECKS if name in row.verdicts}
    return row


def _partition(row: Comparison, model: nn.Module, devices: Any, inputs: Inputs) -> nn.Module:
    began = time.perf_counter()
    split = autosplit.partition(
        copy.deepcopy(model).train(), devices, kwargs=on_device(inputs), strategy="split", optimizer="sgd"
    )
    row.plan_seconds = time.perf_counter() - began
    plan = split.plan
    row.rung = getattr(plan, "capture", "graph")
    row.nodes, row.used = len(plan.placement), len(set(plan.placement.values()))
    return split


def _calls(entry: Entry, inputs: Inputs, steps: int) -> dict[str, Callable[[nn.Module], Seen]]:
    """What is done with each of the two models, in this order."""
    other = entry.other()
    calls: dict[str, Callable[[nn.Module], Seen]] = {
        "forward": lambda model: forward(model.train(), inputs),
        "steps": lambda model: train(entry, model, inputs, steps),
        "other": lambda model: train(entry, model, other, 1),
        "eval": lambda model: forward(model.eval(), inputs),
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
    try:
        with contextlib.redirect_stdout(said):
            seen = call(model)
    except Exception as error:
        return Seen(error=error)
    return dataclasses.replace(seen, values=(*seen.values, said.getvalue()))


def forward(model: nn.Module, inputs: Inputs) -> Seen:
    """The outputs, their classes and places; gradients are on in training."""
    with torch.set_grad_enabled(model.training):
        out = model(**on_device(inputs))
    return _outputs(out)


def train(entry: Entry, model: nn.Module, inputs: Inputs, steps: int) -> Seen:
    """The first step's outputs, and the weights after some steps."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    seen = Seen()
    for step in range(steps):
        out = model(**on_device(inputs))
        seen = _outputs(out) if step == 0 else seen
        entry.loss(out).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dataclasses.replace(seen, tensors=seen.tensors | dict(_weights(model)))


def generate(model: Any, prompt: Inputs, **options: Any) -> Seen:
    """Five tokens."""
    out = model.eval().generate(**on_device(prompt), max_new_tokens=5, min_new_tokens=5, **options)
    return Seen({"tokens": out.cpu()})


def _outputs(out: Any) -> Seen:
    leaves = tensors(out)
    where = tuple(leaf.device.type for leaf in leaves)
    kept = {f"out {i}": leaf.detach().cpu().clone() for i, leaf in enumerate(leaves)}
    return Seen(kept, (f"{type(out).__module__}.{type(out).__qualname__}", where))


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        yield name, weight.detach().cpu().clone()


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
    far = {name: difference(have.tensors[name], value) for name, value in want.tensors.items()}
    name, worst = max(far.items(), key=lambda item: item[1], default=("", 0.0))
    if worst == 0:
        return Verdict("equal")
    return Verdict("close" if worst <= CLOSE else "DIFFERS", f"{name} by {worst:.1e}")


def difference(have: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference relative to the largest value; 0 for the same bits, infinity for another form or a NaN."""
    if have.shape != want.shape or have.dtype != want.dtype:
        return float("inf")
    if torch.equal(have, want) or (torch.equal(have.nan_to_num(), want.nan_to_num()) and _same_nans(have, want)):
        return 0.0
    if not (want.is_floating_point() or want.is_complex()) or not _same_nans(have, want):
        return float("inf")
    wide = torch.complex128 if want.is_complex() else torch.float64
    apart = (have.nan_to_num().to(wide) - want.nan_to_num().to(wide)).abs().max()
    return float(apart / want.nan_to_num().abs().max().double().clamp(min=1e-30))


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
