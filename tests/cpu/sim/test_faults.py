"""What CUDA refuses, sim devices refuse: mixed devices, bad ordinals, too much memory, and use after closing."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autosplit import sim
from autosplit.errors import DeviceError

from .nets import Split, batch_for, resnet, transformer

MIB = 1 << 20
MIXED = "Expected all tensors to be on the same device, but found at least two devices"


class Forgetful(Split):
    """A split model whose transfer between the halves was left out."""

    def forward(self, x):
        return self.tail(self.head(x.to(self.devices[0])))


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("build", [resnet, transformer])
def test_a_left_out_transfer_is_refused(build, data):
    with sim.cluster("2x1GiB", data=data) as cluster:
        model = Forgetful(*build(), cluster.devices)
        with pytest.raises(RuntimeError, match=f"{MIXED}, sim:"):
            model(batch_for(build)[0])


BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "fmin": torch.fmin,
    "atan2": torch.atan2,
    "remainder": torch.remainder,
    "eq": torch.eq,
    "lt": torch.lt,
    "logical_and": torch.logical_and,
    "hypot": torch.hypot,
    "copysign": torch.copysign,
    "logaddexp": torch.logaddexp,
    "heaviside": torch.heaviside,
    "xlogy": torch.xlogy,
    "lerp": lambda a, b: torch.lerp(a, b, 0.5),
    "addcmul": lambda a, b: torch.addcmul(a, a, b),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "matmul": torch.matmul,
    "mm": torch.mm,
    "mv": lambda a, b: torch.mv(a, b[0]),
    "dot": lambda a, b: torch.dot(a[0], b[0]),
    "outer": lambda a, b: torch.outer(a[0], b[0]),
    "bmm": lambda a, b: torch.bmm(a[None], b[None]),
    "addmm": lambda a, b: torch.addmm(a, a, b),
    "einsum": lambda a, b: torch.einsum("ij,kj->ik", a, b),
    "kron": torch.kron,
    "cdist": torch.cdist,
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([a, b]),
    "linear": F.linear,
    "bilinear": lambda a, b: F.bilinear(a, b, a.new_ones(2, 4, 4)),
    "conv2d": lambda a, b: F.conv2d(a[None, None], b[None, None]),
    "layer_norm": lambda a, b: F.layer_norm(a, (4,), b[0]),
    "embedding": lambda a, b: F.embedding(a.long().abs(), b),
    "mse_loss": F.mse_loss,
    "cross_entropy": lambda a, b: F.cross_entropy(a, b.softmax(-1)),
    "kl_div": lambda a, b: F.kl_div(a, b, reduction="sum"),
    "attention": lambda a, b: F.scaled_dot_product_attention(a, b, b),
    "gather": lambda a, b: a.gather(0, b.long().abs() % 4),
    "scatter": lambda a, b: a.scatter(0, b.long() * 0, 1.0),
    "index_select": lambda a, b: a.index_select(0, b[0].long() * 0),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 0.0),
    "take": lambda a, b: a.take(b.long() * 0),
    "in-place add": lambda a, b: a.add_(b),
    "foreach add": lambda a, b: torch._foreach_add([a], [b]),
    "out": lambda a, b: torch.add(a, a, out=b),
    "searchsorted": torch.searchsorted,
}


@pytest.mark.parametrize("op", BINARY.values(), ids=BINARY)
def test_operators_refuse_mixed_devices(two, op):
    one, other, host = torch.rand(4, 4).to("sim:0"), torch.rand(4, 4).to("sim:1"), torch.rand(4, 4)
    with pytest.raises(RuntimeError, match=f"{MIXED}, sim:0 and sim:1|on the same device"):
        op(one, other)
    with pytest.raises(RuntimeError, match=f"{MIXED}, sim:0 and cpu|on the same device"):
        op(one, host)
    op(one, one.clone())


def test_cpu_scalars_and_cpu_indices_go_with_any_device(two):
    x = torch.arange(4.0, device="sim:1")
    assert (x * torch.tensor(2.0)).tolist() == [0.0, 2.0, 4.0, 6.0]
    assert x[torch.tensor([1, 3])].tolist() == [1.0, 3.0]
    assert x[torch.tensor([True, False, False, True])].tolist() == [0.0, 3.0]
    x[torch.tensor([0])] = 5.0
    assert x.tolist() == [5.0, 1.0, 2.0, 3.0]
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        x[torch.tensor([1], device="sim:0")]
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        torch.arange(4.0)[torch.tensor([1], device="sim:0")]
    with pytest.raises(RuntimeError, match=MIXED):
        x.index_put_((torch.tensor([0, 1]),), torch.ones(2))


@pytest.mark.parametrize("make", [torch.ones, torch.empty, torch.randn])
def test_invalid_ordinal(two, make):
    with pytest.raises(RuntimeError, match="invalid device ordinal 2: the open cluster has 2 devices"):
        make(1, device="sim:2")


@pytest.mark.parametrize("data", [True, False])
def test_an_over_full_device_names_itself_and_the_figures(data):
    with sim.cluster(["1GiB", "64MiB"], data=data):
        kept = torch.empty(24 * MIB, dtype=torch.uint8, device="sim:1")
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(50 * MIB, dtype=torch.uint8, device="sim:1")
        text = str(caught.value)
        for part in ("sim:1", "Tried to allocate 50.0 MiB", "total capacity of 64.0 MiB", "40.0 MiB is free"):
            assert part in text
        del kept
        torch.empty(50 * MIB, dtype=torch.uint8, device="sim:1")


def step(devices):
    torch.manual_seed(0)
    model = Split(*transformer(), devices)
    optimizer = torch.optim.AdamW(model.parameters())
    x, target = batch_for(transformer)
    F.cross_entropy(model(x).flatten(0, -2), target.to(devices[1])).backward()
    optimizer.step()


@pytest.mark.parametrize("data", [True, False])
def test_capacity_of_the_peak_is_enough_and_one_segment_less_is_not(data):
    with sim.cluster([None, None], data=data) as free:
        step(free.devices)
        peaks = [free.peak_reserved_bytes(device) for device in free.devices]
    with sim.cluster(peaks, data=data) as exact:
        step(exact.devices)
        assert [exact.peak_reserved_bytes(device) for device in exact.devices] == peaks
    for short in range(2):
        capacities = [peak - 2 * MIB * (index == short) for index, peak in enumerate(peaks)]
        with sim.cluster(capacities, data=data) as tight, pytest.raises(torch.OutOfMemoryError, match=f"sim:{short}"):
            step(tight.devices)


def test_what_outlives_its_cluster_is_refused_not_fatal():
    with sim.cluster("2x1GiB") as first:
        x = torch.ones(3, device="sim:1", requires_grad=True)
        y = (x * 2).sum()
        module = nn.Linear(2, 2).to("sim:1")
    uses = (
        lambda: x + 1,
        x.cpu,
        lambda: repr(x),
        y.backward,
        lambda: copy.deepcopy(x.detach()),
        lambda: pickle.dumps(x),
        lambda: module.to("sim:0"),
        lambda: torch.ones(1, device="sim:0"),
        lambda: torch.UntypedStorage(8, device="sim"),
    )
    for use in uses:
        with pytest.raises(RuntimeError, match="no cluster is open"):
            use()
    assert torch.sim.device_count() == 0
    assert not torch.accelerator.is_available()
    for data in (True, False):
        closed = pytest.raises(RuntimeError, match="belongs to a cluster that is closed")
        with sim.cluster("2x1GiB", data=data), closed:
            x.add(torch.ones(3, device="sim:1"))
    assert first.peak_bytes(1) > 0
    torch.ones(2, requires_grad=True).sum().backward()


def test_clusters_do_not_nest(two):
    with pytest.raises(DeviceError, match="open already"), sim.cluster("1GiB"):
        pass
    assert torch.ones(1, device="sim:1").item() == 1


@pytest.mark.parametrize(
    ("memories", "words"),
    [
        ("0x24GiB", "0 devices"),
        ("", "write '8x24GiB'"),
        ("2x", "write '8x24GiB'"),
        ("2x24Gb", "means bits"),
        ([], "0 devices"),
        ([-1], "must not be negative"),
        ("128x1GiB", "expected 1 to 127"),
        ("9999999999x1GiB", "expected 1 to 127"),
    ],
)
def test_unreadable_memories(memories, words):
    with pytest.raises(DeviceError, match=words):
        sim.cluster(memories)


def test_an_untested_torch_is_refused(monkeypatch):
    from autosplit.sim import backend

    monkeypatch.setattr(torch, "__version__", "2.14.0")
    with pytest.raises(DeviceError, match=r"need torch 2\.13\.x; this is torch 2\.14\.0"):
        backend.check_torch()
    monkeypatch.undo()
    monkeypatch.delattr(torch._C, "_swap_tensor_impl")
    with pytest.raises(DeviceError, match=r"need torch\._C\._swap_tensor_impl"):
        backend.check_torch()
