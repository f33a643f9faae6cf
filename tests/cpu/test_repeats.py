"""Layers that are alike are traced once, and the program is the one that tracing each of them gives."""

from __future__ import annotations

import enum
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import autosplit
from autosplit.capture import Frontend, frontend, repeats
from autosplit.program import Program, is_control

W, LAYERS = 8, 5
CALL = torch.ops.higher_order.invoke_subgraph


class Layer(nn.Module):
    def __init__(self, number: int, step: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(W, W), nn.Linear(W, W), nn.BatchNorm1d(W)
        self.number, self.step = number, step

    def forward(self, x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return self.step(self, x, *rest, **named)


class Net(nn.Module):
    def __init__(self, step: Callable[..., Any], call: Callable[..., Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(i, step) for i in range(LAYERS))
        self.call, self.head = call, nn.Linear(W, W)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = self.call(layer, x, i)
        return self.head(x)


def plain(m, x):
    return m.b(F.relu(m.a(x))) + x


def branches(m, x):
    return m.b(m.a(x)) if m.number % 2 else m.a(x).relu()


def writes_inside(m, x):
    h = m.a(x)
    h.relu_()
    h += 1
    return m.b(h)


def writes_argument(m, x):
    x.add_(1)
    return m.b(m.a(x))


def counts(m, x):
    m.number += 1
    return m.b(m.a(x))


def bakes_dtype(m, x):
    h = m.a(x)
    return m.b(h.to(x.dtype)) + x.to(h.dtype)


def casts(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = m.a(x)
    return m.b(h.float())


def without_grad(m, x):
    with torch.no_grad():
        h = m.a(x)
    return m.b(h)


def checkpointed(m, x):
    return checkpoint(lambda y: m.b(m.a(y)).relu(), x, use_reentrant=False)


def takes_tuple(m, x, pair, *, times, mask=None):
    return m.b(m.a(x)) * pair[0] + pair[1] * times


def takes_list(m, x, values):
    return m.b(m.a(x)) * values[0]


def one_by_one(layer, x, i):
    return layer(x)


def cast_late(layer, x, i):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=i > 2):
        return layer(x)


def grad_late(layer, x, i):
    with torch.set_grad_enabled(torch.is_grad_enabled() and i > 2):
        return layer(x)


def in_halves(layer, x, i):
    return torch.cat([layer(x[:2]), layer(x[2:])]) if i % 2 else layer(x)


def takes_number(m, x, times=None):
    return m.b(m.a(x)) * times


def takes_two(m, x, y):
    return m.b(m.a(x)) * (2 if x is y else 3) + y


def counted_by_parent(layer, x, i):
    layer.step.count = i
    return layer(x)


def noted_by_parent(layer, x, i):
    layer.step.notes["i"] = i
    return layer(x)


class Counted:
    """A step whose result depends on what is written to it between the calls of layers."""

    def __init__(self) -> None:
        self.count, self.notes = 0, {"i": 0}

    def __call__(self, m, x):
        return m.b(m.a(x)) * (1 + self.count + self.notes["i"])


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], int | None]] = {  # and graphs for the layers, if any
    "plain": (plain, one_by_one, 1),
    "a number of its own": (lambda m, x: m.b(m.a(x)) * m.number, one_by_one, None),
    "branches": (branches, one_by_one, None),
    "dropout": (lambda m, x: F.dropout(m.b(m.a(x)), 0.1, m.training), one_by_one, 1),
    "batch norm": (lambda m, x: m.norm(m.b(m.a(x))), one_by_one, 1),
    "writes inside": (writes_inside, one_by_one, 1),
    "writes an argument": (writes_argument, lambda layer, x, i: layer(x * 1), 1),
    "returns a view": (lambda m, x: m.b(m.a(x)).t().t(), one_by_one, 1),
    "returns two": (lambda m, x: (m.b(m.a(x)), x * 2), lambda layer, x, i: sum(layer(x)), 1),
    "returns its argument": (lambda m, x: x, one_by_one, None),
    "counts": (counts, one_by_one, None),
    "bakes a dtype": (bakes_dtype, one_by_one, 1),
    "bakes a dtype, cast late": (bakes_dtype, cast_late, 1),
    "grad late": (plain, grad_late, 1),
    "casts": (casts, one_by_one, None),
    "checkpoint": (checkpointed, one_by_one, None),
    "checkpoint around": (plain, lambda layer, x, i: checkpoint(layer, x, use_reentrant=False), None),
    "constants": (lambda m, x: m.b(m.a(x)) + torch.arange(W, device=x.device), one_by_one, 1),
    "random": (lambda m, x: m.b(m.a(x)) + torch.rand(W), one_by_one, 1),
    "a tuple": (takes_tuple, lambda layer, x, i: layer(x, (x.mean(), x.amax()), times=2), 1),
    "a number given": (takes_tuple, lambda layer, x, i: layer(x, (x, x), times=i), None),
    "a list": (takes_list, lambda layer, x, i: layer(x, [x, x]), 1),
    "under vmap": (lambda m, x: m.b(m.a(x)), lambda layer, x, i: torch.vmap(layer.forward)(x), None),
    "equal numbers": (takes_number, lambda layer, x, i: layer(x, times=(1, True, 1.0, True, 1.0)[i]), 2),
    "zeros": (takes_number, lambda layer, x, i: layer(x, (0.0, -0.0, 0.0, -0.0, 0.0)[i]), 2),
    "one tensor twice": (takes_two, lambda layer, x, i: layer(x, x) if i % 2 else layer(x, x * 2), 2),
    "asks for its class": (lambda m, x: m.b(m.a(x)) if type(m) is Layer else x * 2, one_by_one, 1),
    "written by the parent": (Counted(), counted_by_parent, None),
    "noted by the parent": (Counted(), noted_by_parent, None),
    "halves": (plain, in_halves, 2),
}


def graphs_of(capture: Callable[[], Program], monkeypatch: pytest.MonkeyPatch) -> tuple[Program, int | None]:
    """A program, and of how many graphs its layers are copies; None where each was traced as ever."""
    seen: list[int] = []

    def flatten(graph_module: fx.GraphModule) -> None:
        calls = [node for node in graph_module.graph.nodes if node.target is CALL]
        seen.append(len({call.args[0].target for call in calls}))
        repeats.flatten(graph_module)

    monkeypatch.setattr(frontend, "flatten", flatten)
    program = capture()
    return program, seen[-1] or None


def described(program: Program) -> tuple[list[Any], dict[str, Any]]:
    """All that is known of the nodes in order, and of the inputs, with storages numbered as they come."""
    storages: dict[int, int] = {}
    names = program.names

    def number(found: Any) -> list[int]:
        return sorted(storages.setdefault(storage, len(storages)) for storage in found)

    def told(node: fx.Node) -> Any:
        facts, named = program.facts[node], pytree.tree_map_only(fx.Node, names.get, (node.args, node.kwargs))
        return (
            names[node],
            None if node.op in ("placeholder", "get_attr") else node.target,
            str(named),
            [
                (number([leaf.storage]), leaf.size_bytes, leaf.storage_bytes, leaf.requires_grad)
                for leaf in facts.leaves
            ],
            (facts.is_tensor, facts.operators, facts.flops, facts.flops_dtype, facts.moved_bytes),
            sorted(names[argument] for argument in facts.differentiable),
            (number(facts.writes), len(facts.saved), sorted(facts.hidden.values()), facts.workspace_bytes),
            None if is_control(node) or node.op == "get_attr" else facts.form,
        )

    inputs = {names[node]: (program.inputs[node], told(node)) for node in sorted(program.inputs, key=names.__getitem__)}
    others = [node for node in program.facts if node.op not in ("placeholder", "output")]
    return [told(node) for node in others], inputs


def check_same(model: nn.Module, args: Any, kwargs: Any, mode: Any, monkeypatch: pytest.MonkeyPatch) -> int | None:
    with_regions = Frontend(model, type(model), serves=False)
    once, graphs = graphs_of(lambda: with_regions.capture(args, kwargs, mode), monkeypatch)
    each = Frontend(model, type(model)).capture(args, kwargs, mode)
    for mine, theirs in zip(described(once)[0], described(each)[0], strict=True):
        assert mine == theirs
    assert described(once)[1] == described(each)[1]
    assert [once.names[n] for n in once.results] == [each.names[n] for n in each.results]
    assert once.returned == each.returned
    twins = each.twins(once)
    assert twins is not None
    assert {each.names[n] for n in twins} == {once.names[n] for n in twins.values()}
    return graphs


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "train") for name in CASES), ("plain", "infer"), ("dropout", "infer")]
)
def test_same_program(name: str, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step, call, graphs = CASES[name]
    model = Net(step, call)
    classes = {path: type(module) for path, module in model.named_modules()}
    found = check_same(model, (torch.randn(4, W),), {}, mode, monkeypatch)
    assert {path: type(module) for path, module in model.named_modules()} == classes
    assert found == graphs


@pytest.mark.parametrize("inside", [True, False])
def test_hooks_of_one_layer(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(plain, one_by_one)
    layer: Any = model.layers[3]
    (layer.a if inside else layer).register_forward_hook(lambda module, args, out: out * 2)
    check_same(model, (torch.randn(4, W),), {}, "train", monkeypatch)


def test_layers_whose_class_cannot_be_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    class Base(nn.Module):
        def __init_subclass__(cls, *, name: str) -> None:
            made.append(name)

    made: list[str] = []

    class Named(Base, name="named"):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(W, W)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).relu()

    model = nn.Sequential(*(Named() for _ in range(LAYERS)))
    assert check_same(model, (torch.randn(4, W),), {}, "train", monkeypatch) == 1
    assert made == ["named"]
    assert not any("forward" in vars(module) for module in model.modules())


def small(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    ids, pixels = torch.zeros(2, 16, dtype=torch.long), torch.zeros(2, 3, 32, 32)
    deep = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 64}
    made: dict[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]] = {
        "llama": lambda: (
            transformers.LlamaForCausalLM(transformers.LlamaConfig(**deep, vocab_size=100, use_cache=False)),
            {"input_ids": ids, "labels": ids},
        ),
        "gpt2": lambda: (
            transformers.GPT2LMHeadModel(
                transformers.GPT2Config(n_layer=5, n_embd=32, n_head=4, vocab_size=100, use_cache=False)
            ),
            {"input_ids": ids, "labels": ids},
        ),
        "bert": lambda: (
            transformers.BertForMaskedLM(transformers.BertConfig(**deep, vocab_size=100)),
            {"input_ids": ids, "labels": ids},
        ),
        "vit": lambda: (
            transformers.ViTForImageClassification(transformers.ViTConfig(**deep, image_size=32, patch_size=8)),
            {"pixel_values": pixels},
        ),
        "resnet": lambda: (
            transformers.ResNetForImageClassification(
                transformers.ResNetConfig(
                    embedding_size=8, hidden_sizes=[16, 16, 32, 32], depths=[5, 2, 5, 2], layer_type="basic"
                )
            ),
            {"pixel_values": pixels},
        ),
    }
    return made[name]()


@pytest.mark.parametrize(("name", "graphs"), [("llama", 1), ("gpt2", 1), ("bert", 1), ("vit", 1), ("resnet", 2)])
def test_same_program_of_real_models(name: str, graphs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model, inputs = small(name)
    assert check_same(model, (), inputs, "train", monkeypatch) == graphs


def test_plan_applies_to_the_model_that_runs() -> None:
    model, inputs = small("llama")
    plan = autosplit.plan(model, "2x1GiB", kwargs=inputs, mode="infer", strategy="split", profile=False)
    want = model.eval()(**inputs)
    with torch.no_grad(), autosplit.sim.cluster("2x1GiB") as cluster:
        split = autosplit.partition(model, [str(d) for d in cluster.devices], kwargs=inputs, plan=plan, mode="infer")
        assert torch.equal(split(**inputs).logits, want.logits)


class Kind(enum.Enum):
    LOCAL = 1
    GLOBAL = 2


def by_kind(m, x):
    return m.b(m.a(x)) * (2 if m.kind is Kind.LOCAL else 3)


def one_module_under_another_name(layers):
    for i, layer in enumerate(layers):
        layer.named = {"first": layer.a if i % 2 else layer.b}


def one_module_twice(layers):
    for i, layer in enumerate(layers):
        layer.both = nn.ModuleList([layer.a, layer.a if i != 3 else layer.b])


def one_object_or_two(layers):
    for i, layer in enumerate(layers):
        layer.one = types.SimpleNamespace()
        layer.other = layer.one if i != 3 else types.SimpleNamespace()


def the_layer_before(layers):
    for layer, before in zip(layers[1:], layers, strict=False):
        layer.__dict__["before"] = before


def members_by_name(layers):
    for i, layer in enumerate(layers):
        layer.members, layer.pick = nn.ModuleDict({"p": nn.Linear(W, W), "q": nn.Linear(W, W)}), "q" if i == 3 else "p"


def kinds(layers):
    for i, layer in enumerate(layers):
        layer.kind = Kind.GLOBAL if i == 3 else Kind.LOCAL


def zeros(layers):
    for i, layer in enumerate(layers):
        layer.zero = -0.0 if i == 3 else 0.0


def words_of_other_types(layers):
    for layer, value in zip(layers, (1, True, 1.0, 1, 1), strict=True):
        layer.words = (value,)


def another_order(layers):
    for i, layer in enumerate(layers):
        layer.ordered = OrderedDict(first=2, last=3)
        if i == 3:
            layer.ordered.move_to_end("first")


def a_forward_of_its_own(layers):
    layers[3].a.forward = types.MethodType(lambda m, x: F.linear(x, m.weight) * 2, layers[3].a)


UNLIKE = {
    "class": (by_kind, kinds),
    "alias": (lambda m, x: m.b(m.named["first"](m.a(x))), one_module_under_another_name),
    "twice": (lambda m, x: m.both[1](m.both[0](x)), one_module_twice),
    "identity": (lambda m, x: m.a(x) if m.one is m.other else m.b(x), one_object_or_two),
    "sibling": (lambda m, x: m.b(x) if "before" not in m.__dict__ else m.before.a(x), the_layer_before),
    "member": (lambda m, x: m.members[m.pick](x), members_by_name),
    "zero": (lambda m, x: torch.full_like(m.a(x), m.zero), zeros),
    "types": (lambda m, x: m.a(x) + m.words[0], words_of_other_types),
    "order": (lambda m, x: m.a(x) * next(iter(m.ordered.values())), another_order),
    "forward": (lambda m, x: m.b(m.a(x)), a_forward_of_its_own),
}


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", UNLIKE)
def test_what_guards_do_not_tell_apart(name: str, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step, change = UNLIKE[name]
    model = Net(step, one_by_one)
    change(list(model.layers))
    check_same(model, (torch.randn(4, W),), {}, mode, monkeypatch)


def test_a_module_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda m, x, given: given(m.a(x)), lambda layer, x, i: layer(x, layer.a if i < 3 else layer.b))
    check_same(model, (torch.randn(4, W),), {}, "train", monkeypatch)


def test_a_plan_of_layers_of_two_kinds_counts_the_larger() -> None:
    class Wide(nn.Module):
        def __init__(self, kind: Kind) -> None:
            super().__init__()
            self.kind, self.a = kind, nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).repeat(1 if self.kind is Kind.LOCAL else 64, 1).relu()[: len(x)]

    model = nn.Sequential(*(Wide(Kind.GLOBAL if i == 4 else Kind.LOCAL) for i in range(7)))
    with pytest.raises(autosplit.CapacityError, match="'4/repeat' needs"):
        autosplit.plan(model, "2x8MiB", (torch.randn(1024, 64),), mode="train", optimizer="sgd", profile=False)
