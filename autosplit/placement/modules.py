"""A placement told by modules: the map that other libraries place a model by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autosplit.errors import PlanError
from autosplit.files import quoted


@dataclass
class _Module:
    """What a module and all below it are on, and what of that is its own: neither a submodule's weight nor operator."""

    children: dict[str, _Module] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)  # each with something that is there, as an example
    weights: dict[str, str] = field(default_factory=dict)
    operators: dict[str, str] = field(default_factory=dict)  # by device, an example


def device_map(placement: Mapping[str, str], weights: Mapping[str, str]) -> dict[str, str]:
    """Device by module path: the largest modules that are whole on one device, weights and operators.

    Args:
        placement: device by node name, "MODULE.PATH/OPERATOR".
        weights: device by the name of a parameter or buffer, "MODULE.PATH.NAME".

    Returns:
        Modules in the order of their weights; {"": device} for a model that is on one. O(nodes + weights) times depth.

    Raises:
        PlanError: a module's own weights and operators, apart from its submodules', are on several devices, or it has
            weights of its own and submodules elsewhere.
    """
    root = _Module()
    for name, device in weights.items():
        module = _at(root, name.rpartition(".")[0], device, f"weight {quoted(name)}")
        module.weights[name] = device
    for name, device in placement.items():
        module = _at(root, name.rpartition("/")[0], device, f"operator {quoted(name)}")
        module.operators.setdefault(device, name)
    found: dict[str, str] = {}
    todo: list[tuple[str, _Module]] = [("", root)]
    while todo:
        path, module = todo.pop()
        if len(module.devices) < 2:
            found |= dict.fromkeys([path], *module.devices)
            continue
        _refuse_split(path, module)
        inner = [(f"{path}.{name}" if path else name, child) for name, child in module.children.items()]
        todo += reversed(inner)
    return found


def _at(root: _Module, path: str, device: str, example: str) -> _Module:
    module = root
    module.devices.setdefault(device, example)
    for name in path.split(".") if path else ():
        module = module.children.setdefault(name, _Module())
        module.devices.setdefault(device, example)
    return module


def _refuse_split(path: str, module: _Module) -> None:
    """A module on several devices is told by its submodules: what is its own must not need a line of its own."""
    if not module.weights and len(module.operators) < 2 and module.children:
        return
    what = f"module {quoted(path)}" if path else "the model itself"
    (one, first), (other, second) = list(module.devices.items())[:2]
    if len(module.operators) > 1:
        (one, first), (other, second) = [(d, f"operator {quoted(n)}") for d, n in list(module.operators.items())[:2]]
    raise PlanError(
        f"{what} is split below module level: {first} is on {quoted(one)}, {second} on {quoted(other)}; a device map "
        "can only place whole modules: apply the plan with autosplit.apply, or plan with placement= by module"
    )
