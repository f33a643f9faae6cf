"""Emit: the captured graph, rewritten so that every node runs where the plan says.

assign  plan names -> a device for every node of this capture
rewrite one ``.to()`` a value and destination, as late as its first reader needs it
check   the emitted transfers are the planned ones, and every node's inputs are on its device
"""

from autosplit.emit.assign import Assignment, assign
from autosplit.emit.check import check_split
from autosplit.emit.rewrite import Emitted, Move, rewrite

__all__ = ["Assignment", "Emitted", "Move", "assign", "check_split", "rewrite"]
