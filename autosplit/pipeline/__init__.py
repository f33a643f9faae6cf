"""Pipeline: the stages of a split work on micro-batches side by side.

samples  which axis of each value is the batch, and how outputs are merged
batches  a call cut into micro-batches, and its outputs merged
copies   copies between devices beside what they compute
local    forward passes of all stages in one process; autograd goes back
descent  forward and backward passes in one process, in the order of 1F1B
handed   gradients computed within the call, handed out by backward()
call     one call: flat inputs to flat outputs
"""
