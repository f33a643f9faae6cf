"""Regions that a graph opens and closes by itself: autocast, functorch levels, a ban of saved-tensor hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import fx

from autosplit.program.names import operator_name

_OPENS, _CLOSES = "increment_nesting", "decrement_nesting"


def functorch_regions(nodes: Sequence[fx.Node]) -> Iterator[list[fx.Node]]:
    """The nodes of each vmap, grad or jvp, inner ones included: the tensors in between make sense only there."""
    depth, inside = 0, list[fx.Node]()
    for node in nodes:
        name = operator_name(node)
        depth += name.endswith(_OPENS)
        if depth:
            inside.append(node)
        if name.endswith(_CLOSES):
            depth -= 1
            if not depth:
                yield inside
                inside = []


def bare(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor inside the wrappers of vmap and grad: only it has memory."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


@contextmanager
def closed_on_error(device_type: str = "cpu") -> Iterator[None]:
    """What a graph opened and did not live to close is closed: it would hold for all that the process does after.

    A graph has marks where the model had ``with``: nothing unwinds them. Only errors cost anything here.
    """
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    ban = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    grad, nesting = torch.is_grad_enabled(), _autocast_nesting()
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    try:
        yield
    except BaseException:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        if ban is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(ban)
        torch.set_grad_enabled(grad)
        while _autocast_nesting() > nesting:
            torch.autocast_decrement_nesting()
        torch.set_autocast_enabled(device_type, enabled)
        torch.set_autocast_dtype(device_type, dtype)
        raise


def _autocast_nesting() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()
