"""The places where torch assumes more of a device than Python can supply. Each is inert for other devices.

One stays for good once the backend is registered (a storage made without it crashes the process);
the others are in place only while a cluster is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from autosplit.sim import sums
from autosplit.sim import world as _world
from autosplit.sim.adopt import new
from autosplit.sim.autocast import CASTS


def install_for_good() -> None:
    """Make ``torch.UntypedStorage(n, device="sim")`` work: PrivateUse1's C++ allocator slot is empty."""
    original: Any = torch.UntypedStorage.__new__

    def storage_new(cls: type, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None:
            return original(cls, *args, **kwargs)
        if torch.device(device).type != _world.NAME:
            return original(cls, *args, device=device, **kwargs)
        size = args[0] if args else kwargs.get("size", 0)
        if not isinstance(size, int):
            raise TypeError(f"a sim storage is made from a number of bytes, not from {type(size).__name__}")
        return new((size,), (1,), torch.uint8, _world.device_index(device)).untyped_storage()

    torch.UntypedStorage.__new__ = storage_new  # type: ignore[method-assign]  # the patch


@contextmanager
def while_open() -> Iterator[None]:
    """The patches that hold while a cluster is open."""
    run_backward = _single_threaded(torch.autograd.graph._engine_run_backward)
    with (
        _replaced(torch.autograd.graph, "_engine_run_backward", run_backward),
        _replaced(torch.autograd, "_engine_run_backward", run_backward),
        CASTS.forgetting(),
        _replaced(torch.utils, "swap_tensors", _swapping(torch.utils.swap_tensors)),
        _replaced(torch.nn.Module, "_apply", _applying(torch.nn.Module._apply)),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _single_threaded(run_backward: Callable[..., Any]) -> Callable[..., Any]:
    """The Python device guard reports one device; without the engine's device threads any index works."""

    def engine(roots: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autograd.set_multithreading_enabled(False), sums.watched(roots):
            return run_backward(roots, *args, **kwargs)

    return engine


def _swapping(swap: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """``torch.utils.swap_tensors`` that also swaps a tensor which a weak reference or an old graph still holds."""

    def swap_tensors(t1: torch.Tensor, t2: torch.Tensor) -> None:
        if _world.NAME not in (t1.device.type, t2.device.type):
            swap(t1, t2)
            return
        _poison(t1)
        _poison(t2)
        t1.__class__, t2.__class__ = t2.__class__, t1.__class__
        t1.__dict__, t2.__dict__ = t2.__dict__, t1.__dict__
        torch._C._swap_tensor_impl(t1, t2)

    return swap_tensors


def _poison(tensor: torch.Tensor) -> None:
    """Let a later backward through a graph that holds ``tensor``'s present content say so, not lose the gradient."""
    held = tensor._use_count() > 1  # type: ignore[attr-defined]  # absent from torch's stubs
    if held and tensor.is_leaf and tensor.requires_grad:
        torch.autograd.graph.get_gradient_edge(tensor).node.register_prehook(_refuse_gradient)


def _refuse_gradient(grads: tuple[torch.Tensor, ...]) -> None:
    raise RuntimeError(
        "this graph was recorded before one of its parameters moved between devices (swap_tensors); "
        "move the module before the forward, or after the backward"
    )


def _applying(apply: Callable[..., Any]) -> Callable[..., Any]:
    """``nn.Module._apply`` that keeps the identity of a parameter which goes to, or comes from, a sim device.

    torch keeps it by ``param.data = moved``, which it refuses across these device types; it then makes
    new parameters, and optimizers and ties lose theirs.
    """

    def _apply(self: torch.nn.Module, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        flag = torch.__future__
        before = flag.get_swap_module_params_on_conversion()
        flag.set_swap_module_params_on_conversion(before or _crosses(self, fn))
        try:
            return apply(self, _landing(fn), recurse)
        finally:
            flag.set_swap_module_params_on_conversion(before)

    return _apply


def _crosses(module: torch.nn.Module, fn: Callable[[Any], Any]) -> bool:
    """Whether ``fn`` moves a parameter of ``module`` itself onto or off the sim devices."""
    on_sim = {p.device.type == _world.NAME for p in module._parameters.values() if p is not None}
    return bool(on_sim) and on_sim != {_lands_on(fn) == _world.NAME}


def _lands_on(fn: Callable[[Any], Any]) -> str | None:
    """Device type ``fn`` sends a CPU tensor to, tried on an empty one; None when it takes no such tensor."""
    try:
        return str(fn(torch.empty(0, device="cpu")).device.type)
    except Exception:  # fn is the caller's: whatever it raises, it raises again on the real tensors
        return None


def _landing(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``fn`` that also lands a meta tensor on a device without data, where there is nothing to copy."""

    def land(tensor: torch.Tensor) -> Any:
        try:
            return fn(tensor)
        except NotImplementedError:
            if not tensor.is_meta or _world.world().data:
                raise
            landed = fn(torch.empty(0, dtype=tensor.dtype, device="cpu"))
            if landed.device.type != _world.NAME:
                raise
            return torch.empty_like(tensor, device=landed.device, dtype=landed.dtype)

    return land
