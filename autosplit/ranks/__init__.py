"""Ranks: the stages of a pipeline in several processes, under the schedules of torch.distributed.pipelining.

seats    which rank has which place: pipelines of ranks, and replicas of them
wires    how fast the ways between ranks are
joined   their devices as one cluster
held     the weights that a rank holds; its state_dict
relay    what crosses from each stage to the next
stage    one stage as torch.distributed.pipelining takes it
engine   a rank's stages under one of its schedules
across   one call through the ranks of a process group
"""
