"""Capture: what a model's forward runs, as torch.fx graphs."""

from autosplit.capture.frontend import Compile, Frontend, Run

__all__ = ["Compile", "Frontend", "Run"]
