"""What one graph cannot hold, and what a call after the plan brings that the plan did not know: equal all the same.

Weights that are elsewhere than the plan put them, modules put in later, inputs that share memory, hooks, gradients
taken in forward: some stay in the graph, some run in plain Python, which is warned of once.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from semantics import Case, Net, W, assert_same, check, families, modes, observe, of, rows
from splitting import split_in_turns
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

import autosplit
from autosplit import sim

pytestmark = [
    pytest.mark.filterwarnings("ignore:this and later calls like it run in plain Python"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


def ring(m, h):
    m.ring[m.count % 4] = m.l2(h).detach().mean(0)
    m.count.add_(1)
    return m.l3(h) @ m.ring.t()


def none_buffer(m, h):
    if m.cache is None:
        m.cache = m.l2(h).detach()
    return m.l3(h) + m.cache


def with_none_buffer() -> Net:
    model = Net(none_buffer)
    model.register_buffer("cache", None)
    return model


def reads_what_it_kept(m, h):
    before = m.last if hasattr(m, "last") else torch.zeros_like(h)
    m.last = m.l2(h).detach()
    return m.l3(h) + before


def intermediate_leaf(m, h):
    a = m.l2(h)
    return a * 2, a.detach().requires_grad_(m.training) * 3


def autograd_grad(m, h):
    with torch.enable_grad():
        at = h.detach().requires_grad_()
        (force,) = torch.autograd.grad(m.l2(at).pow(2).sum(), at, create_graph=m.training)
    return m.l3(h) + force


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(v):
        return v.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable()

    @staticmethod
    def backward(ctx, g):
        return g


def shared_storage() -> Net:
    whole = torch.randn(2, W)

    def step(m, h):
        m.whole.add_(1)
        return m.l2(h) * m.part + m.l3(h) * m.whole[1]

    model = Net(step)
    model.register_buffer("whole", whole.double())
    model.register_buffer("part", model.whole[0])
    return model


def hooked(register, hook, **options) -> Net:
    model = Net(lambda m, h: m.l3(m.part(m.l2(h))), part=nn.Sequential(nn.Linear(W, W), nn.Tanh(), nn.Linear(W, W)))
    getattr(model.part, register)(hook, **options)
    return model


def kept_gradient(m, h):
    a = m.l2(h)
    if a.requires_grad:
        a.retain_grad()
    return m.l3(a), a


class Floats(nn.Module):
    def __init__(self, step) -> None:
        super().__init__()
        self.l0, self.l1, self.l2 = (nn.Linear(W, W) for _ in range(3))
        self.step = step

    def forward(self, x):
        return self.l2(self.step(self, self.l1(self.l0(x))))


def branch_on_dtype(m, h):
    return h * 2 if h.dtype == torch.bfloat16 else h * 3


def branch_on_autocast(m, h):
    return h * 2 if torch.is_autocast_enabled(h.device.type) else h * 3


def under_autocast(step) -> Case:
    return Case(
        lambda: Floats(step), lambda: (rows(dtype=torch.float32),), whole=True,
        context=partial(torch.autocast, dtype=torch.bfloat16),
    )  # fmt: skip


CASES = families(
    buffer={
        "indexed by a number in a buffer": Case(
            lambda: Net(ring, ring=rows(4, W), count=torch.zeros((), dtype=torch.int64))
        ),
        "batch norm, cumulative": of(lambda m, h: m.l2(m.norm(h)), norm=lambda: nn.BatchNorm1d(W, momentum=None)),
        "None until the first call": Case(with_none_buffer),
        "kept on an attribute and read": of(reads_what_it_kept),
    },
    gradient={
        "of an intermediate leaf": of(intermediate_leaf),
        "taken in forward": of(autograd_grad),
        "checkpoint_sequential": of(
            lambda m, h: checkpoint_sequential(m.inner, 2, m.l2(h), use_reentrant=False),
            inner=lambda: nn.Sequential(*(nn.Linear(W, W) for _ in range(4))),
        ),
        "function without context": of(lambda m, h: Straight.apply(m.l2(h) * 3)),
        "retain_grad on an intermediate": of(kept_gradient),
        "written into an input that has one": Case(
            lambda: Net(lambda m, h, y: m.l3(y.mul_(m.l2(h)))), lambda: (rows(),)
        ),
        "full backward hook": Case(
            lambda: hooked("register_full_backward_hook", lambda m, gi, go: (gi[0] * 0.5,)), eval=False
        ),
        "full backward pre-hook": Case(
            lambda: hooked("register_full_backward_pre_hook", lambda m, go: (go[0] * 3,)), eval=False
        ),
    },
    autocast={
        "branch on the dtype": under_autocast(branch_on_dtype),
        "branch on autocast": under_autocast(branch_on_autocast),
    },
)


@pytest.mark.parametrize(("case", "training"), modes(CASES))
def test_fall(case: Case, training: bool) -> None:
    check(case, training)


def doubled(parameter: torch.Tensor) -> None:
    parameter.grad.mul_(2)


def test_parameter_hooks_registered_before_the_split() -> None:
    def hook(m):
        m.l2.weight.register_hook(lambda g: g * 3)
        m.l3.weight.register_post_accumulate_grad_hook(doubled)

    model = Net(lambda m, h: m.l2(h))
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        unsplit.to("sim:0")
        hook(model)
        hook(unsplit)
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        case = Case(lambda: model)
        assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))


def test_inputs_that_share_memory() -> None:
    def step(m, h, y, z):
        y.add_(1)
        return m.l2(h) * z.sum()

    model = Net(step).eval()
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster, torch.no_grad():
        x, y = rows().to("sim:0"), rows().to("sim:0")
        split = split_in_turns(model, (x, y, y[:1]), {}, [str(d) for d in cluster.devices])
        unsplit.to("sim:0")
        other = y.clone()
        want, have = unsplit(x, y, y[:1]), split(x, other, other[:1])
        assert torch.equal(want[1].cpu(), have[1].cpu())


def test_an_error_inside_a_region_closes_it() -> None:
    def step(m, h):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            big = m.l2(h).repeat(m.times, 1)
        return m.l3(h) + big.sum()

    model = Net(step)
    model.times = 1
    with sim.cluster("2x8MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        split(x)
        split.times = 2**20
        with torch.enable_grad(), torch.autocast("sim", enabled=False), torch.autocast("cpu", enabled=False):
            with pytest.raises(torch.OutOfMemoryError):
                split(x)
            seen = torch.is_grad_enabled(), torch.is_autocast_enabled("sim"), torch.is_autocast_enabled("cpu")
        assert seen == (True, False, False)


@pytest.mark.parametrize("device", ["sim:0", "cpu"])
def test_moving_the_split_as_a_whole(device: str) -> None:
    model = Net(lambda m, h: m.l2(h))
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        unsplit.to(device)
        case = Case(lambda: model)
        split(x)
        split.to(device)
        x = x.to(device)
        assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))


def test_a_weight_from_the_host_put_in_later() -> None:
    model = Net(lambda m, h: m.l2(h))
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        fresh = torch.randn(W, W, dtype=torch.float64)
        split.l2.weight = nn.Parameter(fresh.clone())
        unsplit.l2.weight = nn.Parameter(fresh.clone())
        unsplit.to("sim:0")
        case = Case(lambda: model)
        assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))


def test_a_tie_that_a_loaded_state_cuts() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.l1, self.head = nn.Embedding(9, W), nn.Linear(W, W), nn.Linear(W, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.l1(self.embed(ids)))

    torch.manual_seed(0)
    model = Tied().eval()
    unsplit = copy.deepcopy(model)
    with sim.cluster("3x64MiB") as cluster, torch.no_grad():
        ids = torch.arange(6).to("sim:0")
        split = split_in_turns(model, (ids,), {}, [str(d) for d in cluster.devices])
        unsplit.to("sim:0")
        split(ids)
        state = {name: torch.rand_like(t) for name, t in unsplit.state_dict().items()}
        unsplit.load_state_dict(state, assign=True)
        homes = {name: t.device for name, t in split.state_dict().items()}
        split.load_state_dict({name: t.clone().to(homes[name]) for name, t in state.items()}, assign=True)
        assert torch.equal(unsplit(ids).cpu(), split(ids).cpu())


def test_an_adapter_added_after_the_split() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, h: m.l2(m.l1(h)))
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        unsplit.to("sim:0")
        for m in (unsplit, split):
            torch.manual_seed(1)
            m.requires_grad_(False)
            m.l2 = LoRA(m.l2)
        case = Case(lambda: model)
        assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))


class LoRA(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        like = layer.weight
        self.down = nn.Parameter(torch.randn(2, W, dtype=like.dtype, device=like.device))
        self.up = nn.Parameter(torch.zeros(W, 2, dtype=like.dtype, device=like.device) + 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + x @ self.down.t() @ self.up.t()


def test_a_wider_layer_put_in_later() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, h: m.l2(h))
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        unsplit.to("sim:0")
        case = Case(lambda: model)
        assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))
        for m in (unsplit, split):
            torch.manual_seed(4)
            m.l2 = nn.Sequential(nn.Linear(W, 3 * W), nn.Linear(3 * W, W)).double().to(m.l2.weight.device)
        assert_same(observe(unsplit, (x,), {}, case), observe(split, (x,), {}, case))


def test_a_compiled_split_computes_the_same() -> None:
    model = Net(lambda m, h: m.l2(h))
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = rows().to("sim:0")
        split = split_in_turns(model, (x,), {}, [str(d) for d in cluster.devices])
        unsplit.to("sim:0")
        compiled = torch.compile(split, backend="eager")
        for given in (x, rows(5, W).to("sim:0")):
            want, have = unsplit(given), compiled(given)
            assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(want, have, strict=True))


def test_buffers_that_share_memory_and_are_written_are_refused() -> None:
    with pytest.raises(autosplit.PlanError, match="'whole' and 'part' of Net share memory"):
        autosplit.plan(shared_storage(), "2x64MiB", (rows(),))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.LazyLinear(W), nn.LazyBatchNorm1d(), nn.LazyLinear(4)

    def forward(self, x):
        return self.out(self.norm(self.inp(x)).relu())


@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_lazy_model_is_initialised_and_split(with_inputs: bool) -> None:
    model, x = Lazy(), torch.randn(5, 6)
    with pytest.raises(autosplit.PlanError, match="lazy weights"):
        autosplit.plan(model, "2x64MiB", (x,))
    with sim.cluster("2x64MiB") as cluster:
        where = {"inp": "sim:0", "norm": "sim:1", "out": "sim:1"}
        x = x.to("sim:0")
        split = autosplit.partition(model, cluster.devices, (x,) if with_inputs else None, placement=where)
        torch.manual_seed(3)
        have = split(x)
        assert type(split.inp) is nn.Linear
        assert split.norm.num_batches_tracked == 1
        unsplit = copy.deepcopy(nn.ModuleDict({"inp": split.inp, "norm": split.norm, "out": split.out})).to("cpu")
        unsplit.norm.reset_running_stats()
        assert torch.equal(Lazy.forward(unsplit, x.cpu()), have.cpu())
