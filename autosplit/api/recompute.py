"""A model whose repeated blocks are checkpointed: the same forms without data, so that it can be planned."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_METHODS = ("activation_checkpointing_enable", "gradient_checkpointing_enable", "enable_gradient_checkpointing")
"""How transformers, its earlier versions and diffusers name it."""


@dataclass(frozen=True)
class Recomputing:
    """A copy of a model without data that recomputes in its backward, and what makes the model so."""

    model: nn.Module
    write: str
    how: str


def recomputing(model: nn.Module) -> Iterator[Recomputing]:
    """Copies of ``model`` that checkpoint their repeated blocks; first as the model itself offers it.

    Source: Chen et al., Training deep nets with sublinear memory cost, 2016.
    """
    blocks = repeated_blocks(model)
    method = next((name for name in _METHODS if callable(getattr(model, name, None))), None)
    changed = _changed(model, methodcaller(method)) if method is not None else None
    if changed is not None:
        yield Recomputing(changed, f"model.{method}()", "the model's own checkpointing of its blocks")
    changed = _changed(model, partial(_wrap, blocks=blocks)) if blocks else None
    if changed is not None:
        how = "run the forward of each through torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        yield Recomputing(changed, f"recompute {_words(blocks)}", how)


def repeated_blocks(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names of the blocks by path of the list that holds them: its members of the class that most of them have.

    A block has submodules with weights (one operator has nothing to recompute), and is in no other block.
    """
    blocks: dict[str, tuple[str, ...]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or _is_inside(path, blocks):
            continue
        kinds = Counter(type(child) for child in module if _is_block(child))
        kind, count = kinds.most_common(1)[0] if kinds else (None, 0)
        if count > 1:
            blocks[path] = tuple(name for name, child in module.named_children() if type(child) is kind)
    return blocks


def _is_block(module: nn.Module) -> bool:
    below = [child for child in module.modules() if child is not module and not isinstance(child, nn.ModuleList)]
    return bool(below) and next(module.parameters(), None) is not None and "forward" not in module.__dict__


def _is_inside(path: str, blocks: dict[str, tuple[str, ...]]) -> bool:
    return any(f"{path}.".startswith(f"{holder}.{name}.".lstrip(".")) for holder in blocks for name in blocks[holder])


def _words(blocks: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{path}.*".lstrip(".") for path in blocks)


def _changed(model: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module | None:
    """A changed copy without data; None when the model cannot be copied or changed so."""
    weights = {id(p): nn.Parameter(_form(p), requires_grad=p.requires_grad) for p in model.parameters()}
    memo: dict[int, Any] = {**weights, **{id(buffer): _form(buffer) for buffer in model.buffers()}}
    try:
        copied = copy.deepcopy(model, memo)
        change(copied)
    except Exception:  # the user's own __deepcopy__, or a method of the name that means something else
        return None
    return copied


def _form(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _wrap(model: nn.Module, blocks: dict[str, tuple[str, ...]]) -> None:
    wrapped: dict[type[nn.Module], type[nn.Module]] = {}
    for path, names in blocks.items():
        for name in names:
            block = model.get_submodule(f"{path}.{name}".lstrip("."))
            kind = type(block)
            if kind not in wrapped:
                wrapped[kind] = type(kind.__name__, (kind,), {"forward": _forward(kind), "__module__": kind.__module__})
            block.__class__ = wrapped[kind]


def _forward(kind: type[nn.Module]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(kind.forward, self, **kwargs), *args, use_reentrant=False)

    return forward
