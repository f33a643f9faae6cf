"""Predict: run the emitted program on fake tensors, book every storage on its device, and see what it peaks at.

What is predicted is what runs: the same graph, the same autograd, the same optimizer, on tensors without data. Each
device's allocations go through the rules of the caching allocator, so what it reserves is predicted too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from autosplit.allocator import AllocationError, Block, CachingAllocator
from autosplit.device import HOST, Cluster, Device
from autosplit.errors import PlanError
from autosplit.graph import Mode
from autosplit.program import AcceleratorForms, Input, Spec, call_on_fakes, closed_on_error, tensor_leaves

OptimizerFactory = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

_TRAINING_STEPS = 2  # the second has the optimizer's state from the start
_COPIES = ("aten::_to_copy", "aten::copy_")
_INDEXING = frozenset(
    (
        torch.ops.aten.index,
        torch.ops.aten._unsafe_index,
        torch.ops.aten.index_put,
        torch.ops.aten.index_put_,
        torch.ops.aten._unsafe_index_put,
        torch.ops.aten._index_put_impl_,
    )
)


def _safe_softmax(scores: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """As torch composes it: rows that are masked as a whole become 0, in place."""
    out = torch.softmax(scores, dim, dtype=dtype)
    return out.masked_fill_(scores.eq(float("-inf")).all(dim, keepdim=True), 0.0)


_MADE_OF_OTHERS: dict[Any, Callable[..., Any]] = {  # no device has a kernel of its own: their intermediates count
    torch.ops.aten._safe_softmax.default: _safe_softmax,
}


@dataclass(frozen=True)
class Footprint:
    """Memory of one device over one step.

    Attributes:
        peak_bytes: most bytes allocated at once, each allocation rounded as the allocator rounds.
        reserved_bytes: most bytes the allocator takes from the device.
        weight_bytes: parameters and buffers.
    """

    peak_bytes: int
    reserved_bytes: int
    weight_bytes: int


def fake_devices(cluster: Cluster) -> dict[str, torch.device]:
    """The devices to emit for when the program is to run on fakes: cpu:0, cpu:1, ...; the host is the CPU itself."""
    return {name: torch.device("cpu", i) for i, name in enumerate(cluster.names)} | {HOST: torch.device("cpu")}


def predict_memory(
    run: Callable[..., Sequence[Any]],
    inputs: Sequence[Input],
    weights: Mapping[str, tuple[Spec, str]],
    *,
    cluster: Cluster,
    io_device: str,
    arrivals: Mapping[int, str],
    mode: Mode,
    optimizer: OptimizerFactory | None,
) -> dict[str, Footprint]:
    """Peak memory of each device over one forward pass, or over a steady training step.

    Args:
        run: the emitted program, emitted for ``fake_devices(cluster)``.
        inputs: each placeholder.
        weights: form and home of every parameter and buffer of the model, in its order: the order in which they are
            placed and stepped decides how memory is fragmented.
        cluster: devices and their capacities.
        io_device: where the caller's inputs are.
        arrivals: device of the inputs, by place, that are elsewhere.
        mode: "infer" or "train".
        optimizer: makes the optimizer of one device's parameters; None trains without one.

    Raises:
        PlanError: an operation's tensors are on different devices.
    """
    devices = fake_devices(cluster)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with closed_on_error(), fakes, torch.set_grad_enabled(mode == "train"):
        tracker = _Tracker(cluster)
        forms = nullcontext() if all(device.kind == "cpu" for device in cluster.devices) else AcceleratorForms()
        with tracker, forms:
            given = {  # by place: two inputs may have the same name
                i: source.spec.empty(devices[arrivals.get(i, io_device)])
                for i, source in enumerate(inputs)
                if source.spec is not None and not source.is_weight
            }
            placed = {name: spec.empty(devices[home]) for name, (spec, home) in weights.items()}
            held = tracker.allocated_by(list(placed.values()))
            values = [
                placed[source.name] if source.is_weight else given.get(i, source.value)
                for i, source in enumerate(inputs)
            ]
            if mode == "train":
                _train(run, values, [weight for weight in placed.values() if weight.requires_grad], optimizer)
            else:
                run(*values)
    return {
        name: Footprint(allocator.peak_allocated_bytes, allocator.peak_reserved_bytes, held.get(name, 0))
        for name, allocator in tracker.allocators.items()
    }


def training_loss(outputs: Any) -> torch.Tensor | None:
    """The scalar that a training step is taken to descend.

    The first real scalar among the outputs that carries a gradient (a model that returns its loss); else the sum of
    all outputs that carry one, of complex ones the real parts; None when none does.
    """
    differentiable = [leaf for leaf in tensor_leaves(outputs) if leaf.requires_grad]
    for leaf in differentiable:
        if leaf.dim() == 0 and not leaf.is_complex():
            return leaf
    if not differentiable:
        return None
    total = _real_sum(differentiable[0])
    for leaf in differentiable[1:]:
        total = total + _real_sum(leaf).to(total.device)
    return total


def _real_sum(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.sum()
    return total.real if total.is_complex() else total  # autograd descends real numbers only


def _train(
    run: Callable[..., Any], values: list[Any], parameters: list[torch.Tensor], factory: OptimizerFactory | None
) -> None:
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for parameter in parameters:
        by_device.setdefault(parameter.device, []).append(parameter)
    optimizers = [factory(group) for group in by_device.values()] if factory else []
    for _ in range(_TRAINING_STEPS):
        outputs = run(*values)
        loss = training_loss(outputs)
        if loss is not None:
            torch.autograd.backward(loss)  # not loss.backward(): that leaves the accelerator forms off meanwhile
        for optimizer in optimizers:
            optimizer.step()
        del outputs, loss  # the caller drops a step's results before the next step
        for parameter in parameters:
            parameter.grad = None
        for tensor in tensor_leaves(values):
            if not tensor.is_leaf:
                tensor.detach_()  # the model wrote to an input: the next step brings a new batch, without its history


def measure_optimizer(factory: OptimizerFactory) -> tuple[float, float]:
    """Step an optimizer on one fake parameter and see what it allocates.

    Returns:
        Bytes that it keeps, and bytes that it takes while it steps, for each byte of parameters.
    """
    size_bytes = 64 * 2**20
    cluster = Cluster(devices=(Device(name="probe", kind="probe", memory_bytes=2**62),))
    with FakeTensorMode(), _Tracker(cluster) as tracker:
        parameter = torch.empty(size_bytes // 4, device="cpu:0", requires_grad=True)
        parameter.grad = torch.empty_like(parameter)
        before = tracker.allocators["probe"].allocated_bytes
        optimizer = factory([parameter])
        optimizer.step()
        state = tracker.allocators["probe"].allocated_bytes - before
        tracker.allocators["probe"].reset_peak()
        optimizer.step()
        step = tracker.allocators["probe"].peak_allocated_bytes - before - state
    return state / size_bytes, step / size_bytes


class _Tracker(TorchDispatchMode):
    """Books each storage on the allocator of its device, from the operation that makes it until it dies."""

    supports_higher_order_operators = True

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.allocators = {device.name: CachingAllocator(device.memory_bytes) for device in cluster.devices}
        self._names = dict(enumerate(cluster.names))
        self._live: dict[int, weakref.ref[Any]] = {}
        self._literals = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._literals:
            args, kwargs = self._landed(args, kwargs)
        if hasattr(func, "_schema") and func._schema.name not in _COPIES:
            _check_devices(func, tensor_leaves((_without_host_indices(func, args), kwargs)))
        if func in _MADE_OF_OTHERS:
            with self:
                return _MADE_OF_OTHERS[func](*args, **kwargs)
        result = call_on_fakes(func, args, kwargs, self)
        for tensor in tensor_leaves(result):
            self._book(tensor)
        if func is torch.ops.aten.lift_fresh.default:
            self._literals[result] = True
        return result

    def allocated_by(self, tensors: Sequence[torch.Tensor]) -> dict[str, int]:
        """Bytes of these tensors' storages by device name."""
        total: dict[str, int] = {}
        for storage, device in {t.untyped_storage()._cdata: (t.untyped_storage(), t.device) for t in tensors}.values():
            if device.index is not None:
                name = self._names[device.index]
                total[name] = total.get(name, 0) + storage.nbytes()
        return total

    def _landed(self, args: Any, kwargs: Any) -> Any:
        """The arguments with literals on the device of the others: fake ones stay on the host, whatever was asked."""
        device = next((t.device for t in tensor_leaves((args, kwargs)) if t.device.index is not None), None)

        def land(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device) if tensor in self._literals else tensor

        return (args, kwargs) if device is None else pytree.tree_map_only(torch.Tensor, land, (args, kwargs))

    def _book(self, tensor: torch.Tensor) -> None:
        storage, index = tensor.untyped_storage(), tensor.device.index
        key = storage._cdata
        if index is None or key in self._live:  # the host's memory is not planned
            return
        allocator = self.allocators[self._names[index]]
        block = _malloc(allocator, storage.nbytes())

        def died(_: Any) -> None:
            del self._live[key]
            if block is not None:
                allocator.free(block)

        self._live[key] = weakref.ref(storage, died)


def _malloc(allocator: CachingAllocator, size_bytes: int) -> Block | None:
    try:
        return allocator.malloc(size_bytes)
    except AllocationError:
        allocator.capacity_bytes = None  # it does not fit: go on without the limit, to say by how much
        return allocator.malloc(size_bytes)


def _without_host_indices(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments that must be on one device; indices may be on the host, as on accelerators."""
    if func.overloadpacket not in _INDEXING:
        return args
    return (args[0], [i for i in args[1] if i is not None and i.device.index is not None], *args[2:])


def _check_devices(func: Any, tensors: list[torch.Tensor]) -> None:
    found = {tensor.device for tensor in tensors if tensor.dim() or tensor.device.index is not None}
    if len(found) > 1:
        raise PlanError(f"{func}: its tensors are on {len(found)} devices ({', '.join(sorted(map(str, found)))})")
