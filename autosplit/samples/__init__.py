"""Samples: where the batch is in every value of a program, and whether each sample goes its own way.

kinds    how a tensor depends on the batch; one operator's call at two batch sizes
moving   operators that only move elements
ordering sorts, and rows that they put in another order and back
working  operators that compute: element by element, row by row, products, norms, attention
folding  reductions and losses
table    which rule is whose
nodes    a node's values, and calling it at both sizes
trace    what a node runs, operator by operator, at two sizes
follow   the samples through a whole program
"""

from autosplit.samples.follow import Merge, Samples, follow_samples

__all__ = ["Merge", "Samples", "follow_samples"]
