"""What users do with a model: train it, copy it, save it, change its weights, compile it, call it in other forms."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from semantics import ROWS, Case, Net, W, assert_same, check, families, modes, observe, rows
from splitting import split_in_turns
from torch import nn
from torch.utils import _pytree as pytree

import autosplit
from autosplit import sim

# ---------------------------------------------------------------- forms of inputs and outputs


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor | None


@dataclass
class Result:
    logits: torch.Tensor
    extra: dict[str, Any]


pytree.register_dataclass(Result)


def structures(m, h, batch, *rest, flag=True, none=None, **named):
    a = m.l2(h * batch["pair"].left) if flag else h
    b = m.l3(batch["list"][0][1] + rest[0]) + named["shift"]
    assert none is None
    return {"pair": Pair(a, None), "deep": [(b, {"k": (a + b, 3)}), None, "text"], "flag": flag}


def dataclasses(m, h, given):
    return Result(m.l2(h * given.logits), {"sum": m.l3(given.extra["v"]), "n": 2, "none": given.extra["none"]})


def structured() -> tuple[Any, ...]:
    return {"pair": Pair(rows(), None), "list": [(None, rows())]}, rows()


FORMS = {
    "nested": Case(lambda: Net(structures), structured, lambda: {"shift": rows(1), "none": None, "flag": True}),
    "dataclasses": Case(
        lambda: Net(dataclasses), lambda: (Result(rows(), {"v": rows(), "none": None}),)
    ),
    "keywords only": Case(
        lambda: Net(lambda m, h, **k: m.l2(h * k["scale"]) + k["shift"]),
        kwargs=lambda: {"shift": rows(), "scale": rows(1)},
    ),
}  # fmt: skip

CASES = families(forms=FORMS)


@pytest.mark.parametrize(("case", "training"), modes(CASES))
def test_forms(case: Case, training: bool) -> None:
    check(case, training)


# ---------------------------------------------------------------- a split model and its twin


class Small(nn.Module):
    """A tied head, a normalisation with state, dropout, and three signatures."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, W)
        self.a, self.b = nn.Linear(W, 2 * W), nn.Linear(2 * W, W)
        self.norm, self.drop = nn.BatchNorm1d(W), nn.Dropout(0.2)
        self.head = nn.Linear(W, 16, bias=False)
        self.head.weight = self.embed.weight
        self.double()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None, *, hidden: bool = False) -> Any:
        x = self.embed(ids)
        if mask is not None:
            x = x * mask[..., None]
        x = self.drop(self.norm(self.b(F.gelu(self.a(x.mean(1))))))
        return (self.head(x), x) if hidden else self.head(x)


def ids(batch: int = ROWS, length: int = 5) -> torch.Tensor:
    return torch.randint(0, 16, (batch, length)).to("sim:0")


@pytest.fixture
def twins():
    """The unsplit model and the split one, both on open virtual devices."""
    with sim.cluster("3x64MiB") as cluster:
        torch.manual_seed(0)
        model = Small()
        unsplit = copy.deepcopy(model)
        split = split_in_turns(model, (ids(),), {}, [str(d) for d in cluster.devices])
        unsplit.to("sim:0")
        assert len({str(p.device) for p in split.parameters()}) > 1
        yield unsplit, split


CALL = Case(Small, grad=False)


def same(unsplit: nn.Module, split: nn.Module, *args: Any, **kwargs: Any) -> None:
    args = args or (ids(),)
    assert_same(observe(unsplit, args, kwargs, CALL), observe(split, args, kwargs, CALL))


def test_other_batches_lengths_signatures_and_modes(twins) -> None:
    plan = twins[1].plan
    for training in (True, False):
        for m in twins:
            m.train(training)
        for batch, length in ((3, 5), (4, 7), (2, 1), (9, 5)):
            given = ids(batch, length)
            same(*twins, given)
            same(*twins, given, (given > 3).double())
            same(*twins, given, hidden=True)
    assert twins[1].plan is plan


def steps(model: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], **options: Any) -> list[torch.Tensor]:
    """Three optimizer steps, each of two accumulated batches, clipped; the loss of each batch and what they led to."""
    torch.manual_seed(5)
    optimizer, seen = make(model), []
    for _ in range(3):
        for _ in range(2):
            given = ids(4)
            loss = F.cross_entropy(model(given), given[:, 0]) / 2
            loss.backward()
            seen.append(loss)
        # A sum over devices is taken in another order: the norm is equal to rounding, so nothing is clipped by it.
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        seen.append(norm.round(decimals=9))
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad(**options)
    seen += [*model.parameters(), *model.buffers()]
    return [value.detach().cpu().clone() for value in seen]


def groups(model: nn.Module) -> list[dict[str, Any]]:
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": decay, "weight_decay": 0.1}, {"params": rest, "lr": 0.01, "weight_decay": 0.0}]


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(groups(m), lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda m: torch.optim.AdamW(groups(m), lr=0.1),
    "Adam, for loop": lambda m: torch.optim.Adam(groups(m), lr=0.1, foreach=False, amsgrad=True),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters()),
}


@pytest.mark.parametrize("none", [True, False], ids=["grads to None", "grads to zero"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_loops(twins, name: str, none: bool) -> None:
    want, have = (steps(m, OPTIMIZERS[name], set_to_none=none) for m in twins)
    for expected, value in zip(want, have, strict=True):
        assert torch.equal(value, expected)
    assert all((p.grad is None) == none for p in twins[1].parameters())


def test_second_gradients(twins) -> None:
    found = []
    for m in twins:
        m.eval()
        weights = list(m.parameters())
        first = torch.autograd.grad(m(ids(4) * 0 + 3).pow(2).sum(), weights, create_graph=True)
        penalty = sum(g.pow(2).sum().cpu() for g in first)
        found.append([*first, *torch.autograd.grad(penalty, weights)])
    for want, have in zip(*found, strict=True):
        torch.testing.assert_close(have.cpu(), want.cpu(), rtol=1e-9, atol=1e-9)
    assert any(g.abs().sum() > 0 for g in found[1][len(found[1]) // 2 :])


def test_a_deepcopy_is_its_own_model(twins) -> None:
    unsplit, split = twins
    copied = copy.deepcopy(split)
    with torch.no_grad():
        split.b.weight.mul_(2)
    same(unsplit, copied)
    assert copied.head.weight is copied.embed.weight
    assert [p.device for p in copied.parameters()] == [p.device for p in split.parameters()]


def test_state_goes_through_a_file_both_ways(twins) -> None:
    unsplit, split = twins
    steps(split, OPTIMIZERS["SGD"])
    file = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in split.state_dict().items()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert unsplit.load_state_dict(state, strict=True).missing_keys == []
    same(unsplit, split)
    steps(unsplit, OPTIMIZERS["SGD"])
    split.load_state_dict(unsplit.state_dict(), strict=True)
    same(unsplit, split)
    with pytest.raises(RuntimeError, match="Missing key"):
        split.load_state_dict({}, strict=True)


def test_freezing_and_thawing(twins) -> None:
    for path, on in (("a", False), ("", False), ("b", True)):
        for m in twins:
            m.get_submodule(path).requires_grad_(on)
        same(*twins)


def test_apply_reaches_every_module(twins) -> None:
    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.25)

    for m in twins:
        m.apply(init)
    same(*twins)


def test_weights_replaced_at_their_home(twins) -> None:
    def replaced(m: nn.Module) -> None:
        torch.manual_seed(9)
        m.b.weight = nn.Parameter(torch.randn(W, 2 * W, dtype=torch.float64).to(m.b.weight.device))
        m.a.weight.data = torch.randn(2 * W, W, dtype=torch.float64).to(m.a.weight.device)
        m.a.bias.data.fill_(0.5)
        m.norm.running_mean = torch.ones(W, dtype=torch.float64).to(m.norm.running_mean.device)

    same(*twins)
    for m in twins:
        replaced(m)
    same(*twins)


def test_a_loaded_state_assigned_at_home(twins) -> None:
    unsplit, split = twins
    state = {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in unsplit.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if name not in ("embed.weight", "head.weight")}
    unsplit.load_state_dict(state, assign=True, strict=False)
    homes = {name: t.device for name, t in split.state_dict().items()}
    split.load_state_dict({name: t.clone().to(homes[name]) for name, t in state.items()}, assign=True, strict=False)
    same(unsplit, split)


def test_half_the_precision_later(twins) -> None:
    for m in twins:
        m.float().eval()
    same(*twins)


def test_pickling_the_module_itself_is_refused(twins) -> None:
    with pytest.raises(autosplit.PlanError, match=r"a split Small cannot be pickled: save its state_dict"):
        torch.save(twins[1], io.BytesIO())


def test_the_users_own_compiled_functions_are_not_compiled_again() -> None:
    torch.manual_seed(0)
    compiled: list[str] = []

    def backend(graph_module, example_inputs):
        compiled.append("one")
        return graph_module.forward

    mine, model = Small().eval(), Small().eval()
    other = torch.compile(mine, backend=backend)
    given = torch.randint(0, 16, (ROWS, 5))
    with torch.no_grad():
        before = other(given)
        first = len(compiled)
        with sim.cluster("2x64MiB") as cluster:
            split = split_in_turns(model, (given,), {}, [str(d) for d in cluster.devices])
            split(given)
            assert torch.equal(other(given), before)
            split(ids(4, 7))
            assert torch.equal(other(given), before)
    assert len(compiled) == first > 0


def test_a_model_compiled_before_it_is_split(twins) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    compiled = torch.compile(model, backend="eager")
    given = torch.randint(0, 16, (ROWS, 5))
    with torch.no_grad():
        want = compiled(given)
        split = autosplit.partition(model, ["sim:0", "sim:1"], (given,), placement={"a": "sim:0", "b": "sim:1"})
        assert torch.equal(split(given), want)
        assert torch.equal(compiled(given), want)
