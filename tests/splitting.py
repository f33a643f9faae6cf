"""Random placements and exact comparison, shared by the tests of whole models."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import nn
from torch.utils import _pytree as pytree

import autosplit
from autosplit.api.planning import make_plan
from autosplit.api.problem import Request
from autosplit.api.public import apply_captured
from autosplit.capture import Frontend, climb
from autosplit.hardware import resolve
from autosplit.pipeline.batches import sizes
from autosplit.placement import Pipeline
from autosplit.predict import training_loss
from autosplit.runtime import unsplit_class
from autosplit.schedule import ScheduleName


def split_at_random(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], devices: list[str], seed: int
) -> nn.Module:
    """Every node on a device of its own choice, often that of the node before it; groups follow their first node."""
    rng, last = random.Random(seed), devices[0]

    def choose(_: int) -> str:
        nonlocal last
        last = rng.choice([last, *devices])
        return last

    return _split(model, args, kwargs, devices, choose)


def split_in_turns(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], devices: list[str], first: int = 0
) -> nn.Module:
    """Each node on another device than the node before it: a cut wherever one is possible."""
    return _split(model, args, kwargs, devices, lambda i: devices[(first + i) % len(devices)])


def _split(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    devices: list[str],
    choose: Callable[[int], str],
) -> nn.Module:
    frontend = Frontend(model, unsplit_class(model))
    mode = "train" if model.training else "infer"
    program = climb(frontend, args, kwargs, mode).program
    wanted = {program.names[node]: choose(i) for i, node in enumerate(program.nodes)}
    request = Request(resolve(devices), mode, placement=wanted, optimizer="sgd")
    plan, captured = make_plan(model, frontend, args, kwargs, request)
    return apply_captured(model, plan, frontend, captured)


def sums_may_reorder(split: nn.Module) -> bool:
    """Whether a copy has several readers, and its original others: the gradients are then summed in another order."""
    differentiable = {transfer.tensor for transfer in split.plan.transfers if transfer.returns_gradient}
    try:
        nodes = split.graph_module.graph.nodes
    except autosplit.PlanError:  # not one graph: nothing to tell it by
        return True
    for node in nodes:
        copies = [user for user in node.users if user.name.startswith("to")]
        shared = [c for c in copies if len(c.users) > 1 and c.meta["value_name"] in differentiable]
        if shared and len(node.users) > 1:
            return True
    return False


def observe(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], seed: int = 7) -> dict[str, torch.Tensor]:
    """Outputs, gradients (in training), buffers and inputs after one call, on the host, by name."""
    args, kwargs = copy.deepcopy((tuple(args), dict(kwargs)))
    torch.manual_seed(seed)
    with torch.set_grad_enabled(model.training):
        out = model(*args, **kwargs)
    seen = {f"out {i}": leaf for i, leaf in enumerate(pytree.tree_leaves(out)) if isinstance(leaf, torch.Tensor)}
    loss = training_loss(out) if model.training else None
    if loss is not None:
        loss.backward()
    seen |= {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    seen |= {f"buffer {name}": buffer for name, buffer in model.named_buffers()}
    seen |= {
        f"in {i}": leaf for i, leaf in enumerate(pytree.tree_leaves((args, kwargs))) if isinstance(leaf, torch.Tensor)
    }
    return {name: value.detach().cpu().clone() for name, value in seen.items()}


def assert_equal(want: Mapping[str, torch.Tensor], have: Mapping[str, torch.Tensor], exact: bool, what: object) -> None:
    """Bit for bit; gradients only closely where their sums are taken in another order."""
    assert list(have) == list(want), what
    for name, expected in want.items():
        if exact or not name.startswith("grad"):
            assert torch.equal(have[name], expected), (name, what)
        else:
            torch.testing.assert_close(have[name], expected, rtol=1e-10, atol=1e-10)


def to(tree: Any, device: str) -> Any:
    """The nested value with its tensors on a device."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), tree)


def pipeline_at_random(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    devices: list[str],
    *,
    microbatches: int,
    schedule: ScheduleName,
    seed: int = 0,
) -> nn.Module:
    """Stages of random lengths, one a device: cut wherever no group is cut in two."""
    frontend = Frontend(model, unsplit_class(model))
    mode = "train" if model.training else "infer"
    captured = climb(frontend, args, kwargs, mode)
    program = captured.program
    numbers = {node: i for i, node in enumerate(program.nodes)}
    spans = [[numbers[node] for node in group if node in numbers] for group in program.groups]
    cuts = [i for i in range(1, len(numbers)) if not any(s and min(s) < i <= max(s) for s in spans)]
    chosen = [0, *sorted(random.Random(seed).sample(cuts, min(len(devices) - 1, len(cuts)))), len(numbers)]
    stages = tuple(
        tuple(program.names[node] for node in program.nodes[start:end]) for start, end in itertools.pairwise(chosen)
    )
    wanted = {name: devices[stage] for stage, names in enumerate(stages) for name in names}
    request = Request(resolve(devices), mode, placement=wanted, optimizer="sgd", profile=False)
    plan, captured = make_plan(model, frontend, args, kwargs, request)
    pipeline = Pipeline(microbatches=microbatches, schedule=schedule, stages=stages)
    return apply_captured(
        model, msgspec.structs.replace(plan, strategy="pipeline", pipeline=pipeline), frontend, captured
    )


def in_microbatches(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], microbatches: int, *, early: bool
) -> list[torch.Tensor]:
    """What a pipeline computes, in plain Python: the loss of each micro-batch, times its share, and its backward.

    Args:
        early: each backward pass right after its forward pass, as the sums of 1F1B are taken; else all at the end.
    """
    flat, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    total = next(leaf.shape[0] for leaf in flat if isinstance(leaf, torch.Tensor))
    parts = sizes(total, microbatches)
    pieces = [leaf.split(parts) if isinstance(leaf, torch.Tensor) else [leaf] * len(parts) for leaf in flat]
    losses = []
    for i, part in enumerate(parts):
        own_args, own_kwargs = pytree.tree_unflatten([piece[i] for piece in pieces], spec)
        loss = training_loss(model(*own_args, **own_kwargs))
        assert loss is not None
        losses.append(loss * (part / total))
        if early:
            losses[-1].backward()
    if not early:
        torch.stack(losses).sum().backward()
    return losses
