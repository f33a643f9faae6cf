"""What networkx is told of the backend while it is imported; nothing is imported for it."""

from __future__ import annotations

from typing import Any


def info() -> dict[str, Any]:
    """The entry point ``networkx.backend_info``."""
    functions = ("maximum_flow", "maximum_flow_value", "minimum_cut", "minimum_cut_value")
    return {
        "backend_name": "autosplit",
        "project": "autosplit",
        "package": "autosplit",
        "short_summary": "Minimum cuts and maximum flows by Boykov and Kolmogorov's algorithm, exact.",
        "functions": {name: {"additional_docs": "Boykov-Kolmogorov over flat lists."} for name in functions},
    }
