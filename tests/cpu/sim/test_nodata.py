"""Without data: models of any size run their real code, and take the memory they would with data."""

import resource
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autosplit import sim

from .nets import Attention, Recurrent, Split, batch_for, resnet, tied, transformer

GIB = 1 << 30


class Tower(nn.Module):
    """A transformer whose layers lie on the devices in order; one ``.to`` between two devices."""

    def __init__(self, layers, width, vocabulary, devices):
        super().__init__()
        self.places = [devices[i * len(devices) // layers] for i in range(layers)]
        with devices[0]:
            self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList()
        for place in self.places:
            with place:
                self.layers.append(Attention(width, width // 128))
        with devices[-1]:
            self.readout = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer, place in zip(self.layers, self.places, strict=True):
            x = layer(x.to(place))
        return self.readout(x)


def test_a_training_step_of_a_model_far_larger_than_this_machine():
    start, resident = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with sim.cluster("8x24GiB", data=False) as cluster:
        model = Tower(32, 4096, 32000, cluster.devices)
        optimizer = torch.optim.AdamW(model.parameters())
        parameter_bytes = sum(p.numel() * 4 for p in model.parameters())
        assert 26e9 < parameter_bytes < 28e9
        tokens = torch.randint(0, 32000, (1, 1024), device="sim:0")
        cluster.clear_transfers()
        loss = F.cross_entropy(model(tokens).flatten(0, -2), tokens.to("sim:7").flatten())
        loss.backward()
        activation_bytes = 1024 * 4096 * 4
        assert [(t.src, t.dst) for t in cluster.transfers[:7]] == [(f"sim:{i}", f"sim:{i + 1}") for i in range(7)]
        assert sum(t.size_bytes == activation_bytes for t in cluster.transfers) == 14  # and 7 back
        optimizer.step()
        held = sum(cluster.allocated_bytes(device) for device in cluster.devices)
        assert held > 4 * parameter_bytes  # parameters, gradients, two moments
        assert all(12 * GIB < cluster.peak_reserved_bytes(device) <= 24 * GIB for device in cluster.devices)
    assert time.perf_counter() - start < 30
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * 1024 < GIB


def test_a_model_too_large_for_its_devices_says_so():
    with sim.cluster("24GiB", data=False) as cluster, pytest.raises(torch.OutOfMemoryError, match="sim:0"):
        Tower(32, 4096, 32000, cluster.devices)


def lstm():
    return nn.Sequential(nn.Embedding(100, 16), Recurrent(nn.LSTM)), nn.Linear(32, 10)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": torch.optim.AdamW,
    "adamw for-loop": lambda p: torch.optim.AdamW(p, foreach=False),
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("build", [resnet, transformer, tied, lstm])
def test_the_same_memory_as_with_data(build, optimizer):
    def step(data):
        with sim.cluster("2x1GiB", data=data) as cluster:
            model = Split(*build(), cluster.devices)
            steering = optimizer(model.parameters())
            x, target = batch_for(build)
            history = []
            for _ in range(2):
                out = model(x)
                target = target % out.shape[-1]
                F.cross_entropy(out.flatten(0, -2), target.to(out.device)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                steering.step()
                steering.zero_grad()
                del out
                history.append([(cluster.peak_bytes(d), cluster.allocated_bytes(d)) for d in cluster.devices])
            return history, cluster.transfers

    assert step(data=False) == step(data=True)


def test_meta_modules_land_on_their_device():
    with sim.cluster("2x64GiB", data=False) as cluster:
        model = nn.Linear(40000, 40000, device="meta")
        weight = model.weight
        assert model.to("sim:1").weight is weight
        assert cluster.allocated_bytes("sim:1") >= 40000 * 40000 * 4
        assert cluster.transfers == []
        half = nn.Linear(8, 8, device="meta").to("sim:0", torch.bfloat16)
        assert (half.weight.device, half.weight.dtype) == (cluster.devices[0], torch.bfloat16)
        assert torch.empty_like(torch.empty(3, device="meta"), device="sim:1").device == cluster.devices[1]
    with sim.cluster("2x1GiB"), pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        nn.Linear(8, 8, device="meta").to("sim:1")


def test_the_device_module_says_whether_there_is_data():
    for data in (True, False):
        with sim.cluster("1GiB", data=data) as cluster:
            assert torch.sim.holds_data is cluster.data is data
    assert torch.sim.holds_data is False


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: bool(x > 0),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
    ],
)
def test_values_cannot_be_read(read):
    with sim.cluster("1GiB", data=False), pytest.raises(RuntimeError, match=r"no data \(data=False\)"):
        read(torch.ones(1, device="sim:0"))


def test_views_and_in_place_changes_take_no_memory():
    with sim.cluster("1GiB", data=False) as cluster:
        z = torch.zeros(1 << 20, dtype=torch.complex64, device="sim:0")
        cluster.reset_peaks()
        before = cluster.allocated_bytes(0)
        torch.view_as_real(z).add_(1).mul_(2)
        view = z.view(2, -1).t()[5:].conj().real
        assert view.shape == ((1 << 19) - 5, 2)
        assert cluster.peak_bytes(0) == before
