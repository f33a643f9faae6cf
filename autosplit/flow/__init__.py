"""Minimum cuts, fast: Boykov and Kolmogorov's algorithm over flat lists, alone and as a backend of networkx.

Names are loaded when they are first used: networkx, while it is imported itself, imports this package for ``info``, and
nothing in here may import networkx then.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autosplit.flow.network import SINK, SOURCE, FlowNetwork
    from autosplit.flow.residual import boykov_kolmogorov

_HOMES = {
    "SINK": "autosplit.flow.network",
    "SOURCE": "autosplit.flow.network",
    "FlowNetwork": "autosplit.flow.network",
    "boykov_kolmogorov": "autosplit.flow.residual",
}

__all__ = ["SINK", "SOURCE", "FlowNetwork", "boykov_kolmogorov"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'autosplit.flow' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
