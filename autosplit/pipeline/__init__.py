"""Pipeline: the stages of a split work on micro-batches side by side.

kinds    how a tensor depends on the batch; one operator's call at two batch sizes
moving   operators that only move elements
working  operators that compute: element by element, row by row, products, norms, attention
folding  reductions and losses
table    which rule is whose
trace    what a node runs, operator by operator, at two sizes
samples  where the batch is in every value of a program, and whether each sample goes its own way
batches  a call cut into micro-batches, and its outputs merged
copies   copies between devices beside what they compute
local    forward passes of all stages in one process; autograd goes back
descent  forward and backward passes in one process, in the order of 1F1B
handed   gradients computed within the call, handed out by backward()
call     one call: flat inputs to flat outputs
relay    what crosses from each stage to the next
stage    one stage as torch.distributed.pipelining takes it
engine   a rank's stages under one of its schedules
across   one call through the ranks of a process group
seats    which rank has which place: pipelines of ranks, and replicas of them
held     the weights that a rank holds; its state_dict
"""

from autosplit.pipeline.samples import Merge, Samples, follow_samples

__all__ = ["Merge", "Samples", "follow_samples"]
