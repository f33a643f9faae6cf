"""Module hooks that come after a capture: watched here, at the cost of one comparison a call.

Dynamo can guard every empty dictionary of hooks, six a module, at every call; that is a tenth of what a capture and of
what a call of a small model cost. A hook that is there at capture is guarded by Dynamo itself; one that comes later
changes the number that torch gives to the next.
"""

from __future__ import annotations

from torch import fx, nn
from torch.utils.hooks import RemovableHandle

_DICTIONARIES = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class HookWatch:
    """Says where a model has hooks; where it has none, it looks again only when some hook was registered since."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._next_id = -1
        self._places = ""

    def places(self) -> str:
        """Equal for two calls only if no dictionary of hooks that was empty at the first had one at the second."""
        if self._places or RemovableHandle.next_id != self._next_id:  # a removal does not change the number
            self._next_id = RemovableHandle.next_id
            self._places = " ".join(_places(self._model))
        return self._places

    def sees_all(self, graph: fx.Graph) -> bool:
        """Every module that the graph was captured from is in the model's tree, where hooks are looked for."""
        tree = {str(id(module)) for module in self._model.modules()}
        called = {key.partition("@")[0] for node in graph.nodes for key in node.meta.get("nn_module_stack", ())}
        return called <= tree


def has_hooks(module: nn.Module) -> bool:
    """Whether it has hooks of its own."""
    return any(getattr(module, name) for name in _DICTIONARIES)


def _places(model: nn.Module) -> list[str]:
    modules = enumerate(model.modules())
    return [f"{i}{name}" for i, module in modules for name in _DICTIONARIES if getattr(module, name)]
