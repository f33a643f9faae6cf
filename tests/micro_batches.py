"""The truth about micro-batches, by numbers: a program run on a batch, and on its parts, merged as `Samples` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autosplit.capture import Frontend
from autosplit.pipeline import Merge, Samples, follow_samples
from autosplit.program import Program

SMALL, LARGE = 2, 4


def resized(inputs: Any, batch: int, dim: int = 0) -> Any:
    """The inputs at another batch, which is ``dim`` of the first tensor and of all whose size there is the same.

    Samples are repeated in turns, whole numbers and masks so stay legal; numbers get noise, so that samples differ.
    """
    first = next(t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.dim())
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
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    return Frontend(model, type(model)).capture(args, kwargs, mode)


def follow(
    model: nn.Module, inputs: Any, mode: str = "infer", *, dim: int = 0, capture_only: bool = False
) -> tuple[Program, Program, Samples | None, Any]:
    """Programs at two batches, the samples followed through them, and the large inputs."""
    torch._dynamo.reset()
    large_inputs = resized(inputs, LARGE, dim)
    small = capture(model, resized(inputs, SMALL, dim), mode)
    torch._dynamo.reset()
    large = capture(model, large_inputs, mode)
    return small, large, None if capture_only else follow_samples(small, large), large_inputs


def cut(inputs: Any, batch: int, parts: int, dim: int = 0) -> list[Any]:
    """The inputs in equal parts."""
    size = batch // parts

    def part(tensor: torch.Tensor, number: int) -> torch.Tensor:
        if tensor.dim() <= dim or tensor.shape[dim] != batch:
            return tensor
        return tensor.narrow(dim, number * size, size)

    return [pytree.tree_map_only(torch.Tensor, lambda t, n=n: part(t, n), inputs) for n in range(parts)]


class _Values(fx.Interpreter):
    """Runs a program's graph on data, and keeps every value."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module, garbage_collect_values=False)
        self.extra_traceback = False


def run(program: Program, given: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The program's results on data, and the value of every node by name."""
    values = _Values(program)
    with torch.no_grad():
        results = values.run(*given)
    return list(results), {name: values.env.get(node) for node, name in program.names.items()}


def merged(samples: Samples, parts: list[tuple[list[Any], dict[str, Any]]]) -> list[Any]:
    """The results of the parts, merged."""
    return [_merged(merge, place, parts) for place, merge in enumerate(samples.outputs)]


def _merged(merge: Merge | None, place: int, parts: list[tuple[list[Any], dict[str, Any]]]) -> Any:
    values = [results[place] for results, _ in parts]
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
        weights = [float((nodes[name] != ignored).sum()) for _, nodes in parts]
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


def placeholders(model: nn.Module, program: Program, inputs: Any) -> list[Any]:
    """What a program's placeholders get for these inputs."""
    raise NotImplementedError
