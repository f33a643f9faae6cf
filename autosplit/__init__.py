"""autosplit: automatic model partitioning for PyTorch.

``partition(model, devices)`` returns the same model, split over the devices; ``plan`` shows the placement before
anything moves; ``apply`` places by a plan made earlier; ``from_device_map`` plans as such a map says; ``recost`` tells
what a plan would cost at another batch or on other devices; ``verify`` shows that nothing changed in what is computed;
``solve`` is the engine alone, on any costed graph.

Names are loaded when they are first used, so that importing autosplit does not import torch.
"""

from __future__ import annotations

import importlib
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autosplit import sim
    from autosplit.api import apply, from_device_map, partition, plan, recost
    from autosplit.device import Cluster, Device, Link, Rates
    from autosplit.errors import (
        AutosplitError,
        CapacityError,
        CaptureError,
        DeviceError,
        GraphError,
        LossError,
        PlanError,
        VerifyError,
        WayOut,
    )
    from autosplit.graph import CostGraph, Node, Tensor
    from autosplit.placement import CostModel, Placement, Plan
    from autosplit.solvers import solve
    from autosplit.verification import verify

__version__ = "0.1.0"

_HOMES = {
    "apply": "autosplit.api",
    "from_device_map": "autosplit.api",
    "partition": "autosplit.api",
    "plan": "autosplit.api",
    "recost": "autosplit.api",
    "Cluster": "autosplit.device",
    "Device": "autosplit.device",
    "Link": "autosplit.device",
    "Rates": "autosplit.device",
    "AutosplitError": "autosplit.errors",
    "CapacityError": "autosplit.errors",
    "CaptureError": "autosplit.errors",
    "DeviceError": "autosplit.errors",
    "GraphError": "autosplit.errors",
    "LossError": "autosplit.errors",
    "PlanError": "autosplit.errors",
    "VerifyError": "autosplit.errors",
    "WayOut": "autosplit.errors",
    "CostGraph": "autosplit.graph",
    "Node": "autosplit.graph",
    "Tensor": "autosplit.graph",
    "CostModel": "autosplit.placement",
    "Placement": "autosplit.placement",
    "Plan": "autosplit.placement",
    "solve": "autosplit.solvers",
    "verify": "autosplit.verification",
}

_PLANNERS = ("autosplit.api", "autosplit.placement")  # whatever gives a plan to people

__all__ = [
    "AutosplitError",
    "CapacityError",
    "CaptureError",
    "Cluster",
    "CostGraph",
    "CostModel",
    "Device",
    "DeviceError",
    "GraphError",
    "Link",
    "LossError",
    "Node",
    "Placement",
    "Plan",
    "PlanError",
    "Rates",
    "Tensor",
    "VerifyError",
    "WayOut",
    "apply",
    "from_device_map",
    "partition",
    "plan",
    "recost",
    "sim",
    "solve",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "sim":
        return importlib.import_module("autosplit.sim")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'autosplit' has no attribute {name!r}")
    if home in _PLANNERS:
        drawn = random.getstate()
        importlib.import_module("autosplit.report")  # tells a plan how to show itself
        random.setstate(drawn)  # rich draws a number when it is imported; the caller's sequence is the caller's
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
