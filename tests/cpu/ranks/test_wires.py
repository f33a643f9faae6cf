"""The ways between ranks are measured, and are the links of the cluster that is planned for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import autosplit
from autosplit.device import HOST, Cluster, Device, Link
from autosplit.ranks.joined import joined
from autosplit.ranks.wires import Wire, Wires, _first_pair, measure_wires
from ranks.harness import run_ranks

NEAR, FAR = Wire((0, 1), 10**10, 2_000), Wire((1, 2), 10**9, 30_000)


def of_rank(own: tuple[Link, ...] = ()) -> Cluster:
    devices = tuple(Device(name=f"cuda:{i}", kind="t", memory_bytes=2**30) for i in range(2))
    return Cluster(devices=devices, links=own, assumptions=("links: not measured", "devices: t"))


def speed(cluster: Cluster, src: str, dst: str) -> tuple[int, int]:
    link = cluster.link(src, dst)
    return link.bandwidth_bytes_per_s, link.latency_ns


def measured(_: int) -> Wires:
    return measure_wires("here", torch.device("cpu"))


def test_ranks_agree_on_what_was_measured(tmp_path: Path) -> None:
    first, second, third = run_ranks(measured, 3, tmp_path / "ranks")
    assert first == second == third
    assert first.far is None
    assert first.near.ranks == (0, 1)
    assert 10**6 < first.near.bandwidth_bytes_per_s < 10**12
    assert first.near.latency_ns < 10**9
    assert first.between(0, 2) == first.near


def test_hosts_are_told_apart_and_ranks_of_one_stay_alike() -> None:
    wires = Wires(["a", "a", "b", "b"], NEAR, FAR)
    cluster = joined({rank: of_rank() for rank in range(4)}, wires)
    own = (cluster.link("rank0/cuda:0", "rank0/cuda:1"), of_rank().link("cuda:0", "cuda:1"))
    assert own[0].bandwidth_bytes_per_s == own[1].bandwidth_bytes_per_s
    assert speed(cluster, "rank0/cuda:1", "rank1/cuda:0") == (10**10, 2_000)
    assert speed(cluster, "rank1/cuda:1", "rank2/cuda:0") == (10**9, 30_000)
    assert speed(cluster, HOST, "rank3/cuda:0") == speed(of_rank(), HOST, "cuda:0")
    assert [line for line in cluster.assumptions if line.startswith("links:")] == [
        "links: within a host: measured: 10.0 GB/s, 2.0 us between ranks 0 and 1",
        "links: between hosts: measured: 1.0 GB/s, 30.0 us between ranks 1 and 2",
    ]
    one = joined({rank: of_rank().__class__(devices=of_rank().devices[:1]) for rank in range(4)}, wires)
    assert one.first_alike == {
        "rank0/cuda:0": "rank0/cuda:0",
        "rank1/cuda:0": "rank0/cuda:0",
        "rank2/cuda:0": "rank2/cuda:0",
        "rank3/cuda:0": "rank2/cuda:0",
    }


def test_on_one_host_the_way_between_ranks_is_the_default_and_all_are_alike() -> None:
    cluster = joined({rank: Cluster(devices=of_rank().devices[:1]) for rank in range(3)}, Wires(["a"] * 3, NEAR, None))
    assert set(cluster.first_alike.values()) == {"rank0/cuda:0"}
    assert speed(cluster, "rank2/cuda:0", "rank0/cuda:0") == (10**10, 2_000)
    assert speed(cluster, "rank2/cuda:0", HOST) == speed(of_rank(), "cuda:0", HOST)


def test_what_a_rank_knows_of_its_own_links_is_kept() -> None:
    own = Link(src="cuda:0", dst="cuda:1", bandwidth_bytes_per_s=7 * 10**9, latency_ns=5)
    for wires in (None, Wires(["a", "b"], None, FAR)):
        cluster = joined({rank: of_rank((own,)) for rank in range(2)}, wires)
        assert speed(cluster, "rank1/cuda:0", "rank1/cuda:1") == (7 * 10**9, 5)
        assert speed(cluster, "rank1/cuda:1", "rank1/cuda:0") == speed(of_rank(), "cuda:1", "cuda:0")
    assert "links: not measured" in joined({0: of_rank(), 1: of_rank()}, None).assumptions


class Small(nn.Module):
    """Layers that no link is worth leaving a rank for."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(torch.tanh(self.layers(x)), y)


def slowly_linked() -> Cluster:
    devices = tuple(Device(name=f"rank{i}/cpu", kind="cpu", memory_bytes=2**30) for i in range(2))
    return Cluster(devices=devices, default_bandwidth_bytes_per_s=10**6, default_latency_ns=10**6)


def test_each_rank_of_a_pipeline_has_weights_to_train_however_slow_the_way() -> None:
    args = (torch.randn(8, 8), torch.randn(8, 8))
    asked = {"strategy": "pipeline", "mode": "train", "microbatches": 4, "profile": False}
    plan = autosplit.plan(Small(4), slowly_linked(), args, **asked)
    assert set(plan.weights.values()) == {"rank0/cpu", "rank1/cpu"}
    with pytest.raises(autosplit.PlanError, match="weight to train: use fewer ranks"):
        autosplit.plan(Small(1), slowly_linked(), args, **asked)


def unlike(rank: int, what: str) -> str:
    class Reads(Small):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x, y) if rank == 0 or what != "error" else x.missing

    args = (torch.randn(8, 8), torch.randn(8, 8))
    profile = rank == 0 if what == "profile" else False
    try:
        autosplit.partition(Reads(4), ["cpu"], args, strategy="pipeline", microbatches=4, profile=profile)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_what_one_rank_cannot_do_is_an_error_on_all(tmp_path: Path) -> None:
    for said in run_ranks(unlike, 2, tmp_path / "profile", "profile"):
        assert "other profile= or plan= than rank" in said
    here, there = run_ranks(unlike, 2, tmp_path / "error", "error")
    assert "missing" in here
    assert "missing" in there


def test_ranks_that_alternate_between_hosts_have_both_ways() -> None:
    assert [_first_pair(["a", "b", "a", "b"], same=same) for same in (True, False)] == [(0, 2), (0, 1)]
    assert _first_pair(["a", "b"], same=True) is None


def test_no_rank_is_left_without_a_stage() -> None:
    devices = tuple(Device(name=f"rank{i}/cpu", kind="cpu", memory_bytes=2**30) for i in range(3))
    slow = Cluster(devices=devices, default_bandwidth_bytes_per_s=10**6, default_latency_ns=10**6)
    args = (torch.randn(8, 8), torch.randn(8, 8))
    for mode in ("train", "infer"):
        plan = autosplit.plan(
            Small(6), slow, args, strategy="pipeline", mode=mode, microbatches=4, schedule="gpipe", profile=False
        )
        assert set(plan.placement.values()) == {device.name for device in devices}
