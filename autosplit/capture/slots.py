"""The places where a module holds its weights, and what was there when they were last looked at."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.guards import TensorGuards

_SPACES = operator.attrgetter("_parameters", "_buffers", "_modules")
_DTYPE, _SHAPE = operator.attrgetter("dtype"), operator.attrgetter("shape")
_GRAD, _DEVICE = operator.attrgetter("requires_grad"), operator.attrgetter("device")


class Slots:
    """Where ``model`` holds parameters, buffers and submodules.

    Attributes:
        places: dictionary and key of every parameter and buffer that is not None.
        held: the tensor of each place.
        own: the tensors, by id.
        changes: how often a look found another tensor, or another form of one.
        form: equal at two looks if the weights are tied alike, and alike in all that a capture may depend on; not
            the device, as a capture knows only the logical CPU.
        homes: equal at two looks if ``form`` and the device of every weight are.
        device_types: of the weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[Any, int] = {}
        self._modules: list[nn.Module] = []  # none before the first look: a lazy weight has no shape until then
        self.places: list[tuple[dict[str, Any], str]] = []
        self.held: list[torch.Tensor] = []
        self.own: dict[int, torch.Tensor] = {}
        self.changes = 0
        self.form = ""
        self.homes = -1
        self.device_types: set[str] = set()

    def look(self) -> None:
        """Bring everything up to date."""
        if not (self._modules and self.are_same()):
            self._gather()
        elif forms_of(self.held) != self._forms:
            self._note()

    def are_same(self) -> bool:
        """Whether every place holds what it held, and none came or went."""
        spaces = itertools.chain.from_iterable(map(_SPACES, self._modules))
        if any(self._empty) or not all(map(operator.is_, spaces, self._spaces)):
            return False
        values = list(itertools.chain.from_iterable(map(dict.values, self._filled)))
        return len(values) == len(self._values) and all(map(operator.is_, values, self._values))

    def index(self, tensor_id: int) -> int:
        """The first place of the weight with that id."""
        return self._index[tensor_id]

    def _gather(self) -> None:
        self._modules = [module for module in self._model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        self._spaces = list(itertools.chain.from_iterable(map(_SPACES, self._modules)))
        self._filled = [space for space in self._spaces if space]
        self._empty = [space for space in self._spaces if not space]
        self._values = list(itertools.chain.from_iterable(map(dict.values, self._filled)))
        tensors = [space for module in self._modules for space in (module._parameters, module._buffers)]
        self.places = [(space, key) for space in tensors for key in space if space[key] is not None]
        self.held = [space[key] for space, key in self.places]
        self.own = {id(tensor): tensor for tensor in self.held}
        self._index = {id(tensor): i for i, tensor in reversed(list(enumerate(self.held)))}
        self._note()

    def _note(self) -> None:
        self.changes += 1
        self._forms = forms_of(self.held)
        tied = tuple(map(self._index.__getitem__, map(id, self.held)))
        kinds = tuple(isinstance(tensor, nn.Parameter) for tensor in self.held)
        *forms, devices = self._forms
        form = (tied, kinds, *map(tuple, forms))
        self.form = str(self._known.setdefault(form, len(self._known)))
        self.homes = self._known.setdefault((form, tuple(devices)), len(self._known))
        self.device_types = {device.type for device in devices}


class Reader:
    """The weights that one captured graph reads, compared at each call with those at the call before.

    It is asked at every call: so it goes over the tensors once, in C, and looks at no module.

    Args:
        slots: of the model.
        places: which inputs of the graph are weights.
    """

    def __init__(self, slots: Slots, places: Sequence[int]) -> None:
        self._slots = slots
        self._places = places
        self._held: list[torch.Tensor] = []
        self._forms: Any = None

    def is_same(self, inputs: Sequence[Any], *, look: bool) -> bool:
        """Whether a graph captured for the slots' form may run on ``inputs``; the slots are up to date for them.

        Args:
            inputs: of the graph, in order.
            look: bring all slots up to date, not only those that the graph reads.
        """
        weights = [inputs[i] for i in self._places]
        known = not look and self._forms is not None and self._forms.check(*weights)
        if known and all(map(operator.is_, weights, self._held)):
            return True
        form = self._slots.form
        self._slots.look()
        tensors = [id(value) for value in inputs if isinstance(value, torch.Tensor)]
        if self._slots.form != form or len(set(tensors)) != len(tensors):  # one that is there twice was captured as two
            return False
        self._held, self._forms = weights, _guards_of(weights)
        return True


def _guards_of(tensors: list[torch.Tensor]) -> TensorGuards | None:
    """What checks in one call that tensors have the form and device that these have."""
    if not tensors:
        return None
    sizes: Any = [list(tensor.shape) for tensor in tensors]
    strides: Any = [list(tensor.stride()) for tensor in tensors]
    return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)


def forms_of(tensors: list[torch.Tensor]) -> list[list[Any]]:
    """Strides, dtypes, shapes, requires_grad and devices."""
    strides = list(map(torch.Tensor.stride, tensors))
    return [strides, *(list(map(get, tensors)) for get in (_DTYPE, _SHAPE, _GRAD, _DEVICE))]
