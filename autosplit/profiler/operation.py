"""One operation of an emitted graph: what it is, so that its equals are measured once, and how it is run alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autosplit.profiler.materials import form_bytes, make
from autosplit.program import Spec

# Code that is the same for everybody who has this torch; other namespaces of operators are the user's own.
_SHARED = ("torch", "autosplit", "_operator", "math", "builtins")
_OPERATORS = "torch._ops."
_SHARED_OPERATORS = ("aten", "prims", "prim", "higher_order")


@dataclass(frozen=True)
class Operation:
    """A call of an operator on arguments of one form.

    Attributes:
        key: equal for calls that cost the same.
        is_shared: the key means the same in every process, so a measurement may be kept.
        run: takes the arguments.
        form: (args, kwargs) with a Spec in the place of each tensor.
        writes: it writes an argument in place.
        runs_alone: arguments can be made for it; not so within a vmap, whose tensors make sense only there.
    """

    key: str
    is_shared: bool
    run: Callable[..., Any]
    form: tuple[tuple[Any, ...], dict[str, Any]]
    writes: bool
    runs_alone: bool = True

    @property
    def input_bytes(self) -> int:
        """Bytes of its arguments."""
        return form_bytes(self.form)

    def call(self, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """Run it on (args, kwargs)."""
        args, kwargs = arguments
        return self.run(*args, **kwargs)

    def arguments(self, device: torch.device, *, ones: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments to run it on, newly made."""
        made: tuple[tuple[Any, ...], dict[str, Any]] = make(self.form, device, ones=ones, written=self.writes)
        return made


def operation_of(node: fx.Node, forms: Mapping[fx.Node, Any], root: torch.nn.Module, *, writes: bool) -> Operation:
    """The operation of a node of an emitted graph.

    Args:
        node: a call of a function or of a method.
        forms: the form of every node that it reads.
        root: the graph module, for the graphs that it holds.
        writes: it writes an argument in place.
    """
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _held(root, n) if n.op == "get_attr" else forms[n])
    settings = f"grad={torch.is_grad_enabled()} autocast={_autocast()} {_kernels()}"
    target: Any = node.target
    if node.op == "call_method":
        key, is_shared, call = f".{target}", True, _method(target)
    else:
        name = getattr(target, "__qualname__", None) or str(target)
        module = getattr(target, "__module__", None) or type(target).__module__
        is_shared = _is_torch(module) and "<locals>" not in name
        key, call = f"{module}.{name}" + ("" if is_shared else f"@{id(target)}"), target
    return Operation(f"{key} {_text((args, kwargs))} {settings}", is_shared, call, (args, dict(kwargs)), writes)


def _is_torch(module: str) -> bool:
    if module.startswith(_OPERATORS):
        return module.removeprefix(_OPERATORS) in _SHARED_OPERATORS
    return module.partition(".")[0] in _SHARED and not module.startswith("torch._library")


def _kernels() -> str:
    """What decides which kernel torch takes; read where torch.backends keeps it, as its own words may warn."""
    flags = (
        torch._C._get_mkldnn_enabled(),
        torch._C._get_cudnn_allow_tf32(),
        torch._C._get_cudnn_benchmark(),
        torch.are_deterministic_algorithms_enabled(),
    )
    return f"{torch.get_float32_matmul_precision()}{''.join(str(int(flag)) for flag in flags)}"


def _held(root: torch.nn.Module, node: fx.Node) -> Any:
    held: Any = root
    for part in str(node.target).split("."):
        held = getattr(held, part)
    return Spec.of(held) if isinstance(held, torch.Tensor) else held


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def _text(value: Any) -> str:
    """The value as text that is equal for what costs the same."""
    if isinstance(value, Spec):
        grad = "g" if value.requires_grad else ""
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype}{list(value.shape)}{list(value.stride)}{grad}".replace(" ", "")
    if isinstance(value, (tuple, list)):
        return f"({','.join(map(_text, value))})"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}={_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, fx.GraphModule):
        return f"graph-{hashlib.sha256(value.code.encode()).hexdigest()}"
    if isinstance(value, torch.device):
        return "device"
    return repr(value)


def _autocast() -> str:
    """What autocast casts to, whatever the device: one graph is on one kind."""
    kinds = ("cpu", torch._C._get_privateuse1_backend_name(), "cuda")
    return ",".join(str(torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind))
