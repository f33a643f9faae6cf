"""Capture: what a model's forward runs, as torch.fx graphs.

standins  tensors of the same form without memory, for Dynamo to trace with
dynamo    how Dynamo is called
frontend  one forward as one graph, at any shape and in any mode
record    one run in plain Python, written down
ladder    one graph; several; what no graph can hold; module by module
"""

from autosplit.capture.frontend import Compile, Frontend, Run, first_device, part_names, to_device
from autosplit.capture.ladder import Captured, climb

__all__ = ["Captured", "Compile", "Frontend", "Run", "climb", "first_device", "part_names", "to_device"]
