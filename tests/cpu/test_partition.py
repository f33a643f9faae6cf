"""The result still is the user's model: class, names, identity, modes, later shapes, hooks, copies."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import autosplit
from autosplit import sim


class Net(nn.Module):
    """A small network with everything that has to survive a split."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.GELU()) for _ in range(3))
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.full((16,), 0.5), persistent=False)
        self.register_buffer("memory", torch.zeros(16))

    def forward(
        self, ids: torch.Tensor, *, shift: float = 0.0, extra: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        x = self.embed(ids).mean(1) * self.scale
        for block in self.blocks:
            x = x + block(x)
        if extra is not None:
            x = x + extra
        if self.training:
            self.steps.add_(1)
            self.memory = 0.9 * self.memory + 0.1 * x.detach().mean(0)
        return {"logits": self.head(self.drop(x)) + shift, "hidden": x}

    def custom(self) -> str:
        return "kept"


PLACEMENT = {"embed": "sim:0", "blocks.0": "sim:1", "blocks.1": "sim:2", "blocks.2": "sim:1", "head": "sim:2"}
IDS = torch.arange(24).reshape(4, 6) % 32


@pytest.fixture
def cluster():
    with sim.cluster("3x64MiB") as opened:
        yield opened


def run(model: nn.Module, ids: torch.Tensor, **kwargs) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    out = model(ids, **kwargs)
    seen = dict(out)
    if model.training:
        model.zero_grad()
        F.cross_entropy(out["logits"], ids[:, 0].to(out["logits"].device)).backward()
        seen |= {f"grad {name}": p.grad for name, p in model.named_parameters()}
    seen |= dict(model.named_buffers())
    return {name: value.detach().cpu().clone() for name, value in seen.items()}


def assert_same(want: dict[str, torch.Tensor], have: dict[str, torch.Tensor]) -> None:
    assert list(have) == list(want)
    for name, value in want.items():
        assert torch.equal(have[name], value), name


def pair(**options) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Net()
    unsplit = copy.deepcopy(model).to("sim:0")
    return unsplit, autosplit.partition(model, ["sim:0", "sim:1", "sim:2"], **options)


def split_pair() -> tuple[nn.Module, nn.Module]:
    return pair(args=(IDS.to("sim:0"),), placement=PLACEMENT)


def test_it_is_the_same_object_of_a_subclass(cluster) -> None:
    model = Net()
    wanted = dict(model.named_parameters())
    names = list(model.state_dict())
    split = autosplit.partition(model, cluster.devices, (IDS.to("sim:0"),), placement=PLACEMENT)
    assert split is model
    assert isinstance(split, Net)
    assert type(split).__name__ == "Net"
    assert type(split) is not Net
    assert split.custom() == "kept"
    assert inspect.signature(split.forward) == inspect.signature(Net().forward)
    assert list(split.state_dict()) == names
    assert all(split.get_parameter(name) is parameter for name, parameter in wanted.items())
    assert split.head.weight is split.embed.weight
    assert {str(p.device) for p in split.parameters()} == {"sim:0", "sim:1", "sim:2"}
    assert split.plan.strategy == "split"


def test_training_and_inference_are_equal_and_modes_switch(cluster) -> None:
    unsplit, split = split_pair()
    ids = IDS.to("sim:0")
    for training in (True, False, True):
        unsplit.train(training)
        split.train(training)
        assert_same(run(unsplit, ids), run(split, ids))
    assert split.steps == 2


def test_other_batches_lengths_and_arguments_need_no_new_plan(cluster) -> None:
    unsplit, split = split_pair()
    plan = split.plan
    for batch, length, shift in ((4, 6, 0.0), (2, 6, 0.0), (5, 9, 0.0), (7, 3, 1.5)):
        ids = (torch.arange(batch * length).reshape(batch, length) % 32).to("sim:0")
        assert_same(run(unsplit, ids, shift=shift), run(split, ids, shift=shift))
    extra = torch.ones(16, device="sim:0")
    assert_same(run(unsplit, ids, extra=extra), run(split, ids, extra=extra))
    assert split.plan is plan


def test_outputs_return_where_the_inputs_were(cluster) -> None:
    _, split = split_pair()
    for device in ("sim:0", "sim:1", "cpu"):
        assert str(split(IDS.to(device))["logits"].device) == device


def test_without_inputs_it_is_planned_at_the_first_call(cluster) -> None:
    torch.manual_seed(0)
    model = Net()
    unsplit = copy.deepcopy(model).to("sim:0")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)  # made before anything is placed
    split = autosplit.partition(model, cluster.devices, placement=PLACEMENT)
    with pytest.raises(autosplit.PlanError, match="not planned yet: call the model once, or pass args"):
        _ = split.plan
    assert all(p.device.type == "cpu" for p in split.parameters())
    reference = torch.optim.AdamW(unsplit.parameters(), lr=0.1)
    ids = IDS.to("sim:0")
    for _ in range(3):
        assert_same(run(unsplit, ids), run(split, ids))
        reference.step()
        optimizer.step()
    assert len({str(p.device) for p in split.parameters()}) == 3


def test_hooks_run_once_also_at_the_first_call(cluster) -> None:
    model, calls = Net(), []
    model.register_forward_pre_hook(lambda module, args: calls.append("root"))
    split = autosplit.partition(model, cluster.devices, placement=PLACEMENT)
    split(IDS.to("sim:0"))
    split(IDS.to("sim:0"))
    assert calls == ["root", "root"]


def test_a_fit_runs_on_one_device_and_says_how_to_use_all(cluster) -> None:
    unsplit, split = pair(args=(IDS.to("sim:0"),))
    assert split.plan.strategy == "replicate"
    assert "torchrun --nproc-per-node=3" in split.plan.reason
    assert {str(p.device) for p in split.parameters()} == {"sim:0"}
    assert_same(run(unsplit, IDS.to("sim:0")), run(split, IDS.to("sim:0")))


def test_a_deepcopy_is_split_by_the_same_plan(cluster) -> None:
    unsplit, split = split_pair()
    other = copy.deepcopy(split)
    assert_same(run(unsplit, IDS.to("sim:0")), run(other, IDS.to("sim:0")))
    assert all(a is not b for a, b in zip(split.parameters(), other.parameters(), strict=True))


def test_a_split_model_can_be_partitioned_again(cluster) -> None:
    unsplit, split = split_pair()
    again = autosplit.partition(split, cluster.devices, (IDS.to("sim:0"),), placement={**PLACEMENT, "embed": "sim:1"})
    assert type(again).__mro__[1] is Net
    assert str(again.embed.weight.device) == "sim:1"
    assert_same(run(unsplit, IDS.to("sim:0")), run(again, IDS.to("sim:0")))


def test_a_plan_goes_through_a_file(cluster, tmp_path) -> None:
    torch.manual_seed(0)
    model = Net()
    unsplit = copy.deepcopy(model).to("sim:0")
    plan = autosplit.plan(model, cluster.devices, (IDS.to("sim:0"),), placement=PLACEMENT)
    assert all(p.device.type == "cpu" for p in model.parameters())
    plan.save(tmp_path / "plan.json")
    loaded = autosplit.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert_same(run(unsplit, IDS.to("sim:0")), run(autosplit.apply(model, loaded), IDS.to("sim:0")))


def test_state_dict_loads_into_the_unsplit_model_and_back(cluster) -> None:
    unsplit, split = split_pair()
    fresh = Net().to("sim:0")
    fresh.load_state_dict(split.state_dict())
    split.load_state_dict(fresh.state_dict())
    assert_same(run(unsplit, IDS.to("sim:0")), run(split, IDS.to("sim:0")))


def test_verify_passes_and_fails(cluster) -> None:
    unsplit, split = split_pair()
    before = {name: p.grad for name, p in split.named_parameters()}
    steps = split.steps.item()
    autosplit.verify(unsplit, split, (IDS,))
    assert split.steps.item() == steps
    assert {name: p.grad for name, p in split.named_parameters()} == before
    with torch.no_grad():
        split.blocks[1][0].weight[0, 0] += 1e-3
    with pytest.raises(autosplit.VerifyError, match=r"output\['logits'\]: the split model differs by up to"):
        autosplit.verify(unsplit, split, (IDS,))
    autosplit.partition(Net(), cluster.devices, (IDS,), placement=PLACEMENT, verify=True)


def test_tied_weights_stay_tied_and_equal_after_training(cluster) -> None:
    unsplit, split = split_pair()
    for model in (unsplit, split):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            run(model, IDS.to("sim:0"))
            optimizer.step()
    assert split.head.weight is split.embed.weight
    for want, have in zip(unsplit.parameters(), split.parameters(), strict=True):
        assert torch.equal(want.cpu(), have.cpu())


def test_strategy_split_splits_what_would_fit(cluster) -> None:
    unsplit, split = pair(args=(IDS.to("sim:0"),), strategy="split")
    assert split.plan.strategy == "split"
    assert len(set(split.plan.placement.values())) > 1
    want, have = run(unsplit, IDS.to("sim:0")), run(split, IDS.to("sim:0"))
    assert torch.equal(want["logits"], have["logits"])


def test_more_than_a_handful_of_models_of_one_class(cluster) -> None:
    # Dynamo limits recompiles by code object: each split has its own, or the ninth would fail.
    for _ in range(12):
        split = autosplit.partition(Net(), cluster.devices, (IDS.to("sim:0"),), placement=PLACEMENT)
        split(IDS.to("sim:0"))


class ReadsItsSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns, _ = x.shape
        return self.b(self.a(x).view(rows, columns, 2, 4).transpose(1, 2).reshape(rows, -1, 8)) / columns


def test_a_model_that_reads_its_sizes_takes_other_shapes(cluster) -> None:
    # Sizes become inputs of the graph at the second shape: numbers, which are on no device.
    model = ReadsItsSizes()
    unsplit = copy.deepcopy(model).to("sim:0")
    split = autosplit.partition(model, cluster.devices, (torch.ones(4, 6, 8),), placement={"a": "sim:0", "b": "sim:1"})
    for rows, columns in ((4, 6), (5, 6), (2, 9), (1, 1), (4, 6)):
        x = torch.randn(rows, columns, 8, device="sim:0")
        assert torch.equal(unsplit(x).cpu(), split(x).cpu())


@pytest.mark.parametrize(
    "options", [{"mode": "training"}, {"strategy": "splitt"}, {"objective": "speed"}], ids=lambda o: next(iter(o))
)
def test_a_misspelled_choice_is_refused(cluster, options) -> None:
    with pytest.raises(autosplit.PlanError, match=r"expected one of .*(train|split|latency)"):
        autosplit.partition(Net(), cluster.devices, (IDS,), **options)


def test_the_commonest_slips_are_named(cluster) -> None:
    with pytest.raises(autosplit.PlanError, match="args is a Tensor: pass a tuple"):
        autosplit.plan(Net(), cluster.devices, IDS)
    with pytest.raises(autosplit.PlanError, match=r"plan file 'plan\.json': No such file"):
        autosplit.apply(Net(), "plan.json")
    with pytest.raises(autosplit.PlanError, match="plan is a dict"):
        autosplit.apply(Net(), {"placement": {}})


def test_a_cluster_of_virtual_devices_is_taken_as_it_is(cluster) -> None:
    assert autosplit.plan(Net(), cluster, (IDS,)).cluster.names == ("sim:0", "sim:1", "sim:2")


def test_the_models_own_error_is_named() -> None:
    said = r"raised RuntimeError: mat1 and mat2 shapes cannot be multiplied .* at .*test_partition\.py:\d+"
    with pytest.raises(autosplit.CaptureError, match=said):
        autosplit.plan(ReadsItsSizes(), "1x1GiB", (torch.ones(4, 6, 7),))


def test_identical_devices_are_used_from_the_first() -> None:
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(6)))
    plan = autosplit.plan(model, "4x20MiB", (torch.ones(1, 512),), mode="train", optimizer="adamw")
    used = list(dict.fromkeys(plan.placement.values()))
    assert used == [f"gpu:{i}" for i in range(len(used))]
    assert len(used) > 1


def test_inference_mode_and_gradients_of_inputs(cluster) -> None:
    model = ReadsItsSizes()
    unsplit = copy.deepcopy(model).to("sim:0")
    split = autosplit.partition(model, cluster.devices, (torch.ones(4, 6, 8),), placement={"a": "sim:1", "b": "sim:2"})
    x = torch.randn(4, 6, 8, device="sim:0")
    with torch.inference_mode():
        assert torch.equal(unsplit(x).cpu(), split(x).cpu())
    gradients = []
    for called in (unsplit, split):
        given = x.clone().requires_grad_()
        (called(given).sum() + called(given * 2).sum()).backward()  # two calls, one backward
        gradients.append([given.grad.cpu(), *(p.grad.cpu() for p in called.parameters())])
    assert all(torch.equal(want, have) for want, have in zip(*gradients, strict=True))


def test_freezing_after_the_split(cluster) -> None:
    unsplit, split = split_pair()
    for model in (unsplit, split):
        run(model, IDS.to("sim:0"))
        model.blocks[1].requires_grad_(False)
        model.zero_grad()
    want, have = observe_trained(unsplit), observe_trained(split)
    assert_same(want, have)


def observe_trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Outputs and the gradients of what still trains."""
    torch.manual_seed(3)
    out = model(IDS.to("sim:0"))
    out["logits"].sum().backward()
    seen = {**out, **{name: p.grad for name, p in model.named_parameters() if p.requires_grad}}
    return {name: value.detach().cpu().clone() for name, value in seen.items()}


def test_an_error_inside_the_call_leaves_the_weights_in_place(cluster) -> None:
    _, split = split_pair()
    weights = {name: id(p) for name, p in split.named_parameters()}
    kind = type(split)
    with pytest.raises(RuntimeError, match="scalar types"):  # the model's own error, as unsplit
        split(torch.ones(3, device="sim:0"))
    assert {name: id(p) for name, p in split.named_parameters()} == weights
    assert type(split) is kind
    split(IDS.to("sim:0"))


class Odd(nn.Module):
    """Two layers on two devices, and a forward of the test's own."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.trap = forward
        self.register_buffer("p", torch.ones(4))
        self.register_buffer("c", torch.ones(4))
        self.table = torch.full((4,), 2.0)

    def forward(self, *args, **kwargs):
        return self.trap(self, *args, **kwargs)


def odd_pair(forward, *args) -> tuple[nn.Module, nn.Module]:
    model = Odd(forward)
    unsplit = copy.deepcopy(model).to("sim:0")
    unsplit.table = unsplit.table.to("sim:0")
    return unsplit, autosplit.partition(model, ["sim:0", "sim:1"], args, placement={"a": "sim:0", "b": "sim:1"})


def x34() -> torch.Tensor:
    return torch.randn(3, 4).to("sim:0")


def test_buffers_assigned_from_each_other(cluster) -> None:
    def rotate(m, x):
        m.p = m.c
        m.c = x.detach().sum(0)
        return m.b(m.a(x) + m.p)

    unsplit, split = odd_pair(rotate, x34())
    for _ in range(3):
        x = x34()
        assert torch.equal(unsplit(x).cpu(), split(x).cpu())
    assert torch.equal(unsplit.c.cpu(), split.c.cpu())


def test_inputs_of_one_name_are_told_apart(cluster) -> None:
    unsplit, split = odd_pair(lambda m, *xs: m.b(m.a(xs[0])) + xs[1].sum(), x34(), torch.ones(1).to("sim:0"))
    x = x34()
    assert torch.equal(unsplit(x, x[0]).cpu(), split(x, x[0]).cpu())


def test_hooks_and_dtypes_changed_later_are_seen(cluster) -> None:
    unsplit, split = odd_pair(lambda m, x: (m.b(m.a(x)), torch.zeros(2, dtype=m.a.weight.dtype)), x34())
    x = x34()
    split(x)
    for model in (unsplit, split):
        model.a.register_forward_hook(lambda module, args, out: out * 10)
    assert torch.equal(unsplit(x)[0].cpu(), split(x)[0].cpu())
    unsplit.double()
    split.double()
    assert split(x.double())[1].dtype == torch.float64


def test_hooks_on_one_module_after_another_are_seen(cluster) -> None:
    unsplit, split = odd_pair(lambda m, x: m.c * m.b(m.a(x)), x34())
    x = x34()
    split(x)
    for name in ("a", "b", "", "a"):
        for model in (unsplit, split):
            model.get_submodule(name).register_forward_hook(lambda module, args, out: out * 10)
        assert torch.equal(unsplit(x).cpu(), split(x).cpu())


def test_a_hook_on_a_module_that_only_a_list_holds_is_seen(cluster) -> None:
    rest = [nn.Tanh()]
    unsplit, split = odd_pair(lambda m, x: m.b(rest[0](m.a(x))), x34())
    x = x34()
    split(x)
    rest[0].register_forward_hook(lambda module, args, out: out * 10)
    assert torch.equal(unsplit(x).cpu(), split(x).cpu())


def test_outputs_return_to_the_inputs_and_not_to_a_tables_device(cluster) -> None:
    _, split = odd_pair(lambda m, x: m.table.to(x.device) + m.b(m.a(x)), x34())
    assert str(split(x34()).device) == "sim:0"


class Speaker(nn.Module):
    """A language model in another model, as of BLIP-2: its embedding is called by itself in generate."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        return self.head(embedded)


class Captioner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eyes, self.speaker = nn.Linear(4, 4), Speaker()

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.speaker(self.eyes(x) + self.speaker.embed(ids))


def test_an_embedding_in_a_part_on_one_device_is_called_by_itself(cluster) -> None:
    model, ids = Captioner(), torch.tensor([0, 3, 4]).to("sim:0")
    unsplit = copy.deepcopy(model).to("sim:0")
    placement = {"eyes": "sim:0", "speaker": "sim:1"}
    split = autosplit.partition(model, ["sim:0", "sim:1"], (x34(), ids), placement=placement)
    assert str(split.speaker.embed.weight.device) == "sim:1"
    for here in (unsplit, split):
        here.found = here.speaker(here.eyes(torch.ones(3, 4).to("sim:0")) + here.speaker.embed(ids))
    assert str(split.found.device) == "sim:0"
    assert torch.equal(unsplit.found.cpu(), split.found.cpu())


def test_an_input_from_elsewhere_is_written(cluster) -> None:
    def write(m, x, y):
        h = m.a(x)
        y.add_(1)
        return m.b(h) + y.sum()

    _, split = odd_pair(write, x34(), x34())
    y = torch.zeros(3, 4)
    split(x34(), y)
    assert torch.equal(y, torch.ones(3, 4))


def test_a_write_into_the_callers_dict_and_list_is_seen(cluster) -> None:
    def keep(m, x, cache, log):
        cache["h"] = m.a(x)
        cache["x"] = x
        log.append(len(log))
        return m.b(cache["h"])

    unsplit, split = odd_pair(keep, x34(), {}, [])
    x, want, have, log = x34(), {}, {}, ["before"]
    unsplit(x.to("sim:0"), want, [])
    split(x, have, log)
    assert list(have) == ["h", "x"]
    assert torch.equal(have["h"].cpu(), want["h"].cpu())
    assert have["x"] is x
    assert log == ["before", 1]


def test_inputs_kept_on_an_attribute_are_the_callers(cluster) -> None:
    def keep(m, x):
        m.last, m.seen = x, [x]
        return m.b(m.a(x))

    _, split = odd_pair(keep, x34())
    assert not hasattr(split, "last")  # planning leaves no trace
    x = x34()
    split(x)
    assert split.last is x
    assert split.seen[0] is x


def test_a_counter_in_python_does_not_recapture_without_end(cluster) -> None:
    def count(m, x):
        m.n = getattr(m, "n", 0) + 1
        return m.b(m.a(x)) * m.n

    unsplit, split = odd_pair(count, x34())
    unsplit.n = split.n = 0
    for _ in range(70):
        x = x34()
        assert torch.equal(unsplit(x).cpu(), split(x).cpu())


def test_a_dropped_split_frees_its_memory() -> None:
    with sim.cluster("2x64MiB") as cluster:
        for _ in range(2):
            model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
            known, x = weakref.ref(model), torch.randn(2, 256).to("sim:0")
            split = autosplit.partition(model, cluster.devices, (x,), placement={"0": "sim:0", "1": "sim:1"})
            split(x)
            del model, split, x
            gc.collect()
            assert known() is None
        assert cluster.allocated_bytes("sim:1") == 0


class Masks(nn.Module):
    """Runs its second layer on the rows that a mask lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)[x[:, 0] > 0])


def test_a_size_that_depends_on_data_is_planned_at_its_largest() -> None:
    model = Masks().eval()
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = torch.randn(4096, 64)
        by_hand = {"first": "sim:0", "second": "sim:1"}
        split = autosplit.partition(model, cluster.devices, (x,), placement=by_hand)
        predicted = split.plan.prediction.devices["sim:1"].peak_bytes
        peaks = []
        for rows in (torch.ones_like(x), x, -torch.ones_like(x)):
            cluster.reset_peaks()
            with torch.no_grad():
                assert torch.equal(split(rows).cpu(), unsplit(rows))
            peaks.append(cluster.peak_bytes("sim:1"))
        assert predicted >= peaks[0] > peaks[1] > peaks[2]


def test_a_hook_that_comes_and_goes_is_called_each_time(cluster) -> None:
    _, split = odd_pair(lambda m, x: m.b(m.a(x)), x34())
    x = x34()
    split(x)
    for _ in range(3):
        called = []
        handle = split.a.register_forward_hook(lambda *_, called=called: called.append(1))
        split(x)
        handle.remove()
        split(x)
        assert called == [1]
