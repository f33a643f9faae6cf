"""Pipeline: the stages of a split work on micro-batches side by side, in one process.

batches    a call cut into micro-batches, and its outputs merged
copies     copies between devices beside what they compute
local      forward passes of all stages; autograd goes back
descent    forward and backward passes in the order of 1F1B
rehearsal  the same on fakes, most micro-batches played from what another did
handed     gradients computed within the call, handed out by backward()
call       one call: flat inputs to flat outputs
"""
