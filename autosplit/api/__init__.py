"""The public functions, and the one place that knows the order of the passes."""

from autosplit.api.public import apply, partition, plan
from autosplit.api.recosting import recost

__all__ = ["apply", "partition", "plan", "recost"]
