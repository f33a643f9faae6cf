"""Verify: the split model computes what the unsplit one does, shown on one call of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autosplit.errors import VerifyError


def verify(
    model: nn.Module,
    split: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Run both models on the same inputs and random numbers, and compare outputs and buffers.

    In training mode the sum of the floating outputs is also run backward, and the gradients are compared. Gradients
    and buffers of both models are restored after.

    Args:
        model: the unsplit model, another object than ``split`` (a deepcopy made before partition).
        split: what partition returned.
        args: positional inputs, on any device.
        kwargs: keyword inputs.
        rtol: relative tolerance; 0 with atol 0 means bit for bit.
        atol: absolute tolerance.

    Raises:
        VerifyError: names the first output, gradient or buffer that differs, and by how much.
    """
    want = _observe(model, args, kwargs or {})
    have = _observe(split, args, kwargs or {})
    if list(want) != list(have):
        odd = sorted(set(want) ^ set(have))[:3]
        raise VerifyError(f"the split model returns another structure: {', '.join(odd) or 'another order'} differ")
    for name, expected in want.items():
        _compare(name, expected, have[name], rtol, atol)


def _observe(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Everything to compare, on the host, by name."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    one_device = len({p.device for p in model.parameters()}) == 1
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device) if one_device else t, (args, kwargs))
    with _restored(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = model(*args, **kwargs)
        seen = {f"output{pytree.keystr(path)}": leaf for path, leaf in pytree.tree_leaves_with_path(outputs)}
        if model.training:
            sums = [leaf.sum().cpu() for leaf in seen.values() if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
            if sums:
                torch.stack([total.double() for total in sums]).sum().backward()
            seen |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        seen |= {f"buffer {name}": buffer for name, buffer in model.named_buffers()}
        return {name: v.detach().cpu().clone() if isinstance(v, torch.Tensor) else v for name, v in seen.items()}


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Gradients are unset inside; they and the buffers are as before after."""
    gradients = {p: p.grad for p in model.parameters()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    for parameter in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)


def _compare(name: str, want: Any, have: Any, rtol: float, atol: float) -> None:
    if not isinstance(want, torch.Tensor) or not isinstance(have, torch.Tensor):
        if type(want) is not type(have):
            raise VerifyError(f"{name}: expected {type(want).__name__}, the split model gives {type(have).__name__}")
        return
    if want.shape != have.shape or want.dtype != have.dtype:
        raise VerifyError(
            f"{name}: expected {tuple(want.shape)} {want.dtype}, the split model gives {tuple(have.shape)} {have.dtype}"
        )
    if not torch.allclose(have, want, rtol=rtol, atol=atol, equal_nan=True):
        off = (have.double() - want.double()).abs().max().item() if not want.is_complex() else float("nan")
        raise VerifyError(
            f"{name}: the split model differs by up to {off:.3g} (allowed: rtol={rtol:g}, atol={atol:g}); "
            "gradients of a value read on several devices are summed in another order, and dropout on several GPUs "
            "draws per device: allow a tolerance such as rtol=1e-5, or compare in eval() mode"
        )
