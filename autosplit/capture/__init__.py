"""Capture: what a model's forward runs, as torch.fx graphs.

standins  tensors of the same form without memory, for Dynamo to trace with
dynamo    how Dynamo is called
hooks     where a model has hooks, looked up again when one came
slots     where weights are, and whether they are still what a capture was made for
around    what is checked before a capture, and put back after
frontend  one forward as one graph, at any shape and in any mode
recorder  writes down every torch call, and which module made it
record    one run in plain Python, on fake tensors or on data
lazy      weights that get their shapes from the first call
ladder    one graph; several; what no graph can hold; module by module
"""

from autosplit.capture.around import without_parts
from autosplit.capture.frontend import Compile, Frontend, Run, part_names
from autosplit.capture.ladder import Captured, climb
from autosplit.capture.lazy import initialise, is_uninitialised

__all__ = [
    "Captured",
    "Compile",
    "Frontend",
    "Run",
    "climb",
    "initialise",
    "is_uninitialised",
    "part_names",
    "without_parts",
]
