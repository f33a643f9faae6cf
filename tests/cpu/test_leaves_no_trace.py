"""Planning leaves the process and the model as they were, whether it succeeds or fails, and beside other threads."""

from __future__ import annotations

import copy
import gc
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import fx, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import autosplit
from autosplit import sim
from autosplit.program import Program, closed_on_error

W = 8
THREADS = 8


class Net(nn.Module):
    """Something of everything that a capture has to handle, and a step that may fail."""

    def __init__(self, step: Callable[..., Any] = lambda m, h: h) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(W, W), nn.Linear(W, W), nn.BatchNorm1d(W)
        self.drop = nn.Dropout(0.5).eval()  # one that the user froze
        self.a.bias.requires_grad_(False)
        self.register_buffer("table", torch.ones(W), persistent=False)
        self.a.register_forward_hook(lambda module, args, out: out * 2)
        self.b.weight.note = "kept"
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = getattr(self, "count", 0) + 1
        self.table = self.table * 0.5
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            h = self.drop(self.a(x))
        return self.b(self.norm(self.step(self, h.float()) + torch.rand(1, device=x.device))) * self.table


def fails(m, h):
    raise ValueError("the model's own")


def branches(m, h):
    return h if h.sum() > 0 else -h


def fails_in_regions(m, h):
    with torch.no_grad(), torch.autocast("cpu", enabled=True):
        return torch.vmap(lambda row: row @ torch.ones(W + 1))(h)


def branches_in_grad(m, h):
    return torch.func.grad(lambda v: branches(m, v).sum())(h)


def too_deep(m, h):
    return h @ torch.ones(2, 2)


def process() -> dict[str, Any]:
    """What of the process could be left changed."""
    # Not __init__: Dynamo replaces it when anybody in the process first compiles anything.
    module = {name: getattr(nn.Module, name) for name in ("__call__", "__setattr__", "__getattr__", "_apply")}
    autograd, functorch = torch._C._autograd, torch._C._functorch
    return {
        **module,
        "dynamo": torch._dynamo.config.get_config_copy(),
        "function modes": list(_get_current_function_mode_stack()),
        "dispatch modes": list(_get_current_dispatch_mode_stack()),
        "functorch": functorch.get_dynamic_layer_stack_depth(),
        "saved tensors": autograd._saved_tensors_hooks_get_disabled_error_message(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "random": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
        "kernels": (
            torch._C._get_mkldnn_enabled(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        ),
        "warnings": list(warnings.filters),
    }


def inside(model: nn.Module) -> dict[str, Any]:
    """What of the model could be left changed."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = dict(model.named_modules())
    return {
        "classes": {name: type(module) for name, module in modules.items()},
        "training": {name: module.training for name, module in modules.items()},
        "attributes": {name: list(module.__dict__) for name, module in modules.items()},
        "hooks": {
            name: {key: list(value) for key, value in module.__dict__.items() if "hooks" in key}
            for name, module in modules.items()
        },
        "tensors": {name: (id(t), t.device, t._version, t.requires_grad, t.grad) for name, t in tensors.items()},
        "notes": {name: dict(t.__dict__) for name, t in tensors.items()},
        "values": {name: t.tolist() for name, t in tensors.items()},
        "kept": list(model._non_persistent_buffers_set),
    }


PLANS: dict[str, tuple[Callable[..., Any], str, type[Exception] | None]] = {
    "succeeds": (lambda m, h: h, "2x1GiB", None),
    "does not fit": (lambda m, h: h, "2x1KiB", autosplit.CapacityError),
    "no such device": (lambda m, h: h, "xpu:9", autosplit.DeviceError),
    "the model raises": (fails, "2x1GiB", Exception),
    "branches": (branches, "2x1GiB", None),
    "raises in its regions": (fails_in_regions, "2x1GiB", Exception),
    "branches in a grad": (branches_in_grad, "2x1GiB", None),
    "shapes do not match": (too_deep, "2x1GiB", Exception),
}
AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "plainly": nullcontext,
    "under no_grad": torch.no_grad,
    "under inference_mode": torch.inference_mode,
    "under autocast": lambda: torch.autocast("cpu", dtype=torch.float16),
    "under a default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize(("mode", "around"), [("infer", "plainly"), *(("train", around) for around in AROUND)])
@pytest.mark.parametrize("name", PLANS)
def test_plan_leaves_no_trace(name: str, around: str, mode: Any) -> None:
    step, devices, error = PLANS[name]
    model = Net(step)
    x = torch.ones(4, W)
    with AROUND[around]():
        before, model_before = process(), inside(model)
        if error is None:
            autosplit.plan(model, devices, (x,), mode=mode)
        else:
            with pytest.raises(error):
                autosplit.plan(model, devices, (x,), mode=mode)
        after, model_after = process(), inside(model)
    for key, value in before.items():
        assert after[key] == value, key
    for key, value in model_before.items():
        assert model_after[key] == value, key


def test_regions_that_an_error_leaves_open_are_closed() -> None:
    def opens_and_raises() -> None:
        torch.autocast("cpu", dtype=torch.float16).__enter__()
        torch.set_grad_enabled(False)
        torch._C._autograd._saved_tensors_hooks_disable("no hooks here")
        torch._C._functorch._vmap_increment_nesting(2, "error")
        raise ZeroDivisionError

    before = process()
    with pytest.raises(ZeroDivisionError), closed_on_error():
        opens_and_raises()
    after = process()
    for key, value in before.items():
        assert after[key] == value, key


# ---------------------------------------------------------------- beside other threads


class Layers(nn.Module):
    """A small model unlike the others: its width, depth and activation come from its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.width = W * (1 + number % 3)
        self.activation = (F.relu, torch.tanh, F.gelu, F.silu)[number % 4]
        self.layers = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(2 + number % 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.activation(layer(x)) + x
        return x


class Crowd:
    """Threads that partition while others run models of the user's; the first error of any stops all."""

    def __init__(self, devices: list[str], each: int) -> None:
        self.devices, self.each = devices, each
        self.errors: list[BaseException] = []
        self.partitions = self.runs = 0
        self.over = threading.Event()

    def run(self) -> None:
        splitters = [self._thread(self._partition, number) for number in range(THREADS)]
        users = [self._thread(self._use, number) for number in (0, 1)]
        for thread in splitters:
            thread.join()
        self.over.set()
        for thread in users:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _thread(self, target: Callable[[int], None], number: int) -> threading.Thread:
        def guarded() -> None:
            try:
                target(number)
            except BaseException as error:
                self.errors.append(error)
                self.over.set()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _partition(self, number: int) -> None:
        for turn in range(self.each):
            if self.over.is_set():
                return
            model = Layers(number * self.each + turn).eval()
            unsplit = copy.deepcopy(model)
            x = torch.linspace(-1, 1, 3 * model.width).reshape(3, model.width)
            placement = {f"layers.{i}": self.devices[i % 2] for i in range(len(model.layers))}
            with torch.no_grad():
                split = autosplit.partition(model, self.devices, (x,), placement=placement)
                assert len({p.device for p in split.parameters()}) == 2
                for rows in (3, 2):
                    assert torch.equal(split(x[:rows]), unsplit(x[:rows])), number
            self.partitions += 1

    def _use(self, number: int) -> None:
        """A model run eagerly and, in the second thread, through the user's own torch.compile."""
        model = Layers(100 + number)
        called = torch.compile(model, backend="eager") if number else model
        x = torch.linspace(-1, 1, 3 * model.width).reshape(3, model.width)
        want = model(x)
        want.sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        while not self.over.is_set():
            model.zero_grad()
            have = called(x)
            have.sum().backward()
            assert torch.equal(have, want)
            assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
            self.runs += 1
            time.sleep(0.002)  # the interpreter's lock goes round


@pytest.mark.parametrize("each", [4, pytest.param(200, marks=pytest.mark.long)])
def test_partitions_in_threads(each: int) -> None:
    call = nn.Module.__call__
    with sim.cluster("2x512MiB") as cluster:
        crowd = Crowd([str(device) for device in cluster.devices], each)
        crowd.run()
    print(f"{crowd.partitions} partitions in {THREADS} threads beside {crowd.runs} calls in 2: 0 errors")
    assert crowd.partitions == THREADS * each >= 25
    assert crowd.runs > 0
    assert nn.Module.__call__ is call
    assert not _get_current_function_mode_stack()
    assert not _get_current_dispatch_mode_stack()


def test_first_use_draws_no_random_number() -> None:
    first_use = "import random; random.seed(1); import autosplit; autosplit.plan; print(random.random())"
    ran = subprocess.run([sys.executable, "-c", first_use], capture_output=True, text=True, check=True)
    assert float(ran.stdout) == random.Random(1).random()


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_what_was_captured_goes_with_the_model(mode: str) -> None:
    def captured() -> int:
        gc.collect()
        return sum(type(thing) in (Program, fx.Graph) for thing in gc.get_objects())

    def plan_one() -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))  # a sigmoid saves its own output
        autosplit.plan(model, "2x1GiB", (torch.randn(2, 4),), mode=mode)

    plan_one()
    before = captured()
    for _ in range(3):
        plan_one()
    assert captured() <= before
