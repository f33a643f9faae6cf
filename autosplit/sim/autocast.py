"""Autocast for sim tensors: the same operators cast down, and up, as under ``torch.autocast("cuda")``."""

from __future__ import annotations

from typing import Any

import torch

from autosplit.program.autocast import Casts
from autosplit.sim.world import NAME

CASTS = Casts(NAME, "AutocastPrivateUse1")


def install(library: torch.library.Library, anything: torch.library.Library) -> None:
    """Register the cast lists, and that every other operator passes through autocast."""
    CASTS.install(library, anything)
    library.impl("binary_cross_entropy", _banned, CASTS.key)


def _banned(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast: "
        "use binary_cross_entropy_with_logits or BCEWithLogitsLoss"
    )
