"""Emit: the captured graph, rewritten so that every node runs where the plan says.

assign  plan names -> a device for every node of this capture
rewrite one ``.to()`` a value and destination, as late as its first reader needs it
stages  one graph for each stage of a pipeline
check   the emitted transfers are the planned ones, and every node's inputs are on its device
"""

from autosplit.emit.assign import Assignment, assign
from autosplit.emit.check import check_split
from autosplit.emit.rewrite import Emitted, Move, rewrite
from autosplit.emit.stages import Port, StageGraph, cut

__all__ = ["Assignment", "Emitted", "Move", "Port", "StageGraph", "assign", "check_split", "cut", "rewrite"]
