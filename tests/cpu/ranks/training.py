"""Ten steps of training: in one process as the truth, and on the ranks of a process group."""

from __future__ import annotations

import warnings
from typing import Any

import msgspec
import torch
import torch.distributed as dist

import autosplit
from ranks.models import batch, build, optimizer_of, part_of

STEPS, MICROBATCHES = 10, 4


def alone(name: str, microbatches: int = 1, *, evaluates: bool = False) -> list[float]:
    """The losses of the model in one process; of several micro-batches the gradients are accumulated.

    ``evaluates``: one more, in eval() and without gradients.
    """
    model = build(name)
    optimizer = optimizer_of(name, model.parameters())
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        total = None
        for i in range(microbatches):
            loss = model(**part_of(batch(name, step), i, microbatches))["loss"] * (1 / microbatches)
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        optimizer.step()
        losses.append(float(total))
    if evaluates:
        with torch.no_grad():
            losses.append(float(model.eval()(**batch(name, STEPS))["loss"]))
    return losses


def on_ranks(
    name: str, replicas: int = 1, devices: Any = ("cpu",), *, evaluates: bool = False, **how: Any
) -> tuple[list[float], autosplit.Plan]:
    """This rank's losses, averaged over the replicas, and the plan; ``how`` goes to partition."""
    warnings.simplefilter("ignore", UserWarning)
    place = dist.get_rank() * replicas // dist.get_world_size()
    mine = [part_of(batch(name, step), place, replicas) for step in range(STEPS)]
    split = autosplit.partition(build(name), devices, kwargs=mine[0], profile=False, **how)
    optimizer = optimizer_of(name, split.parameters())
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = split(**mine[step])["loss"]
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / dist.get_world_size())
    if evaluates:
        with torch.no_grad():
            losses.append(float(split.eval()(**batch(name, STEPS))["loss"]))
    return losses, split.plan


def in_one_process(name: str, **how: Any) -> list[float]:
    """The losses of a pipeline over two virtual devices of this process; ``how`` goes to partition."""
    warnings.simplefilter("ignore", UserWarning)
    with autosplit.sim.cluster("2x64MiB") as cluster:
        split = autosplit.partition(
            build(name), cluster.devices, kwargs=batch(name), strategy="pipeline", profile=False, **how
        )
        assert len(split.plan.pipeline.stages) == 2
        optimizer = optimizer_of(name, split.parameters())
        losses = []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = split(**batch(name, step))["loss"]
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
    return losses


def with_schedule(plan: autosplit.Plan, schedule: Any, replicas: int = 1) -> autosplit.Plan:
    """The same stages in another order of passes, in so many replicas."""
    pipeline = msgspec.structs.replace(plan.pipeline, schedule=schedule)
    strategy = "hybrid" if replicas > 1 else "pipeline"
    return msgspec.structs.replace(plan, pipeline=pipeline, replicas=replicas, strategy=strategy)
