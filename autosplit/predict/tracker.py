"""The tracker: notes each storage from the operation that makes it until it dies, and what it is for."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.weak import WeakIdKeyDictionary

from autosplit.errors import PlanError
from autosplit.predict.ledger import Kind, Log, Record
from autosplit.program import GradientSums, call_on_fakes, tensor_leaves

_COPIES = ("aten::_to_copy", "aten::copy_")
_ASKS_DEVICE = torch.ops.prim.device.default
_ADD = torch.ops.aten.add.Tensor
_is_dense = torch.ops.aten.is_non_overlapping_and_dense.default
_IN_PLACE = frozenset(
    (
        torch.ops.aten.index_put.default,
        torch.ops.aten.scatter.src,
        torch.ops.aten.scatter.value,
        torch.ops.aten.index_fill.int_Scalar,
    )
)
_LAYER_NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward.default
_LITERAL = torch.ops.aten.lift_fresh.default
_PRODUCT = torch.ops.aten._unsafe_view.default  # what a product of more than two dimensions ends in
_HELD_BY_TORCH = 3  # references to an argument that no Python code but ours knows
_STORED_ONCE = 2  # uses of a storage that one tensor has: it, and the Python object that is asked
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


class _Cell(weakref.ref[torch.UntypedStorage]):
    """A storage that is alive, and its record."""

    __slots__ = ("key", "record")

    key: int
    record: Record


class Tracker(TorchDispatchMode):
    """Books each storage on its device, from the operation that makes it until it dies.

    Args:
        devices: how many there are; storages on a CPU without an index are the host's and are not booked.

    Attributes:
        log: what was noted.
        position: how many operators have run.
        calls: to be active while the program runs.
        sums: to be told of each backward.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing compiles while it looks on, and torch's guard against that costs as much as a call

    def __init__(self, devices: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.log = Log()
        self.position = 0
        self.calls = Calls()
        self.sums = GradientSums()
        self._devices = devices
        self._kind: Kind = "activations"
        self._previous: Any = None  # the operator before this one
        self._live: dict[int, _Cell] = {}
        self._literals = WeakIdKeyDictionary()
        self._successor: tuple[Record, _Cell] | None = None  # a storage, and the one that takes its place if it dies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ASKS_DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # first of all, as autograd asks twice an operator
        with torch._C.DisableTorchFunction():  # the function modes are for what the graph calls, not for what we do
            return args[0].device if func is _ASKS_DEVICE else self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._literals:
            args, kwargs = self._landed(args, kwargs)
        if hasattr(func, "_schema") and func._schema.name not in _COPIES:
            _check_devices(func, tensor_leaves((_without_host_indices(func, args), kwargs)))
        if func in _MADE_OF_OTHERS:
            with self:
                return _MADE_OF_OTHERS[func](*args, **kwargs)
        self.position += 1
        result = call_on_fakes(func, _as_kernels_take(func, args), kwargs, self)
        if isinstance(result, torch.Tensor):
            self._book(result)
            if self._would_reuse(func, args):
                self._reuse(args[0], result)
            elif func is _LITERAL:
                self._literals[result] = True
        else:
            for tensor in tensor_leaves(result):
                self._book(tensor)
        self._previous = func
        return result

    @contextmanager
    def making(self, kind: Kind) -> Iterator[None]:
        """Storages that are made inside are of this kind, until something else is known of them."""
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._kind = before

    @contextmanager
    def phase(self, name: str, kind: Kind) -> Iterator[None]:
        """As ``making``, and a phase of the log."""
        self.log.phases.append((name, self.position))
        with self.making(kind):
            yield

    def settle(self, tensors: Iterable[torch.Tensor], kind: Kind) -> None:
        """These tensors' storages are of this kind."""
        for record in self.records(tensors):
            record.kind = kind

    def settle_new(self, since: int, kind: Kind) -> None:
        """What was made since event ``since`` and is alive is of this kind."""
        for record in self.log.events[since:]:
            if record.is_live:
                record.kind = kind

    def allocated_by(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Bytes of these tensors' storages by device."""
        total = [0] * self._devices
        for record in self.records(tensors):
            total[record.device] += record.size_bytes
        return total

    def now(self) -> tuple[int, int]:
        """This moment: how many events were noted, and how many operators have run."""
        return self.log.mark(), self.position

    def records(self, tensors: Iterable[torch.Tensor]) -> list[Record]:
        """The storages of tensors, those that are booked."""
        keys = dict.fromkeys(tensor.untyped_storage()._cdata for tensor in tensors)
        return [self._live[key].record for key in keys if key in self._live]

    def _book(self, tensor: torch.Tensor) -> None:
        try:
            storage, index = tensor.untyped_storage(), tensor.device.index
        except NotImplementedError as error:  # a sparse tensor
            raise PlanError(
                f"a step makes a tensor of shape {tuple(tensor.shape)} in layout {tensor.layout}: only the memory of "
                "dense tensors is planned; compute with those (sparse=False gives an embedding a dense gradient)"
            ) from error
        key = storage._cdata
        if index is None or key in self._live:  # the host's memory is not planned
            return
        recomputed = self._kind == "workspace" and torch.is_grad_enabled()  # a checkpoint, in the backward
        kind: Kind = "activations" if recomputed else self._kind
        cell = _Cell(storage, self._died)
        cell.key, cell.record = key, Record(index, storage.nbytes(), kind, self.calls.count)
        self._live[key] = cell
        self.log.note(cell.record, self.position)

    def _died(self, cell: weakref.ref[torch.UntypedStorage]) -> None:
        assert isinstance(cell, _Cell)
        record = cell.record
        del self._live[cell.key]
        successor, self._successor = self._successor, None
        if successor is not None and successor[0] is record and self.log.events[-1] is successor[1].record:
            self.log.take_back()  # the successor's birth: it is in the same memory
            successor[1].record = record
            return
        record.is_live = False
        if record.kind == "activations" and record.operator == self.calls.count:
            record.kind = "workspace"
        self.log.note(record, self.position)
        for heir in record.heirs:
            heir.is_live = False
            self.log.note(heir, self.position)

    def _would_reuse(self, func: Any, args: Any) -> bool:
        """Whether torch would have written the result over its first argument, which on fakes it does not.

        Autograd adds in place to a gradient that nobody else holds, and some of its formulas write into zeros of their
        own; a linear layer adds its bias, and attention its mask, to the product that it has just made.
        """
        if func is _ADD:
            if self.sums.is_one():
                return _is_alone(args[0], args[1])
            return self._previous is _PRODUCT and sys.getrefcount(args[0]) <= _HELD_BY_TORCH
        return func in _IN_PLACE and not torch.is_grad_enabled() and torch._C._current_autograd_node() is not None

    def _reuse(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """``new`` takes the place of ``old``, if that dies now."""
        before, after = (self._live.get(tensor.untyped_storage()._cdata) for tensor in (old, new))
        if before is not None and after is not None:
            self._successor = (before.record, after)

    def _landed(self, args: Any, kwargs: Any) -> Any:
        """The arguments with literals on the device of the others: fake ones stay on the host, whatever was asked."""
        tensors = tensor_leaves((args, kwargs))
        device = next((t.device for t in tensors if t.device.index is not None), None)
        if device is None or not any(tensor in self._literals for tensor in tensors):
            return args, kwargs

        def land(tensor: torch.Tensor) -> torch.Tensor:
            if tensor not in self._literals:
                return tensor
            form = tensor.size(), tensor.stride()  # not to(), nor empty_like(): a fake whose value is known stays
            return torch.empty_strided(*form, dtype=tensor.dtype, device=device)

        return pytree.tree_map_only(torch.Tensor, land, (args, kwargs))


def active_tracker() -> Tracker | None:
    """The tracker that books what runs now."""
    modes = _get_current_dispatch_mode_stack()
    return next((mode for mode in reversed(modes) if isinstance(mode, Tracker)), None)


class Calls(TorchFunctionMode):
    """Counts the calls of torch's functions: what one makes and drops before the next is its workspace."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _as_kernels_take(func: Any, args: Any) -> Any:
    """The arguments; a fake of layer norm's backward keeps the strides of its gradient, where kernels keep none."""
    return (args[0].contiguous(), *args[1:]) if func is _LAYER_NORM_BACKWARD else args


def _is_alone(held: torch.Tensor, term: torch.Tensor) -> bool:
    """Whether autograd may add ``term`` to ``held`` in place: no view of it is alive, and the forms are the same."""
    stored_once = torch._C._storage_Use_Count(held.untyped_storage()._cdata) <= _STORED_ONCE
    return bool(stored_once and held.dtype == term.dtype and held.shape == term.shape and _is_dense(held))


def _without_host_indices(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments that must be on one device; indices may be on the host, as on accelerators."""
    if func.overloadpacket not in _INDEXING:
        return args
    return (args[0], [i for i in args[1] if i is not None and i.device.index is not None], *args[2:])


def _check_devices(func: Any, tensors: list[torch.Tensor]) -> None:
    found = {tensor.device for tensor in tensors if tensor.dim() or tensor.device.index is not None}
    if len(found) > 1:
        raise PlanError(f"{func}: its tensors are on {len(found)} devices ({', '.join(sorted(map(str, found)))})")
