"""The log of copies says exactly what moved, in order."""

import torch
from torch import nn

from autosplit import sim

from .nets import Split, batch_for, resnet


def moves(cluster):
    return [(t.src, t.dst, t.size_bytes) for t in cluster.transfers]


def test_each_copy_between_two_devices_is_logged_once(two):
    x = torch.ones(3, 5)
    a = x.to("sim:0")
    b = a.to("sim:1", non_blocking=True)
    a.to("sim:0")
    a.clone()
    a.to(torch.float64)
    torch.empty(3, 5, device="sim:0").copy_(a)
    torch.empty(3, 5, device="sim:0").copy_(b)
    b[:, 0].cpu()
    assert moves(two) == [("cpu", "sim:0", 60), ("sim:0", "sim:1", 60), ("sim:1", "sim:0", 60), ("sim:1", "cpu", 12)]
    assert two.transfers[0] == sim.Transfer("cpu", "sim:0", 60, (3, 5), torch.float32)
    assert two.transfers[3].shape == (3,)
    two.clear_transfers()
    assert two.transfers == []


def test_backward_sends_the_gradient_the_other_way(two):
    first, second = nn.Linear(8, 16).to("sim:0"), nn.Linear(16, 4).to("sim:1")
    x = torch.randn(2, 8, device="sim:0")
    two.clear_transfers()
    loss = second(first(x).to("sim:1")).sum()
    assert moves(two) == [("sim:0", "sim:1", 2 * 16 * 4)]
    loss.backward()
    assert moves(two) == [("sim:0", "sim:1", 2 * 16 * 4), ("sim:1", "sim:0", 2 * 16 * 4)]
    torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1).step()
    assert len(two.transfers) == 2


def test_a_module_moves_each_parameter_and_buffer_once(two):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    sizes = sorted(t.numel() * t.element_size() for t in module.state_dict().values())
    module.to("sim:1")
    assert sorted(t.size_bytes for t in two.transfers) == sizes
    assert {(t.src, t.dst) for t in two.transfers} == {("cpu", "sim:1")}
    two.clear_transfers()
    module.to("sim:1")
    assert two.transfers == []


def test_data_and_no_data_log_the_same():
    def run(data):
        with sim.cluster("2x1GiB", data=data) as cluster:
            model = Split(*resnet(), cluster.devices)
            model(batch_for(resnet)[0]).sum().backward()
            return cluster.transfers, cluster.peak_bytes(0), cluster.peak_bytes(1)

    assert run(True) == run(False)


def test_report(two):
    x = torch.ones(256, 1024, device="sim:0")
    x.to("sim:1")
    assert two.report().splitlines() == [
        "device  capacity  peak allocated  peak reserved",
        "sim:0    1.0 GiB         1.0 MiB        2.0 MiB",
        "sim:1    1.0 GiB         1.0 MiB        2.0 MiB",
        "",
        "1 transfers",
        "from \\ to  sim:0    sim:1",
        "sim:0          -  1.0 MiB",
        "sim:1          -        -",
    ]
