"""The facts about each node, from one run of the graph on fake tensors: no kernel runs, no memory is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from autosplit.graph import Mode
from autosplit.program.accelerator import AcceleratorForms
from autosplit.program.facts import Facts, Input, Leaf, tensor_leaves
from autosplit.program.fakes import fake_mode, most

_RUNNING_STATS = ("running_mean", "running_var")  # written by batch_norm and instance_norm; their schema hides it


class _Effects(TorchDispatchMode):
    """Notes, below autograd, which storages are written and allocated, and the arithmetic done."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.written: set[int] = set()
        self.allocated: dict[int, int] = {}
        self.flops = 0
        self.moved_bytes = 0
        self.alive: list[Any] = []  # a freed storage's address could come back as another's

    def clear(self) -> None:
        self.written, self.allocated, self.flops, self.moved_bytes = set(), {}, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = tensor_leaves(result)
        self.alive += outputs
        if not hasattr(func, "_schema"):
            return result
        known = {_storage(t) for t in tensor_leaves((args, kwargs))}
        for tensor in outputs:
            if _storage(tensor) not in known:
                self.allocated[_storage(tensor)] = _storage_bytes(tensor)
        self.written |= {_storage(t) for t in _written(func, args, kwargs)}
        self._count(func, args, kwargs, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if func.is_view:
            return
        self.moved_bytes += sum(_size_bytes(t) for t in tensor_leaves((args, kwargs, result)))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += most(formula(*args, **kwargs, out_val=result))


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    schema = func._schema
    hidden = "batch_norm" in schema.name or "instance_norm" in schema.name
    for position, argument in enumerate(schema.arguments):
        value = kwargs.get(argument.name, args[position] if position < len(args) else None)
        declared = argument.alias_info is not None and argument.alias_info.is_write
        if declared or (hidden and argument.name in _RUNNING_STATS):
            yield from tensor_leaves(value)


class _Analysis(fx.Interpreter):
    """Runs the graph on fakes, one node at a time, and fills in Facts."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.facts: dict[fx.Node, Facts] = {}
        self.effects = _Effects()
        self.saved: dict[int, int] = {}
        self.ids: dict[int, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.effects.clear()
        self.saved = {}
        differentiable = [a for a in n.all_input_nodes if any(map(_requires_grad, tensor_leaves(self.env[a])))]
        with self.effects, torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved):
            result = super().run_node(n)
        self.facts[n] = self._facts(result, frozenset(differentiable))
        return result

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.saved[_storage(tensor)] = _storage_bytes(tensor)
        self.effects.alive.append(tensor)
        return tensor

    def _facts(self, result: Any, differentiable: frozenset[fx.Node]) -> Facts:
        effects = self.effects
        tensors = tensor_leaves(result)
        returned = {_storage(t) for t in tensors}
        hidden = {s: size for s, size in self.saved.items() if s in effects.allocated and s not in returned}
        gone = [size for s, size in effects.allocated.items() if s not in returned and s not in hidden]
        return Facts(
            leaves=tuple(self._leaf(t) for t in tensors),
            is_tensor=isinstance(result, torch.Tensor),
            differentiable=differentiable,
            writes=frozenset(map(self._id, effects.written)),
            saved=frozenset(map(self._id, self.saved)),
            hidden={self._id(s): size for s, size in hidden.items()},
            flops=effects.flops,
            moved_bytes=effects.moved_bytes,
            workspace_bytes=sum(gone),
        )

    def _leaf(self, tensor: torch.Tensor) -> Leaf:
        return Leaf(self._id(_storage(tensor)), _size_bytes(tensor), _storage_bytes(tensor), _requires_grad(tensor))

    def _id(self, storage: int) -> int:
        return self.ids.setdefault(storage, len(self.ids))


def analyse(graph_module: fx.GraphModule, inputs: Sequence[Input], mode: Mode) -> dict[fx.Node, Facts]:
    """Run the graph once on fake tensors on the logical CPU, gradients on in "train", and note what each node does."""
    analysis = _Analysis(graph_module)
    with fake_mode(), AcceleratorForms(), torch.set_grad_enabled(mode == "train"):
        analysis.run(*[source.spec.empty() if source.spec else source.value for source in inputs])
    return analysis.facts


def _storage(tensor: torch.Tensor) -> int:
    return int(_plain(tensor).untyped_storage()._cdata)


def _storage_bytes(tensor: torch.Tensor) -> int:
    return most(_plain(tensor).untyped_storage().nbytes())


def _size_bytes(tensor: torch.Tensor) -> int:
    return most(_plain(tensor).numel()) * tensor.element_size()


def _requires_grad(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad or _plain(tensor).requires_grad


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor inside the wrappers of vmap and of torch.func, which have no storage."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
