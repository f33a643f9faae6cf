"""One model per case, split where it hurts, and compared in everything that a caller can see."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from splitting import split_at_random, split_in_turns, sums_may_reorder, to
from torch import nn
from torch.utils import _pytree as pytree

from autosplit import sim

W = 8
ROWS = 3
Seen = dict[str, Any]


class Net(nn.Module):
    """Linear layers ``l0`` to ``l3``, members of the case's own, and a forward of the case's own."""

    def __init__(self, step: Callable[..., Any], /, **members: Any) -> None:
        super().__init__()
        for i in range(4):
            setattr(self, f"l{i}", nn.Linear(W, W))
        for name, member in members.items():
            if isinstance(member, torch.Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)
        self.double()
        self.step = step

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.l3(self.l0(x)), self.step(self, self.l1(x), *args, **kwargs)


def rows(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A random input."""
    return torch.randn(shape or (ROWS, W), dtype=dtype)


@dataclass(frozen=True)
class Case:
    """A model and its inputs.

    Attributes:
        build: makes the model.
        args: makes the positional inputs after the first, or all of them with ``whole``.
        kwargs: makes the keyword inputs.
        grad: whether inputs ask for gradients in training.
        home: where the unsplit model runs; "cpu" for a model that names that device itself.
        train, eval: the modes to compare in.
        calls: how often each model is called; a later call meets what the one before it left.
        context: what both models are called in.
    """

    build: Callable[[], nn.Module]
    args: Callable[[], tuple[Any, ...]] = tuple
    kwargs: Callable[[], dict[str, Any]] = dict
    whole: bool = False
    grad: bool = True
    home: str = "sim:0"
    train: bool = True
    eval: bool = True
    calls: int = 2
    context: Callable[[str], AbstractContextManager[Any]] = nullcontext

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one call, on the host."""
        return (self.args() if self.whole else (rows(), *self.args())), self.kwargs()


def of(step: Callable[..., Any], /, **members: Callable[[], Any]) -> Case:
    """A case that needs no more than a step; ``members`` are made anew for each model."""
    return Case(lambda: Net(step, **{name: make() for name, make in members.items()}))


def families(**named: dict[str, Case]) -> dict[str, Case]:
    """The cases of several families by one name each."""
    return {f"{family}: {name}": case for family, cases in named.items() for name, case in cases.items()}


def modes(cases: dict[str, Case]) -> list[ParameterSet]:
    """Each case with each mode that it is compared in, as test parameters."""
    return [
        pytest.param(case, training, id=f"{name}, {'train' if training else 'eval'}")
        for name, case in cases.items()
        for training in (True, False)
        if (case.train if training else case.eval)
    ]


def check(case: Case, training: bool) -> None:
    """Both models compute, write, return and train the same, on two placements."""
    for turn in range(2):
        model, unsplit = _build(case, training, turn), _build(case, training, turn)
        args, kwargs = case.inputs()
        with sim.cluster("3x64MiB") as cluster:
            args, kwargs = to((args, kwargs), "sim:0")
            split = place(model, args, kwargs, [str(d) for d in cluster.devices], turn)
            unsplit.to(case.home)
            for _ in range(case.calls):
                want = observe(unsplit, *to((args, kwargs), case.home), case)
                have = observe(split, args, kwargs, case)
                assert_same(want, have, exact=not sums_may_reorder(split))


def _build(case: Case, training: bool, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return case.build().train(training)


def place(model: nn.Module, args: Any, kwargs: Any, devices: list[str], turn: int) -> nn.Module:
    """The model split by the first or second placement; never on one device."""
    if turn == 0:
        split = split_in_turns(model, args, kwargs, devices[:2])
    else:
        split = split_at_random(model, args, kwargs, devices, turn)
    assert len(set(split.plan.placement.values())) > 1, "the case cuts nothing"
    return split


def observe(model: nn.Module, args: Any, kwargs: Any, case: Case) -> Seen:
    """Everything that one call shows: outputs and their form, gradients, buffers, inputs, and the random state."""
    args, kwargs = copy.deepcopy((tuple(args), dict(kwargs)))
    given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if model.training and case.grad:
        for leaf in given:
            if leaf.is_floating_point():
                leaf.requires_grad_()
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t * 1 if t.requires_grad else t, (args, kwargs))
    model.zero_grad()
    torch.manual_seed(7)
    with torch.set_grad_enabled(model.training), case.context(given[0].device.type):
        out = model(*args, **kwargs)
    leaves, structure = pytree.tree_flatten(out)
    seen: Seen = {"structure": str(structure)}
    for i, leaf in enumerate(leaves):
        is_tensor = isinstance(leaf, torch.Tensor)
        seen[f"out {i}"] = leaf.detach() if is_tensor else leaf
        seen[f"form {i}"] = (leaf.dtype, leaf.requires_grad, leaf.is_leaf) if is_tensor else None
    loss = weighted(leaves)
    if loss is not None:
        loss.backward()
    seen |= {f"grad of input {i}": leaf.grad for i, leaf in enumerate(given) if leaf.is_leaf}
    seen |= {f"grad {name}": p.grad for name, p in model.named_parameters()}
    seen |= {f"parameter {name}": p for name, p in model.named_parameters()}
    seen |= {f"buffer {name}": buffer for name, buffer in model.named_buffers()}
    after = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    seen |= {f"input {i}": leaf for i, leaf in enumerate(after)}
    seen["random"] = torch.get_rng_state()
    return {name: value.detach().cpu().clone() if _is_tensor(value) else value for name, value in seen.items()}


def weighted(leaves: list[Any]) -> torch.Tensor | None:
    """A loss that tells every element of every output apart; None when nothing carries a gradient."""
    total: torch.Tensor | None = None
    for leaf in leaves:
        if not _is_tensor(leaf) or not leaf.requires_grad:
            continue
        real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
        weights = torch.linspace(0.5, 1.5, real.numel(), dtype=real.dtype).reshape(real.shape).to(real.device)
        part = (real * weights).sum().cpu().double()
        total = part if total is None else total + part
    return total


def assert_same(want: Seen, have: Seen, exact: bool = True) -> None:
    """Equal bit for bit; gradients only closely where their sums are taken in another order."""
    assert list(have) == list(want)
    for name, expected in want.items():
        if not _is_tensor(expected) or not _is_tensor(have[name]):
            assert have[name] == expected, name
        elif exact or not name.startswith("grad"):
            assert have[name].dtype == expected.dtype, name
            assert torch.equal(have[name], expected), (name, have[name], expected)
        else:
            torch.testing.assert_close(have[name], expected, rtol=1e-10, atol=1e-10, msg=name)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
