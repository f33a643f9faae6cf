"""The optimizer that training memory is planned for: a name, an instance, or a function that makes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from autosplit.choices import OptimizerName
from autosplit.errors import AutosplitError, PlanError

Named = Mapping[str, torch.Tensor]
"""Parameters by their names in the model."""

_NO_OPTIONS = ("params", "param_names", "initial_lr")
"""What a parameter group holds beside the options of its optimizer."""


@dataclass(frozen=True)
class OptimizerFactory:
    """Makes the optimizer of some of a model's parameters; what it raises is told in our words."""

    make: Callable[[Named], torch.optim.Optimizer]

    def __call__(self, parameters: Named) -> torch.optim.Optimizer:
        """The optimizer.

        Raises:
            PlanError: names the error of it.
        """
        with steps_without_data():
            return self.make(parameters)


OptimizerLike = str | torch.optim.Optimizer | Callable[[list[torch.Tensor]], torch.optim.Optimizer] | OptimizerFactory

_BY_NAME: dict[OptimizerName, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-3}),
    "momentum": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "adafactor": (torch.optim.Adafactor, {}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
}


def optimizer_factory(optimizer: OptimizerLike, *, foreach: bool, weights: Named | None = None) -> OptimizerFactory:
    """A function that makes the optimizer of some parameters.

    Args:
        optimizer: "sgd", "momentum" (SGD with it), "adam", "adamw", "adafactor", "adagrad", "rmsprop", an instance
            (its class, groups and options are used, its parameters are not touched), or a function from a list of
            parameters to an optimizer, which is called once for the parameters of each device.
        foreach: what torch chooses on the devices planned for, where the optimizer leaves it open; it decides how
            many temporaries live at once.
        weights: the model's, by which an instance's groups are known. What none of them holds is not stepped; an
            instance of another model's parameters is taken for all, with the options of its first group.

    Raises:
        PlanError: another name, or none of these.
    """
    if isinstance(optimizer, OptimizerFactory):
        return optimizer
    if isinstance(optimizer, str):
        named = next((name for name in _BY_NAME if name == optimizer.lower()), None)
        if named is None:
            raise PlanError(
                f"optimizer {optimizer!r} is unknown: use {', '.join(_BY_NAME)}, or pass the optimizer itself"
            )
        made, options = _BY_NAME[named]
        return OptimizerFactory(lambda found: made(found.values(), foreach=foreach, **options))  # type: ignore[call-arg]  # all take it
    if isinstance(optimizer, torch.optim.Optimizer):
        return OptimizerFactory(_like(optimizer, foreach, weights or {}))
    if callable(optimizer):
        return OptimizerFactory(lambda found: optimizer([*found.values()]))
    raise PlanError(f"optimizer={optimizer!r}: expected a name, a torch.optim.Optimizer or a function that makes one")


def _like(optimizer: torch.optim.Optimizer, foreach: bool, weights: Named) -> Callable[[Named], torch.optim.Optimizer]:
    """Makes optimizers of the instance's class, with its groups; it and its parameters are not kept."""
    kind = type(optimizer)
    accepted = inspect.signature(kind).parameters

    def chosen(options: Mapping[str, Any]) -> dict[str, Any]:
        if "foreach" in options and options["foreach"] is None and not options.get("fused"):
            return {**options, "foreach": foreach}
        return dict(options)

    defaults = chosen({name: value for name, value in optimizer.defaults.items() if name in accepted})
    groups = [
        chosen({name: value for name, value in group.items() if name not in _NO_OPTIONS})
        for group in optimizer.param_groups
    ]
    place = {id(parameter): i for i, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
    known = {name: place[id(weight)] for name, weight in weights.items() if id(weight) in place}
    names = frozenset(weights)

    def make(found: Named) -> torch.optim.Optimizer:
        of_name = known if known and names >= found.keys() else dict.fromkeys(found, 0)
        held: list[list[torch.Tensor]] = [[] for _ in groups]
        for name, parameter in found.items():
            if name in of_name:
                held[of_name[name]].append(parameter)
        if len(held) == 1 and held[0]:  # as most classes are called
            return kind(held[0], **defaults | {name: value for name, value in groups[0].items() if name in accepted})
        return kind([{**group, "params": params} for group, params in zip(groups, held, strict=True)], **defaults)

    return make


@contextmanager
def steps_without_data() -> Iterator[None]:
    """An optimizer's errors inside, where it steps tensors without data, in our words.

    Raises:
        PlanError: names the error.
    """
    try:
        yield
    except AutosplitError:
        raise
    except Exception as error:
        raise PlanError(
            f"the optimizer cannot be planned for: it raised {type(error).__name__} where it was made for, or stepped, "
            f"a matrix without data: {str(error).strip().partition(chr(10))[0]}; plan with optimizer='adamw' or "
            "another that steps so"
        ) from error
