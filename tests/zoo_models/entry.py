"""What one model of the zoo is: how to build it, what to feed it, and what it needs to be imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

Inputs = dict[str, Any]


def loss_of(outputs: Any) -> torch.Tensor:
    """The model's own loss, else the mean square of every floating output that carries a gradient."""
    own = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if isinstance(own, torch.Tensor):
        return own
    leaves = [leaf for leaf in tensors(outputs) if leaf.requires_grad]
    means = [(leaf * leaf.conj()).real.mean() if leaf.is_complex() else leaf.square().mean() for leaf in leaves]
    return torch.stack([mean.to(means[0].device) for mean in means]).sum()


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: unique, and short enough for a table.
        family: the file it is in, as people call it.
        model: makes the model, with random weights.
        inputs: keyword inputs for a batch and a length; what has no length ignores it.
        prompt: inputs of generate, where the model generates.
        sizes: batch and length of the example inputs, and of the other ones that the same split must serve.
        loss: the scalar that a training step descends.
        state: Python state that the forward leaves on the model, to be compared.
        needs: the library it comes from.
    """

    name: str
    family: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    prompt: Callable[[], Inputs] | None = None
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((2, 12), (3, 17))
    loss: Callable[[Any], torch.Tensor] = loss_of
    state: Callable[[nn.Module], Any] | None = None
    needs: str = "torch"

    def build(self) -> tuple[nn.Module, Inputs]:
        """The model, and the inputs to plan it for."""
        return self.model(), self.inputs(*self.sizes[0])

    def other(self) -> Inputs:
        """Inputs of another batch, and of another length where the model has one."""
        return self.inputs(*self.sizes[1])

    def missing(self) -> str | None:
        """Why the model cannot be built here: its library is not installed; None when it can."""
        try:
            if self.needs != "torch" and importlib.util.find_spec("torchvision"):
                let_torchvision_load()
            importlib.import_module(self.needs)
        except (ImportError, RuntimeError) as error:
            return f"{self.needs} cannot be imported: {error}"
        return None


def let_torchvision_load() -> None:
    """Let others import a torchvision whose compiled operators do not load, as on a torch for CPUs alone.

    torchvision gives fake versions of its own operators in one module, which fails when they are absent. No model of
    the zoo uses them.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
        importlib.import_module("torchvision")


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in a nested value, attributes of plain objects (dataclasses, caches) included."""
    found: list[torch.Tensor] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)):
            found += [t for part in vars(leaf).values() for t in tensors(part)]
    return found


def ids(batch: int, length: int, vocabulary: int = 96) -> torch.Tensor:
    """Random tokens, none of them a special one."""
    return torch.randint(3, vocabulary, (batch, length))


def pretrained(model: str, config: str, /, **values: Any) -> nn.Module:
    """A transformers model of a config, with random weights."""
    import transformers

    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**values))
    return made
