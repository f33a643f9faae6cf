"""What `devices=` may be, how fast links are measured to be, and that the roofline knows number formats."""

from __future__ import annotations

import gc
import itertools
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import autosplit
from autosplit import catalogue, sim
from autosplit.device import HOST, Cluster, Device, Rates, to_toml
from autosplit.errors import DeviceFaultError
from autosplit.hardware import is_present, links, measure_links, memory_of, present, resolve, torch_devices
from autosplit.hardware.links import MAX_PROBE_BYTES, REPEATS, fit

DOC = Path(__file__).parents[2] / "docs" / "cluster.md"
MIB = 2**20


def test_the_documented_cluster_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(re.search(r"```toml\n(.*?)```", DOC.read_text(), re.DOTALL)[1])
    cluster = resolve(str(tmp_path / "cluster.toml"))
    assert cluster.names == ("gpu:0", "gpu:1")
    assert cluster.transfer_ns("gpu:0", "gpu:1", 12_000) == 16_000
    assert cluster.transfer_ns("gpu:1", "gpu:0", 25_000) == 11_000
    assert cluster.devices[0].rate("bfloat16") > cluster.devices[0].rate("float32") == 50 * 10**12


def test_a_broken_cluster_file_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text("[[device]]\n")
    with pytest.raises(autosplit.DeviceError, match="unknown key 'device': did you mean 'devices'"):
        resolve(str(tmp_path / "cluster.toml"))
    with pytest.raises(autosplit.DeviceError, match="No such file"):
        resolve(str(tmp_path / "absent.toml"))


def test_every_form_of_devices(tmp_path: Path) -> None:
    with sim.cluster("2x64MiB") as cluster:
        names = ("sim:0", "sim:1")
        for devices in ("sim", "sim:0,sim:1", list(names), [torch.device("sim:0"), "sim:1"], cluster, "auto"):
            assert resolve(devices).names == names
        assert resolve({"sim:1": "22MiB"}).devices[0].memory_bytes == 22 * 2**20
        found = resolve("sim")
        assert resolve(found) == found
        assert found.devices[0].memory_bytes == 64 * 2**20
        assert is_present("cpu")
        assert is_present("sim:1")
        assert not is_present("sim:2")
        assert memory_of("sim:0") == (64 * MIB, 64 * MIB)
        assert list(torch_devices(found)) == ["sim:0", "sim:1", "host"]
        assert any(line.startswith("links: not measured: taken as 25 GB/s") for line in found.assumptions)
        (tmp_path / "cluster.toml").write_text(to_toml(found))
        assert resolve(str(tmp_path / "cluster.toml")) == found
        device = found.devices[1]
        assert resolve({device: "7MiB"}).devices[0].memory_bytes == 7 * MIB
        assert resolve({"sim:0": 0, "cpu": 0}).devices[0].memory_bytes == 0
    data = {"devices": [{"name": "gpu:0", "kind": "A", "memory_bytes": 9}], "default_latency_ns": 3}
    assert resolve(data).default_latency_ns == 3
    assert resolve("2xT4").devices[1].kind == "T4"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("2x0GiB", "without memory"),
        ("x24GiB", "no device of type"),
        ("gpu", "no device of type 'gpu': present are cpu"),
        ("2x24Gb", "means bits"),
        ("A1000-80GB", "did you mean A100-80GB"),
        ("cuda:0,nonsense:1", "device 'cuda:0' is not present: present are cpu"),
        ("nonsense:1", "unknown device 'nonsense:1'"),
        ({"devices": [], "link": []}, "unknown key 'link': did you mean 'links'"),
        (["cpu", "cpu"], "'cpu' appears more than once"),
        ("auto", "no accelerator is present"),
        (7, "expected 'auto'"),
    ],
)
def test_devices_that_are_refused(spec: object, says: str) -> None:
    with pytest.raises(autosplit.DeviceError, match=says):
        resolve(spec)


def test_a_present_device_takes_its_speed_from_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    with sim.cluster("2x64MiB"):
        monkeypatch.setattr(present, "reported_name", lambda name: "NVIDIA H200" if name == "sim:0" else "Toaster 9")
        known, other = resolve("sim").devices
        held = torch.ones(MIB, dtype=torch.uint8, device="sim:0")
        assert resolve("sim").devices[0].memory_bytes == 64 * MIB  # what this process holds is its own to use
        del held
        assumptions = resolve("sim").assumptions
    entry = catalogue.find("H200")
    assert (known.kind, known.flops_per_s, known.memory_bytes) == ("H200", entry.flops_per_s, 64 * MIB)
    assert (other.kind, other.flops_per_s) == ("Toaster 9", Device(name="", kind="", memory_bytes=0).flops_per_s)
    assert any(line.startswith("devices: H200: peak rates, NVIDIA H200 Tensor Core") for line in assumptions)
    assert any(line.startswith("devices: Toaster 9: not in the catalogue: taken as 50 TFLOP/s") for line in assumptions)


MESH = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
import autosplit
from autosplit import sim
from autosplit.hardware import resolve
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
try:
    print(resolve(init_device_mesh("cpu", (2,))).names)
except autosplit.DeviceError as error:
    print(error)
from torch.distributed.device_mesh import DeviceMesh
with sim.cluster("2x64MiB"):
    mesh = DeviceMesh("cpu", [0, 1])
    mesh._device_type = "sim"
    print(mesh.device_type, resolve(mesh).names)
"""


def test_a_device_mesh() -> None:
    done = subprocess.run([sys.executable, "-c", MESH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused, taken = done.stdout.splitlines()
    assert "rank 1: this host has 1 such device(s)" in refused
    assert taken == "sim ('sim:0', 'sim:1')"


# ---------------------------------------------------------------- links


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_fit_of_exact_times_is_exact(page_ns: int, latency_ns: int) -> None:
    times = [(4096 * pages, latency_ns + page_ns * pages) for pages in (4**i for i in range(8))]
    found, found_ns = fit(times)
    for size, ns in times:  # nothing but the rounding of the latency is between them
        assert found_ns + size * 1e9 / found == pytest.approx(ns, abs=1, rel=1e-6)


@given(st.lists(st.tuples(st.integers(1, 2**26), st.integers(1, 10**9)), min_size=1, max_size=8))
def test_a_fit_of_anything_is_a_link(times: list[tuple[int, int]]) -> None:
    bandwidth, latency_ns = fit(times)
    assert bandwidth >= 1
    assert latency_ns >= 0


def test_a_fit_of_noisy_times_is_near() -> None:
    rng = random.Random(0)
    sizes = [4096 * 4**i for i in range(8)]
    bandwidth, latency_ns = fit([(size, round((10_000 + size / 20) * rng.uniform(0.95, 1.05))) for size in sizes])
    print(f"20 GB/s and 10 us with 5 % noise: {bandwidth / 1e9:.2f} GB/s, {latency_ns} ns")
    assert bandwidth == pytest.approx(20e9, rel=0.05)
    assert latency_ns == pytest.approx(10_000, rel=0.05)


def test_each_pair_is_measured_in_bounded_memory() -> None:
    said: list[str] = []
    with sim.cluster("2x2GiB,1x8MiB") as cluster:
        measured = measure_links(resolve(cluster), said.append)
        peaks = [cluster.peak_bytes(device) for device in cluster.devices]
        largest = max(transfer.size_bytes for transfer in cluster.transfers)
        assert [cluster.allocated_bytes(device) for device in cluster.devices] == [0, 0, 0]
    ends = (HOST, "sim:0", "sim:1", "sim:2")
    assert {(link.src, link.dst) for link in measured.links} == set(itertools.permutations(ends, 2))
    assert sorted(said) == sorted(f"{a} -> {b}" for a, b in itertools.permutations(ends, 2))
    assert max(peaks) == largest == MAX_PROBE_BYTES
    assert peaks[2] <= 8 * MIB // 32
    assert all(link.bandwidth_bytes_per_s > 10**6 for link in measured.links)
    assert [line for line in measured.assumptions if line.startswith("links:")] == [
        f"links: measured: 12 pairs, copies of 4 KiB to at most 64.0 MiB, median of {REPEATS}"
    ]
    for link in measured.links:
        print(f"{link.src} -> {link.dst}: {link.bandwidth_bytes_per_s / 1e9:.1f} GB/s, {link.latency_ns} ns")


def slow(monkeypatch: pytest.MonkeyPatch, ns_of: dict[tuple[str, str], tuple[float, int]]) -> None:
    """A clock in which the copies between named ends take what the test says."""

    def time_ns(dst: torch.Tensor, src: torch.Tensor) -> int:
        per_byte, latency = ns_of.get((str(src.device), str(dst.device)), (0.04, 10_000))
        return round(latency + per_byte * src.numel())

    monkeypatch.setattr(links, "_time_ns", time_ns)


def test_each_direction_has_its_own_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, {("sim:0", "sim:1"): (0.1, 20_000), ("cpu", "sim:1"): (1.0, 500)})
    with sim.cluster("2x1GiB") as cluster:
        measured = measure_links(resolve(cluster))
    speeds = {(a, b): measured.link(a, b) for a, b in itertools.permutations((HOST, "sim:0", "sim:1"), 2)}
    assert speeds["sim:0", "sim:1"].bandwidth_bytes_per_s == pytest.approx(10e9, rel=1e-3)
    assert speeds["sim:0", "sim:1"].latency_ns == pytest.approx(20_000, rel=1e-3)
    assert speeds[HOST, "sim:1"].bandwidth_bytes_per_s == pytest.approx(1e9, rel=1e-3)
    assert speeds["sim:1", "sim:0"].bandwidth_bytes_per_s == pytest.approx(25e9, rel=1e-3)


@pytest.mark.parametrize(("src", "dst"), [("sim:1", "sim:0"), ("cpu", "sim:1"), ("sim:0", "cpu")])
@pytest.mark.parametrize("what", ["one byte", "nothing arrives"])
def test_a_link_that_changes_data_is_a_fault(monkeypatch: pytest.MonkeyPatch, src: str, dst: str, what: str) -> None:
    real = links._copy

    def corrupting(to: torch.Tensor, source: torch.Tensor) -> None:
        broken = (str(source.device), str(to.device)) == (src, dst)
        if not (broken and what == "nothing arrives"):
            real(to, source)
        if broken and what == "one byte":
            to[12_345] ^= 1

    monkeypatch.setattr(links, "_copy", corrupting)
    pair = f"{src} -> {dst}" if "cpu" not in (src, dst) else f"host <-> {src if dst == 'cpu' else dst}"
    with (
        sim.cluster("2x16MiB") as cluster,
        pytest.raises(DeviceFaultError, match=f"link {pair} changes data") as caught,
    ):
        measure_links(resolve(cluster))
    assert isinstance(caught.value, autosplit.DeviceError)
    assert caught.value.exit_code == 6
    assert ("1 of 262144 bytes" in str(caught.value)) == (what == "one byte")


@pytest.mark.parametrize("after", [1, 40, 100])
def test_a_measurement_can_be_interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    calls = itertools.count()
    real = links._copy

    def copy(to: torch.Tensor, source: torch.Tensor) -> None:
        if next(calls) == after:
            raise KeyboardInterrupt
        real(to, source)

    monkeypatch.setattr(links, "_copy", copy)
    with sim.cluster("2x16MiB") as cluster:
        with pytest.raises(KeyboardInterrupt):
            measure_links(resolve(cluster))
        gc.collect()
        assert [cluster.allocated_bytes(device) for device in cluster.devices] == [0, 0]


def test_what_cannot_be_measured() -> None:
    with sim.cluster("2x8KiB") as cluster, pytest.raises(autosplit.DeviceError, match=r"'sim:0' has 8\.0 KiB to use"):
        measure_links(resolve(cluster))
    with sim.cluster("2x1GiB", data=False) as cluster, pytest.raises(autosplit.DeviceError, match="without data"):
        measure_links(resolve(cluster))
    with pytest.raises(autosplit.DeviceError, match="'gpu:0' is described, not present"):
        measure_links(resolve("2xA100-80GB"))
    host = resolve("cpu")
    assert measure_links(host) == host


def test_devices_without_peer_access_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: {a.index, b.index} != {0, 2})
    lines = list(links._in_words(list(itertools.permutations((HOST, "cuda:0", "cuda:1", "cuda:2"), 2))))
    assert lines[1] == "links: no peer access, so through host memory: cuda:0 -> cuda:2, cuda:2 -> cuda:0"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_links_of_a_gpu() -> None:
    measured = measure_links(resolve("cuda"))
    assert {(HOST, "cuda:0"), ("cuda:0", HOST)} <= {(link.src, link.dst) for link in measured.links}
    for link in measured.links:
        print(f"{link.src} -> {link.dst}: {link.bandwidth_bytes_per_s / 1e9:.1f} GB/s, {link.latency_ns} ns")
        assert 10**8 < link.bandwidth_bytes_per_s < 10**13
    assert torch.cuda.max_memory_allocated() <= MAX_PROBE_BYTES


# ---------------------------------------------------------------- rates by number format


class Product(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


WIDTH, ROWS = 4096, 8192
RATES = Rates(float32=10**13, float64=10**12, tf32=5 * 10**13, bfloat16=10**14)
FAST_MEMORY = Cluster(
    devices=(
        Device(
            name="gpu:0", kind="k", memory_bytes=2**40, flops_per_s=RATES, bandwidth_bytes_per_s=10**15, launch_ns=0
        ),
    )
)


def busy_ns(dtype: torch.dtype) -> int:
    with torch.device("meta"):
        model, x = Product(WIDTH, dtype), torch.empty(ROWS, WIDTH, dtype=dtype)
    return autosplit.plan(model.eval(), FAST_MEMORY, (x,)).prediction.devices["gpu:0"].busy_ns


@pytest.mark.parametrize(
    ("dtype", "rate"),
    [
        (torch.float32, RATES.float32),
        (torch.float64, RATES.float64),
        (torch.bfloat16, RATES.bfloat16),
        (torch.float16, RATES.float32),  # unknown: float32's
    ],
)
def test_a_product_takes_the_rate_of_its_format(dtype: torch.dtype, rate: int) -> None:
    assert busy_ns(dtype) == 2 * ROWS * WIDTH * WIDTH * 10**9 // rate


def test_tf32_is_for_those_who_allow_it() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        assert busy_ns(torch.float32) == 2 * ROWS * WIDTH * WIDTH * 10**9 // RATES.tf32
        assert busy_ns(torch.float64) == 2 * ROWS * WIDTH * WIDTH * 10**9 // RATES.float64
    finally:
        torch.set_float32_matmul_precision("highest")
    assert busy_ns(torch.float32) == 2 * ROWS * WIDTH * WIDTH * 10**9 // RATES.float32


def test_a_convolution_asks_cudnn() -> None:
    """torch allows tf32 in convolutions unless told otherwise."""
    with torch.device("meta"):
        model, x = nn.Conv2d(64, 64, 3, bias=False), torch.empty(8, 64, 66, 66)
    flops = 2 * 8 * 64 * 64 * 64 * 64 * 9
    before = torch.backends.cudnn.conv.fp32_precision
    busy = {}
    try:
        for precision in ("tf32", "ieee"):
            torch.backends.cudnn.conv.fp32_precision = precision
            busy[precision] = autosplit.plan(model.eval(), FAST_MEMORY, (x,)).prediction.devices["gpu:0"].busy_ns
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert busy == {"tf32": flops * 10**9 // RATES.tf32, "ieee": flops * 10**9 // RATES.float32}


def test_a_plan_repeats_what_its_devices_rest_on() -> None:
    with torch.device("meta"):
        model, x = Product(64, torch.float32), torch.empty(1, 64)
    plan = autosplit.plan(model.eval(), "2xA100-80GB", (x,))
    assert any("NVIDIA A100 Tensor Core GPU data sheet" in line for line in plan.assumptions)
    assert any("NVLink 3" in line for line in plan.assumptions)
    assert autosplit.Plan.from_json(plan.to_json()) == plan
