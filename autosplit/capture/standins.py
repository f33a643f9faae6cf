"""Stand-ins: tensors of the same form on the logical CPU, with no memory of their own, for Dynamo to trace with."""

from __future__ import annotations

import sys
from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autosplit.capture.slots import Slots
from autosplit.holders import Exchange
from autosplit.program import Input, Spec

Make = Callable[[torch.Tensor], torch.Tensor]

_UNSHARED = 4  # references to a stand-in that nobody kept: two tables, a variable, and getrefcount's own
_WEIGHTS = ("_parameters", "_buffers", "_modules")


class StandIns:
    """Swaps the weights of one module, and the inputs of one call, for stand-ins, and back.

    Args:
        model: its weights are swapped.
        names: the weights' names by their names in ``model``, where it is a part of another.
        make: makes a stand-in.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, str] | None = None, make: Make | None = None) -> None:
        self._model = model
        self._make_one = make or stand_in
        self._names = names or {}
        self._made_at = -1  # slots.changes when the stand-ins were made
        self._made: dict[int, torch.Tensor] = {}  # stand-in by id of the real weight
        self._known: dict[int, torch.Tensor] = {}  # what stands for a weight during a call, by id of the real one
        self.slots = Slots(model)
        self.weights: dict[int, Input] = {}  # by id of the stand-in
        self.real: dict[int, torch.Tensor] = {}  # by id of the stand-in, during a call

    @contextmanager
    def swapped(self, *, keep: bool = True) -> Iterator[None]:
        """Stand-ins are in place inside, the real weights outside, exception or not.

        ``keep`` what forward assigned to a buffer; else every slot is as it was.
        """
        self.slots.look()
        if self._made_at != self.slots.changes:
            self._make()
        places, held, made = self.slots.places, self.slots.held, self._made
        self.real = {id(made[id(tensor)]): tensor for tensor in held}
        self._known = made
        try:
            for (tensors, key), tensor in zip(places, held, strict=True):
                tensors[key] = made[id(tensor)]
            yield
        finally:
            self._bring_home(keep=keep)
            self.real = {}

    def leave_in_place(self) -> None:
        """As ``swapped``, for a call that swaps no weight: they stand for themselves."""
        self.real = {}
        self._known = self.slots.own

    def bring_home(self) -> None:
        """Buffers that forward assigned go where those are that they had replaced. After ``leave_in_place``."""
        if not self.slots.are_same():
            self._bring_home(keep=True)

    def disarm(self) -> None:
        """Make stand-ins that an error's traceback may show safe to print: torch reads the memory they do not have."""
        for made in self._made.values():
            made.data = torch.empty(0, dtype=made.dtype)
        self._made_at = -1

    @property
    def staying(self) -> Collection[int]:
        """Ids of what stands for a weight or an input during a call, and of weights that are in place."""
        return ChainMap(self.real, self._known)

    def of_inputs(self, args: Any, kwargs: Any) -> Arguments:
        """The arguments of a call with a stand-in for every tensor. Inside ``swapped``, or after ``leave_in_place``."""
        return Arguments(self._model, args, kwargs, known=self._known, real=self.real, make=self._make_one)

    def _bring_home(self, *, keep: bool) -> None:
        """The real weights in all slots, or what forward assigned to a buffer: that stays where the old one is."""
        for (tensors, key), tensor in zip(self.slots.places, self.slots.held, strict=True):
            now = self.real.get(id(tensors.get(key)), tensors.get(key)) if keep else tensor
            if now is not tensor and isinstance(now, torch.Tensor):
                now = now.to(tensor.device)
            tensors[key] = now

    def _make(self) -> None:
        self._made_at = self.slots.changes
        self._made = {}
        for tensor in self.slots.held:
            if id(tensor) not in self._made:
                self._made[id(tensor)] = self._make_one(tensor)
        self.weights = {}
        for name, tensor in self._model.named_parameters():
            self._name("parameter", name, tensor)
        for name, tensor in self._model.named_buffers():
            self._name("buffer", name, tensor)

    def _name(self, kind: Any, name: str, tensor: torch.Tensor) -> None:
        if id(tensor) not in self._made:
            return  # inside a scripted module, which runs on what it holds
        self.weights[id(self._made[id(tensor)])] = Input(kind, self._names.get(name, name), Spec.of(tensor))


class Arguments:
    """The arguments of one call while they are swapped for stand-ins.

    Attributes:
        args, kwargs: what to call with.
        device: where the first tensor is that came by plain containers; None when none did.
        objects: ids of the stand-ins that are held by an object, such as a KV cache.
        weights: ids of the weights that are among the arguments, in the order in which they are met.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        kwargs: Any,
        *,
        known: Mapping[int, torch.Tensor],
        real: dict[int, torch.Tensor],
        make: Make,
    ) -> None:
        self.device: torch.device | None = None
        self.objects: set[int] = set()
        self.weights: list[int] = []
        self._model = model
        self._real = real
        self._make = make
        self._weights = known
        self._made: dict[int, torch.Tensor] = {}
        self._own: list[torch.Tensor] = []
        self._given = [list(args), dict(kwargs)]
        self._exchange = Exchange(self._swap, copies=True)
        self.args = tuple(map(self._replaced, args))
        self.kwargs = {key: self._replaced(value) for key, value in kwargs.items()} if kwargs else {}

    def changed(self) -> set[int]:
        """Ids of the stand-ins in whose place an object now holds something else."""
        return {id(instead) for slot, _, instead in self._exchange.slots if slot.get() is not instead}

    def finish(self, result: Any = None) -> Any:
        """Put the real tensors back, also where the model kept an input; ``result`` with the real tensors in it."""
        self.args, self.kwargs = (), {}
        self._exchange.put_back(self._real)
        self._originals, self._copies = self._exchange.originals(), self._exchange.copied()
        del self._exchange
        is_one = isinstance(result, torch.Tensor)
        result = self._real.get(id(result), result) if is_one else self._undo()(result)
        if self._is_kept():
            self._clean()
        self._originals, self._copies, self._given = {}, [], []
        return result

    def _replaced(self, value: Any) -> Any:
        return self._swap(value, True) if isinstance(value, torch.Tensor) else self._exchange(value)

    def _undo(self) -> Exchange:
        return Exchange(self._restored, copies=False, known=self._originals)

    def _is_kept(self) -> bool:
        """Whether something still holds a stand-in, or our copy of a list or dict."""
        if any(sys.getrefcount(copied) > _UNSHARED - 1 for copied in self._copies):
            return True
        return any(sys.getrefcount(tensor) > _UNSHARED for tensor in self._own)

    def disarm(self) -> None:
        """As StandIns.disarm, for the inputs."""
        for made in self._own:
            made.data = torch.empty(0, dtype=made.dtype)

    def _clean(self) -> None:
        """Put the real input, and the caller's own list, wherever forward kept ours: in arguments and attributes."""
        undo = self._undo()
        undo(self._given)
        for module in self._model.modules():
            for key, value in list(vars(module).items()):
                if key not in _WEIGHTS:
                    restored = undo(value)
                    if restored is not value:
                        module.__dict__[key] = restored
        for made in self._own:
            real = self._real[id(made)]
            if sys.getrefcount(made) > _UNSHARED + 1 and torch._has_compatible_shallow_copy_type(made, real):
                made.data = real.detach()  # held where we do not look: it must not read memory that is not there

    def _swap(self, tensor: torch.Tensor, plain: bool) -> torch.Tensor:
        if plain and self.device is None:
            self.device = tensor.device
        if id(tensor) in self._weights:
            self.weights.append(id(tensor))
            return self._weights[id(tensor)]
        if id(tensor) not in self._made:
            self._made[id(tensor)] = made = self._make(tensor)
            self._own.append(made)
            self._real[id(made)] = tensor
            if not plain:
                self.objects.add(id(made))
        return self._made[id(tensor)]

    def _restored(self, tensor: torch.Tensor, _: bool) -> torch.Tensor:
        return self._real.get(id(tensor), tensor)


def stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of the same form whose storage is empty; a Parameter for a Parameter."""
    with torch.inference_mode(False):
        made = torch.empty_strided(tuple(tensor.shape), tuple(tensor.stride()), dtype=tensor.dtype, device="cpu")
        if tensor.dim():
            made.untyped_storage().resize_(0)
        else:
            made.zero_()  # Dynamo looks at the value of a number
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            made.__dict__.update(tensor.__dict__)  # what users hang on a parameter
            return made
        return made.requires_grad_() if tensor.requires_grad else made


def fake_stand_in(fakes: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    """A fake CPU tensor of the same form; a Parameter for a Parameter."""
    with fakes:
        made = Spec.of(tensor).empty()
        if not isinstance(tensor, nn.Parameter):
            return made
        return nn.Parameter(made.detach(), requires_grad=tensor.requires_grad)
