"""The public functions, and the one place that knows the order of the passes."""

from autosplit.api.device_map import from_device_map
from autosplit.api.given import hold
from autosplit.api.public import apply, partition, plan
from autosplit.api.recosting import recost

__all__ = ["apply", "from_device_map", "hold", "partition", "plan", "recost"]
