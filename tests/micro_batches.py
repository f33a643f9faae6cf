"""The truth about micro-batches, by numbers: a program run on a batch, and on its parts, merged as `Samples` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autosplit.capture import Frontend
from autosplit.program import Program
from autosplit.samples import Merge, Samples, follow_samples

SMALL, LARGE = 2, 4


def resized(inputs: Any, batch: int, dim: int = 0) -> Any:
    """The inputs at another batch, which is ``dim`` of the first tensor and of all whose size there is the same.

    Samples are repeated in turns, whole numbers and masks so stay legal; numbers get noise, so that samples differ.
    """
    first = next(t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.dim() > dim)
    samples = first.shape[dim]
    generator = torch.Generator().manual_seed(batch)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() <= dim or tensor.shape[dim] != samples:
            return tensor
        made = tensor.index_select(dim, torch.arange(batch) % samples).contiguous()
        if made.is_floating_point():
            made = made + 0.1 * torch.randn(made.shape, generator=generator, dtype=made.dtype)
        return made.requires_grad_(tensor.requires_grad) if made.is_floating_point() else made

    return pytree.tree_map_only(torch.Tensor, change, inputs)


def capture(model: nn.Module, inputs: Any, mode: str) -> Program:
    """The program of one call; ``inputs`` are keyword arguments, or a tuple of positional ones."""
    torch._dynamo.reset()
    args, kwargs = _arguments(inputs)
    return Frontend(model, type(model)).capture(args, kwargs, mode)


def programs(model: nn.Module, inputs: Any, mode: str = "infer", dim: int = 0) -> tuple[Program, Program]:
    """The programs at the two batches."""
    return capture(model, resized(inputs, SMALL, dim), mode), capture(model, resized(inputs, LARGE, dim), mode)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def cut(inputs: Any, batch: int, parts: int, dim: int = 0) -> list[Any]:
    """The inputs in equal parts."""
    size = batch // parts

    def part(tensor: torch.Tensor, number: int) -> torch.Tensor:
        if tensor.dim() <= dim or tensor.shape[dim] != batch:
            return tensor
        return tensor.narrow(dim, number * size, size)

    return [pytree.tree_map_only(torch.Tensor, lambda t, n=n: part(t, n), inputs) for n in range(parts)]


@dataclass
class Ran:
    """One call: its program, what each of its results was, and every node's value by name."""

    program: Program
    results: list[Any]
    values: dict[str, Any]


def call(model: nn.Module, parts: Sequence[Any], mode: str) -> list[Ran]:
    """Run the model's program on data, once for each of the inputs."""
    torch._dynamo.reset()
    ran: list[Ran] = []

    def compile_program(program: Program) -> Any:
        def run(given: Sequence[Any], *_: Any) -> Sequence[Any]:
            values = fx.Interpreter(program.graph_module, garbage_collect_values=False)
            results = values.run(*given)
            ran.append(Ran(program, list(results), {n: values.env.get(node) for node, n in program.names.items()}))
            return results

        return run

    frontend = Frontend(model, type(model), compile_program)
    model.train(mode == "train")
    with torch.set_grad_enabled(mode == "train"):
        for part in parts:
            args, kwargs = _arguments(part)
            frontend(*args, **kwargs)
    return ran


def compared(model: nn.Module, inputs: Any, mode: str = "infer", dim: int = 0) -> tuple[Samples, list[float | None]]:
    """The samples followed, and how far each result, merged from two halves, is from that of the whole."""
    whole = resized(inputs, LARGE, dim)
    small, large = programs(model, inputs, mode, dim)
    samples = follow_samples(small, large)
    (one,) = call(model, [whole], mode)
    halves = call(model, cut(whole, LARGE, LARGE // SMALL, dim), mode)
    together = merge_all(samples, halves)
    pairs = zip(together, one.results, strict=True)
    return samples, [None if a is None else gap(a, b) for a, b in pairs]


def merge_all(samples: Samples, parts: list[Ran]) -> list[Any]:
    """The results of the parts as `Samples` says that they are merged; None where it does not."""
    return [_merged(merge, place, parts) for place, merge in enumerate(samples.outputs)]


def _merged(merge: Merge | None, place: int, parts: list[Ran]) -> Any:
    values = [results[place] for results in (part.results for part in parts)]
    if merge is None:
        return None
    if merge.kind == "cat":
        return torch.cat(values, merge.dim)
    if merge.kind == "same":
        return values[0]
    if merge.kind == "sum":
        return sum(values)
    weights = [1.0] * len(values)
    if merge.counted:
        name, ignored = merge.counted
        weights = [float((part.values[name] != ignored).sum()) for part in parts]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, of the largest value (1 at least)."""
    assert one.shape == other.shape, (one.shape, other.shape)
    if not one.numel():
        return 0.0
    if not (one.is_floating_point() or one.is_complex()):
        return float((one != other).any())
    scale = max(1.0, float(other.abs().nan_to_num(0, 0, 0).max()))
    same = (one == other) | (one.isnan() & other.isnan())
    return float(torch.where(same, 0.0, (one - other).abs().nan_to_num(float("inf"))).max()) / scale
