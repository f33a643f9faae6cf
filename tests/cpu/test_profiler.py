"""Measured times: every operation, in its context, once; and when the device, the disk or the user says no."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import ROWS, WIDTH, Case, RandomModel, cases
from torch import nn
from torch.utils.checkpoint import checkpoint

import autosplit
from autosplit import sim
from autosplit.capture import Frontend, climb
from autosplit.emit import assign, rewrite
from autosplit.hardware import resolve, torch_devices
from autosplit.profiler import Profile, Store, Timing, alone, materials, profile, task
from autosplit.runtime import unsplit_class

CPU = torch.device("cpu")


class Blocks(nn.Module):
    """Equal blocks, and one of each kind of region."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(6))
        self.table = nn.Embedding(7, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.2)
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = x + block(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.blocks[0](x)
        with torch.no_grad():
            self.seen.add_(x.mean(0))
        z = checkpoint(self.blocks[1], x, use_reentrant=False)
        return self.drop(self.norm(x + y.float() + z)) + torch.vmap(lambda row: row * 2)(x)


def measured(model: nn.Module, args: tuple, *, mode: str = "train", **options) -> tuple[Profile, list[str]]:
    """The profile of a model on the CPU, and the names of its nodes."""
    program = climb(Frontend(model, unsplit_class(model)), args, {}, mode, None).program
    assignment = assign(program, dict.fromkeys(program.names.values(), "cpu"), {}, "cpu")
    emitted = rewrite(program, assignment, torch_devices(resolve(["cpu"])), "cpu")
    options = {"fits": True, **options}
    return profile(program, emitted.graph_module, CPU, **options), [program.names[node] for node in program.nodes]


IDS = (torch.arange(5) % 7,)


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("fits", [True, False])
def test_every_operation_is_measured_where_it_is(fits: bool, mode: str) -> None:
    found, names = measured(Blocks(), IDS, mode=mode, fits=fits)
    assert not found.notes
    in_vmap = [name for name in names if name.startswith(("/mul", "/_add_batch_dim", "/_remove_batch_dim"))]
    assert set(names) - set(found.timings) == (set() if fits else set(in_vmap))
    linears = [found.timings[name] for name in names if name.startswith("blocks") and "linear" in name]
    assert all(timing.forward_ns > 0 for timing in linears)
    assert all((timing.backward_ns > 0) == (mode == "train") for timing in linears)


def test_equal_operations_are_measured_once() -> None:
    found, names = measured(nn.Sequential(*(nn.Linear(8, 8) for _ in range(9))), (torch.randn(2, 8),), fits=False)
    assert len(names) == 9
    assert found.distinct == found.measured == 2  # the first one's input carries no gradient
    assert len({found.timings[name] for name in names}) == 2


def test_the_times_add_up_to_the_passes() -> None:
    found, _ = measured(Blocks(), IDS)
    forward_ns, backward_ns = found.whole_ns
    timings = found.timings.values()
    assert sum(t.forward_ns for t in timings) == pytest.approx(forward_ns, rel=0.01)
    assert sum(t.backward_ns for t in timings) == pytest.approx(backward_ns, rel=0.01)


@pytest.mark.parametrize("fits", [True, False])
def test_the_model_and_the_process_are_as_they_were(fits: bool) -> None:
    model = Blocks()
    before = {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measured(model, IDS, fits=fits)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    for name, tensor in model.state_dict(keep_vars=True).items():
        identity, version, value = before[name]
        assert (id(tensor), tensor._version, tensor.grad) == (identity, version, None), name
        assert torch.equal(tensor, value), name


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("every", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("fits", [True, False])
def test_no_memory_at_every_nth_allocation(monkeypatch, every: int, fits: bool) -> None:
    made, count = materials._filled, [0]

    def fill(*args):
        count[0] += 1
        if count[0] % every == 0:
            raise torch.OutOfMemoryError("injected: out of memory")
        return made(*args)

    monkeypatch.setattr(materials, "_filled", fill)
    found, names = measured(Blocks(), IDS, fits=fits)
    assert any("injected" in note for note in found.notes)
    assert set(found.timings) <= set(names) | {n for n in found.timings if "/" in n}
    if every == 1:
        assert not found.timings


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interrupt_keeps_what_was_measured(monkeypatch, after: int) -> None:
    measure, count = alone.measure, [0]

    def interrupted(*args):
        count[0] += 1
        if count[0] > after:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(task, "measure", interrupted)
    found, _ = measured(Blocks(), IDS, fits=False)
    assert found.measured == after
    assert bool(found.timings) == bool(after)
    assert [note for note in found.notes if note.startswith(f"interrupted: {after} of")]


def test_an_interrupt_in_a_pass_ends_with_a_plan(monkeypatch) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(task, "Passes", interrupted)
    plan = autosplit.plan(nn.Linear(5, 3), ["cpu"], (torch.randn(2, 5),), profile=True)
    assert plan.prediction.time_source == "estimated"
    assert any(said.startswith("interrupted: 0 of") for said in plan.assumptions)


def test_an_operation_that_fails_alone_is_estimated(monkeypatch) -> None:
    def measure(operation, *args):
        if "linear" in operation.key:
            raise RuntimeError("injected: kernel failed\nwith a second line")
        return alone.measure(operation, *args)

    monkeypatch.setattr(task, "measure", measure)
    model = nn.Sequential(nn.Linear(13, 13), nn.Tanh(), nn.Linear(13, 13))
    monkeypatch.setattr(task, "Passes", None)  # nor do whole passes run
    plan = autosplit.plan(model, ["cpu"], (torch.randn(2, 13),), profile=True)
    assert plan.prediction.time_source == "calibrated"
    assert any(said.endswith("RuntimeError: injected: kernel failed") for said in plan.assumptions)


def test_a_device_that_is_too_small_for_the_model_is_profiled() -> None:
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(8)))  # 1 MiB each
    with sim.cluster("2x6MiB") as cluster:
        x = torch.randn(1, 512).to("sim:0")
        plan = autosplit.plan(model, cluster.devices, (x,), mode="infer", profile=True)
        assert cluster.peak_bytes("sim:0") <= 6 * 2**20
    assert plan.strategy == "split"
    assert plan.prediction.time_source == "measured"
    assert any("each by itself" in said for said in plan.assumptions)


# ---------------------------------------------------------------- the store

TIMING = Timing(12, 34, 0.5, None)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, names = measured(nn.Linear(11, 3), (torch.randn(2, 11),), store=store)
    again, _ = measured(nn.Linear(11, 3), (torch.randn(2, 11),), store=store)
    assert (first.measured, again.measured) == (1, 0)
    assert first.timings[names[0]].forward_ns == again.timings[names[0]].forward_ns
    other, _ = measured(nn.Linear(11, 4), (torch.randn(2, 11),), store=store)
    assert other.measured == 1


@pytest.mark.parametrize("damage", ["empty", "garbage", "half", "another table", "wrong types"])
def test_a_damaged_file_costs_a_measurement(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.write("a", {f"op {i}": TIMING for i in range(500)})
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    if damage == "wrong types":
        with sqlite3.connect(path) as database:
            database.execute("UPDATE timing SET forward_ns='x', noise=x'00'")
        database.close()
    elif damage == "another table":
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE timing (device TEXT)")
        database.close()
    else:
        path.write_bytes({"empty": b"", "garbage": b"no database " * 99, "half": data[: len(data) // 2]}[damage])
    assert all(timing == TIMING for timing in store.read("a").values())
    if damage != "half":
        assert not store.read("a")
    store.write("a", {"op": TIMING})
    assert store.read("a").get("op") == TIMING


@given(st.binary(min_size=1, max_size=40))
def test_no_bytes_in_the_file_raise(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name))
        store.write("a", {"op": TIMING})
        (path,) = Path(name).iterdir()
        whole = bytearray(path.read_bytes())
        for place, byte in enumerate(data):
            whole[(place * 977 + byte * 31) % len(whole)] = byte
        path.write_bytes(bytes(whole))
        found = store.read("a")
        assert all(isinstance(timing.forward_ns, int) for timing in found.values())


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    store = Store(blocked / "below")
    store.write("a", {"op": TIMING})
    assert store.read("a") == {}
    monkeypatch.setenv("AUTOSPLIT_CACHE", str(blocked / "below"))
    plan = autosplit.plan(nn.Linear(5, 3), ["cpu"], (torch.randn(2, 5),), profile=True)
    assert plan.prediction.time_source == "measured"


def _write_many(folder: Path, name: str) -> None:
    for i in range(100):
        Store(folder).write("a", {f"{name} {i}": TIMING})


def test_processes_write_at_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_write_many, args=(tmp_path, str(n))) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(Store(tmp_path).read("a")) == 300


# ---------------------------------------------------------------- plans


def test_a_plan_says_where_its_times_come_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AUTOSPLIT_CACHE", str(tmp_path))
    model, args = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), (torch.randn(2, 9),)

    def source(profile: bool | str) -> str:
        return autosplit.plan(model, ["cpu"], args, profile=profile).prediction.time_source

    assert source("auto") == "estimated"
    assert source(True) == "measured"
    assert source("auto") == "measured"
    assert source(False) == "estimated"
    with pytest.raises(autosplit.PlanError, match="profile='always'"):
        source("always")


def test_described_devices_are_never_measured() -> None:
    plan = autosplit.plan(nn.Linear(9, 9), "1x1GiB", (torch.randn(2, 9),), profile=True)
    assert plan.prediction.time_source == "estimated"
    assert any("not measured, as gpu:0 is not here" in said for said in plan.assumptions)


@given(cases())
def test_random_models_are_profiled(case: Case) -> None:
    torch.manual_seed(case.seed)
    model = RandomModel(case.recipe).train(case.train)
    mode = "train" if case.train else "infer"
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    found, names = measured(model, (x,), mode=mode, fits=random.Random(case.seed).random() < 0.5)
    assert not found.notes
    assert set(names) <= set(found.timings)


def test_scratch_memory_is_measured_where_the_device_tells() -> None:
    class Similar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 256))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cosine_similarity(x, self.weight)

    program = climb(Frontend(Similar(), Similar), (torch.randn(64, 256),), {}, "infer", None).program
    (node,) = program.nodes
    with sim.cluster("1x64MiB") as cluster:
        assignment = assign(program, {program.names[node]: "sim:0"}, {"weight": "sim:0"}, "sim:0")
        emitted = rewrite(program, assignment, torch_devices(resolve(cluster.devices)), "sim:0")
        for fits in (True, False):
            found = profile(program, emitted.graph_module, torch.device("sim:0"), fits=fits)
            assert found.timings[program.names[node]].workspace_bytes >= 64 * 256 * 4  # the normalised inputs
    assert program.facts[node].workspace_bytes >= 64 * 256 * 4


def test_what_was_measured_elsewhere_calibrates_a_device_of_the_catalogue(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AUTOSPLIT_CACHE", str(tmp_path))
    model, args = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)), (torch.randn(8, 64),)

    def plan(devices: str) -> autosplit.Plan:
        return autosplit.plan(model, devices, args, mode="infer")

    before = plan("1xA100-80GB")
    assert before.prediction.time_source == "estimated"
    measured(model, args, mode="infer", store=Store(tmp_path))
    assert plan("1xA100-80GB").prediction == before.prediction  # a CPU says nothing of a GPU
    (name,) = Store(tmp_path).devices()
    slow = {key: Timing(40_000_000, 0) for key in Store(tmp_path).read(name)}
    Store(tmp_path).write("NVIDIA H200", slow)
    after = plan("1xA100-80GB")
    assert after.prediction.time_source == "calibrated"
    assert after.prediction.step_ns > 3 * 40_000_000 * 0.9
    assert any("took on NVIDIA H200" in said for said in after.assumptions)
    assert plan("1x80GiB").prediction.time_source == "estimated"


def test_a_lock_that_another_process_holds_deletes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("autosplit.profiler.store._WAIT_S", 0.1)
    Store(tmp_path).write("a", {"op": TIMING})
    (path,) = tmp_path.iterdir()
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    assert Store(tmp_path).read("a") == {}
    Store(tmp_path).write("a", {"op 2": TIMING})
    other.rollback()
    other.close()
    assert Store(tmp_path).read("a") == {"op": TIMING}


def test_operators_of_the_users_own_are_not_kept(tmp_path: Path) -> None:
    @torch.library.custom_op("autosplit_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.autosplit_test.twice(self.layer(x))

    args = (torch.randn(2, 4),)
    first, _ = measured(Net(), args, mode="infer", store=Store(tmp_path))
    again, _ = measured(Net(), args, mode="infer", store=Store(tmp_path))
    assert first.measured == 2
    assert again.measured
    (device,) = Store(tmp_path).devices()
    assert len(Store(tmp_path).read(device)) == 1


def test_which_kernels_torch_takes_is_part_of_the_operation(tmp_path: Path) -> None:
    args = (torch.randn(2, 4),)
    measured(nn.Linear(4, 4), args, store=Store(tmp_path))
    torch.use_deterministic_algorithms(True)
    try:
        other, _ = measured(nn.Linear(4, 4), args, store=Store(tmp_path))
    finally:
        torch.use_deterministic_algorithms(False)
    assert other.measured == 1


def test_virtual_devices_without_data_are_not_measured() -> None:
    with sim.cluster("1x64MiB", data=False) as cluster:
        plan = autosplit.plan(nn.Linear(9, 9), cluster.devices, (torch.randn(2, 9),), profile=True)
    assert plan.prediction.time_source == "estimated"


def test_a_described_device_of_a_present_name_is_not_measured() -> None:
    with sim.cluster("1x64MiB"):
        there = {"devices": [{"name": "sim:0", "kind": "A100-80GB", "memory_bytes": 2**26}]}
        plan = autosplit.plan(nn.Linear(9, 9), there, (torch.randn(2, 9),), profile=True)
    assert plan.prediction.time_source == "estimated"


def test_profiles_in_threads_leave_the_threads_of_torch() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=measured, args=(Blocks(), IDS)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
