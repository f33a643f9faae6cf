"""What is known of a captured graph's inputs and nodes: plain records, and what makes them from tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx
from torch.utils import _pytree as pytree

_NO_TENSORS = (int, float, bool, str, type(None), torch.dtype, torch.device)

InputKind = Literal["parameter", "buffer", "input", "state", "constant", "size"]


@dataclass(frozen=True)
class Spec:
    """Form of a tensor without its data."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = False

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Spec:
        """The form of ``tensor``, symbolic sizes replaced by their current values."""
        shape, stride = tuple(map(_hint, tensor.shape)), tuple(map(_hint, tensor.stride()))
        return cls(shape, stride, tensor.dtype, tensor.requires_grad)

    def empty(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """An uninitialised tensor of this form; fake when a FakeTensorMode is active."""
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        return tensor.requires_grad_() if self.requires_grad else tensor


@dataclass(frozen=True)
class Input:
    """One placeholder of the graph: what it is, its name (as in state_dict for weights) and its form.

    "state" is held by an object that the caller passes and forward writes to, such as a KV cache; ``value`` is the
    number that a "size" input had at capture.
    """

    kind: InputKind
    name: str
    spec: Spec | None = None
    value: int | float | bool | None = None

    @property
    def is_weight(self) -> bool:
        """Parameters and buffers of the model."""
        return self.kind in ("parameter", "buffer")

    @property
    def moves(self) -> bool:
        """A tensor of the caller: it may be on any device when a call comes."""
        return self.kind in ("input", "state", "constant")


@dataclass(frozen=True)
class Leaf:
    """One tensor in a node's result: its storage, and the bytes of the tensor and of that storage."""

    storage: int
    size_bytes: int
    storage_bytes: int
    requires_grad: bool


@dataclass
class Facts:
    """What one node does.

    Attributes:
        leaves: the tensors it returns.
        is_tensor: the result is one tensor, not a container of tensors.
        differentiable: the arguments that carry a gradient when it reads them; a write may have made them so.
        writes: storages it writes in place.
        saved: storages its backward needs.
        hidden: bytes of saved storages that no node returns (a dropout mask, a layer norm's statistics).
        operators: how many operators it stands for; more than one only in a checkpoint.
        flops, moved_bytes: arithmetic and memory traffic of the forward, for a roofline.
        flops_dtype: format of the factors (of the last product, where there are several), as torch names it; "tf32"
            where torch.backends allows that for float32.
        workspace_bytes: storages it allocates that do not outlive it.
        form: its result, with a Spec in the place of each tensor.
    """

    leaves: tuple[Leaf, ...] = ()
    is_tensor: bool = False
    differentiable: frozenset[fx.Node] = frozenset()
    writes: frozenset[int] = frozenset()
    saved: frozenset[int] = frozenset()
    hidden: dict[int, int] = field(default_factory=dict)
    operators: int = 1
    flops: int = 0
    flops_dtype: str = "float32"
    moved_bytes: int = 0
    workspace_bytes: int = 0
    form: Any = None


def form_of(value: Any) -> Any:
    """``value`` with a Spec in the place of each tensor."""
    if isinstance(value, torch.Tensor):
        return Spec.of(value)
    return pytree.tree_map_only(torch.Tensor, Spec.of, value)


def tensor_leaves(value: Any) -> list[torch.Tensor]:
    """The tensors in a nested value."""
    found: list[torch.Tensor] = []
    _add_leaves(value, found)
    return found


def _add_leaves(value: Any, found: list[torch.Tensor]) -> None:
    """The commonest containers by hand: pytree takes ten times as long."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif kind in (tuple, list):
        for item in value:
            _add_leaves(item, found)
    elif kind is dict:
        for item in value.values():
            _add_leaves(item, found)
    elif kind not in _NO_TENSORS:
        found += [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _hint(size: Any) -> int:
    """The current value of a size; 1 where only data can tell."""
    hint = size.node.hint if isinstance(size, torch.SymInt) else size
    return 1 if hint is None else int(hint)
