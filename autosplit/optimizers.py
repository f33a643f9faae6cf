"""The optimizer that training memory is planned for: a name, an instance, or a function that makes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from autosplit.choices import OptimizerName
from autosplit.errors import AutosplitError, PlanError

OptimizerFactory = Callable[[list[torch.Tensor]], torch.optim.Optimizer]
OptimizerLike = str | torch.optim.Optimizer | OptimizerFactory

_BY_NAME: dict[OptimizerName, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-3}),
    "momentum": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "adafactor": (torch.optim.Adafactor, {}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
}


def optimizer_factory(optimizer: OptimizerLike, *, foreach: bool) -> OptimizerFactory:
    """A function that makes the optimizer of some parameters.

    Args:
        optimizer: "sgd", "momentum" (SGD with it), "adam", "adamw", "adafactor", "adagrad", "rmsprop", an instance
            (its class and options are used, its parameters are not touched), or a function from a list of parameters
            to an optimizer.
        foreach: what torch chooses on the devices planned for, where the optimizer leaves it open; it decides how
            many temporaries live at once.

    Raises:
        PlanError: another name, or none of these.
    """
    if isinstance(optimizer, str):
        named = next((name for name in _BY_NAME if name == optimizer.lower()), None)
        if named is None:
            raise PlanError(
                f"optimizer {optimizer!r} is unknown: use {', '.join(_BY_NAME)}, or pass the optimizer itself"
            )
        made, options = _BY_NAME[named]
        return lambda parameters: made(parameters, foreach=foreach, **options)  # type: ignore[call-arg]  # all take it
    if isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer)
        accepted = inspect.signature(kind).parameters
        defaults = {name: value for name, value in optimizer.defaults.items() if name in accepted}
        if "foreach" in defaults and defaults["foreach"] is None and not defaults.get("fused"):
            defaults["foreach"] = foreach
        return lambda parameters: kind(parameters, **defaults)
    if callable(optimizer):
        return optimizer
    raise PlanError(f"optimizer={optimizer!r}: expected a name, a torch.optim.Optimizer or a function that makes one")


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
