"""Pipeline: a step in micro-batches.

kinds    how a tensor depends on the batch; one operator's call at two batch sizes
moving   operators that only move elements
working  operators that compute: element by element, row by row, products, norms, attention
folding  reductions and losses
table    which rule is whose
trace    what a node runs, operator by operator, at two sizes
samples  where the batch is in every value of a program, and whether each sample goes its own way
"""

from autosplit.pipeline.samples import Merge, Samples, follow_samples

__all__ = ["Merge", "Samples", "follow_samples"]
