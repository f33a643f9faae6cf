"""What users hang on modules: hooks, parametrizations, lazy weights, adapters, parts of other kinds."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from semantics import Case, Net, W, assert_same, check, families, modes, observe, of, place, rows
from splitting import split_in_turns, to
from torch import fx, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import autosplit
from autosplit import sim

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm` is deprecated:FutureWarning")

# ---------------------------------------------------------------- hooks


def with_hooks(*hooks) -> Net:
    """A model and a part with hooks: each is a name of a method that registers, the hook, and its options."""
    model = Net(lambda m, h: m.part(m.l2(h)), part=nn.Sequential(nn.Linear(W, W), nn.Tanh(), nn.Linear(W, W)))
    for place_, register, hook, options in hooks:
        getattr(model.get_submodule(place_), register)(hook, **options)
    return model


def scale_out(module, args, out):
    return out * 2


def shift_in(module, args):
    return (args[0] + 1,)


def with_keywords(module, args, kwargs, out):
    return out - args[0].mean()


def root_out(module, args, out):
    return {"first": out[0], "second": out[1] * args[0].sum()}


def keep_shape(module, args, out):
    module.last_shape = tuple(out.shape)


def gradient_in(module, grad_in, grad_out):
    return (grad_in[0] * 0.5,)


def gradient_out(module, grad_out):
    return (grad_out[0] * 3,)


def hooked_case(*hooks, **options) -> Case:
    return Case(partial(with_hooks, *hooks), **options)


HOOKS = {
    "forward": hooked_case(("part.0", "register_forward_hook", scale_out, {}),
                           ("part.2", "register_forward_hook", keep_shape, {})),
    "before forward": hooked_case(("part", "register_forward_pre_hook", shift_in, {}),
                                  ("l2", "register_forward_pre_hook", shift_in, {"prepend": True})),
    "with keywords": hooked_case(("part.2", "register_forward_hook", with_keywords, {"with_kwargs": True})),
    "on the root": hooked_case(("", "register_forward_hook", root_out, {}),
                               ("", "register_forward_pre_hook", shift_in, {})),
}  # fmt: skip


def test_hooks_registered_after_the_split() -> None:
    torch.manual_seed(0)
    model = with_hooks()
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        unsplit.to("sim:0")
        case = Case(with_hooks)
        for name, register, hook in (
            ("part.1", "register_forward_hook", scale_out),
            ("part", "register_forward_pre_hook", shift_in),
            ("", "register_forward_hook", root_out),
        ):
            handles = [getattr(m.get_submodule(name), register)(hook) for m in (unsplit, split)]
            assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))
        for handle in handles:
            handle.remove()
        assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))


def test_full_backward_hooks_on_the_root() -> None:
    calls: list[str] = []
    model = Net(lambda m, h: m.l2(h))
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        unsplit.to("sim:0")
        for name, m in (("unsplit", unsplit), ("split", split)):
            m.register_full_backward_hook(lambda module, gi, go, name=name: calls.append(name))
        case = Case(lambda: model)
        assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))
    assert calls == ["unsplit", "split"]


def test_parameter_hooks_registered_after_the_split() -> None:
    seen: list[str] = []
    model = Net(lambda m, h: m.l2(h))
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        unsplit.to("sim:0")
        for m in (unsplit, split):
            m.l2.weight.register_hook(lambda g: g * 3)
            m.l3.weight.register_post_accumulate_grad_hook(lambda p: seen.append(str(p.grad.shape)))
        case = Case(lambda: model)
        assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))
    assert len(seen) == 2


def test_state_dict_hooks_still_run() -> None:
    def rename(module, state, prefix, metadata):
        state[prefix + "renamed"] = state.pop(prefix + "l2.bias")

    def back(module, state, prefix, *rest):
        state[prefix + "l2.bias"] = state.pop(prefix + "renamed")

    model = Net(lambda m, h: m.l2(h))
    model.register_state_dict_post_hook(rename)
    model.register_load_state_dict_pre_hook(back)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        state = copy.deepcopy(split.state_dict())
        assert "renamed" in state
        assert "l2.bias" not in state
        with torch.no_grad():
            split.l2.bias.zero_()
        split.load_state_dict(state)
        assert torch.equal(split.l2.bias, state["renamed"])
        assert not torch.equal(split.l2.bias.cpu(), torch.zeros(W, dtype=torch.float64))


# ---------------------------------------------------------------- parametrizations


class Symmetric(nn.Module):
    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return v.triu() + v.triu(1).t()


def cached(m, h):
    with parametrize.cached():
        return m.l3(m.part(m.part(h)))


def symmetric() -> nn.Linear:
    layer = nn.Linear(W, W)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def part(wrap) -> Case:
    return of(lambda m, h: m.l3(m.part(m.l2(h))) + m.part(h), part=lambda: wrap(nn.Linear(W, W)))


PARAMETRIZATIONS = {
    "orthogonal": part(parametrizations.orthogonal),
    "orthogonal, by cayley": part(partial(parametrizations.orthogonal, orthogonal_map="cayley")),
    "spectral norm": part(parametrizations.spectral_norm),
    "spectral norm, old": part(spectral_norm),
    "weight norm": part(parametrizations.weight_norm),
    "weight norm, old": part(weight_norm),
    "one of the user's": of(lambda m, h: m.l3(m.part(m.l2(h))), part=symmetric),
    "cached": of(cached, part=symmetric),
}

# ---------------------------------------------------------------- lazy, scripted, traced


class Lazy(nn.Module):
    """Layers that learn their sizes at the first call."""

    def __init__(self, *, called: bool) -> None:
        super().__init__()
        self.inp, self.conv, self.out = nn.LazyLinear(W), nn.LazyConv1d(3, 3, padding=1), nn.LazyLinear(4)
        if called:
            self(torch.randn(2, 5, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(self.inp(x)).relu())


def traced() -> nn.Module:
    return fx.symbolic_trace(nn.Sequential(nn.Linear(W, W), nn.Tanh(), nn.Linear(W, W)).double())


KINDS = {
    "traced by fx": Case(traced, lambda: (rows(),), whole=True),
    "lazy, called before": Case(lambda: Lazy(called=True), lambda: (rows(2, 5, 6, dtype=torch.float32),), whole=True),
    "a transformer layer": of(
        lambda m, h: m.part(h[None])[0],
        part=lambda: nn.TransformerEncoderLayer(W, 2, 16, dropout=0.2, batch_first=True),
    ),
    "a container of parts": of(
        lambda m, h: m.parts["b"](m.parts["a"](h) * m.gains[0]) + m.gains[1],
        parts=lambda: nn.ModuleDict({"a": nn.Linear(W, W), "b": nn.Linear(W, W)}),
        gains=lambda: nn.ParameterList([torch.randn(W), torch.randn(W)]),
    ),
}

# ---------------------------------------------------------------- adapters


class LoRA(nn.Module):
    """A frozen layer and two small factors beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        like = layer.weight
        self.down = nn.Parameter(torch.randn(2, W, dtype=like.dtype, device=like.device))
        self.up = nn.Parameter(torch.zeros(W, 2, dtype=like.dtype, device=like.device) + 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + x @ self.down.t() @ self.up.t()


def adapted() -> Net:
    model = Net(lambda m, h: m.l3(m.l2(h)))
    model.requires_grad_(False)
    model.l2, model.l3 = LoRA(model.l2), LoRA(model.l3)
    return model


ADAPTERS = {"before the split": Case(adapted)}

CASES = families(hooks=HOOKS, parametrization=PARAMETRIZATIONS, kind=KINDS, adapter=ADAPTERS)


@pytest.mark.parametrize(("case", "training"), modes(CASES))
def test_modules(case: Case, training: bool) -> None:
    check(case, training)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_adapters_by_peft(training: bool) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["l1", "l2", "l3"], lora_dropout=0.2, init_lora_weights=False)
    model = peft.get_peft_model(Net(lambda m, h: m.l2(h).tanh()), config).double().train(training)
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = place(model, (x,), {}, [str(d) for d in cluster.devices], 0)
        unsplit.to("sim:0")
        case = Case(lambda: model)
        for _ in range(2):
            assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))
        assert isinstance(split, peft.PeftModel)
        assert list(peft.get_peft_model_state_dict(split)) == list(peft.get_peft_model_state_dict(unsplit))


def test_dynamic_quantisation_is_refused_by_its_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is on its way out
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(W, W), nn.Linear(W, W)).eval())
    with sim.cluster("2x64MiB") as cluster, pytest.raises(autosplit.AutosplitError, match="Sequential"):
        autosplit.partition(model, cluster.devices, (torch.randn(3, W),), strategy="split")
    assert model(torch.randn(3, W)).shape == (3, W)


def test_a_part_moves_with_its_hooks_to_a_copy() -> None:
    model = with_hooks(("part.0", "register_forward_hook", scale_out, {}))
    with sim.cluster("2x64MiB") as cluster:
        args = to((rows(),), "sim:0")
        split = split_in_turns(model, args, {}, [str(d) for d in cluster.devices])
        copied = copy.deepcopy(split)
        case = Case(lambda: model)
        assert_same(observe(split, args, {}, case), observe(copied, args, {}, case))


def test_an_exported_program() -> None:
    unsplit = torch.export.export(nn.Sequential(nn.Linear(W, W), nn.Tanh(), nn.Linear(W, W)).double(), (rows(),))
    with sim.cluster("2x64MiB") as cluster:
        x = rows()
        want = unsplit.module()(x)
        split = split_in_turns(unsplit.module(), (x,), {}, [str(d) for d in cluster.devices])
        assert torch.equal(split(x), want)
