"""Predict: run the emitted program on fake tensors, book every storage on its device, and see what it peaks at.

What is predicted is what runs: the same graph, the same autograd, the same optimizer, on tensors without data. Each
device's allocations go through the rules of the caching allocator, so what it reserves is predicted too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from autosplit.device import HOST, Cluster, Device
from autosplit.graph import Mode
from autosplit.predict.ledger import Footprint, replay
from autosplit.predict.played import Played, Stretch
from autosplit.predict.step import OptimizerFactory, Steps, Workload, training_loss
from autosplit.predict.tracker import Tracker, active_tracker
from autosplit.program import AcceleratorForms, Input, Spec, accelerator_casts, closed_on_error, fake_mode, following

__all__ = [
    "Footprint",
    "Played",
    "Stretch",
    "Tracker",
    "Workload",
    "active_tracker",
    "fake_devices",
    "measure_optimizer",
    "predict_memory",
    "training_loss",
]


_PROBE_SIDE = 4096
_PROBE = "probe"


def fake_devices(cluster: Cluster) -> dict[str, torch.device]:
    """The devices to emit for when the program is to run on fakes: cpu:0, cpu:1, ...; the host is the CPU itself."""
    return {name: torch.device("cpu", i) for i, name in enumerate(cluster.names)} | {HOST: torch.device("cpu")}


def predict_memory(
    run: Callable[..., Sequence[Any]],
    inputs: Sequence[Input],
    weights: Mapping[str, tuple[Spec, str]],
    *,
    cluster: Cluster,
    io_device: str,
    arrivals: Mapping[int, str],
    mode: Mode,
    optimizer: OptimizerFactory | None,
    kept: frozenset[int] = frozenset(),
    workload: Workload | None = None,
) -> dict[str, Footprint]:
    """Peak memory of each device over one forward pass, or over a steady training step.

    Args:
        run: the emitted program, emitted for ``fake_devices(cluster)``.
        inputs: each placeholder.
        weights: form and home of every parameter and buffer of the model, in its order: the order in which they are
            placed and stepped decides how memory is fragmented.
        cluster: devices and their capacities.
        io_device: where the caller's inputs are.
        arrivals: device of the inputs, by place, that are elsewhere.
        mode: "infer" or "train".
        optimizer: makes the optimizer of one device's parameters; None trains without one.
        kept: places of the outputs that go into an object of the caller, such as a KV cache.
        workload: micro-batches of a step, and how many are in flight; None is one. The step is run once for each
            number in flight, as a device's memory depends on its own alone.

    Raises:
        PlanError: an operation's tensors are on different devices.
    """
    workload = workload or Workload()
    homes = _Homes(inputs, weights, cluster, io_device, arrivals)
    found: dict[int, dict[str, Footprint]] = {}
    for held in {workload.held_on(name) for name in cluster.names}:
        tracker = Tracker(len(cluster.devices))
        on_cpus = all(device.kind == "cpu" for device in cluster.devices)
        forms, casts = (nullcontext(), nullcontext()) if on_cpus else (AcceleratorForms(), accelerator_casts())
        with (
            closed_on_error(),
            fake_mode(),
            torch.set_grad_enabled(mode == "train"),
            tracker,
            forms,
            casts,
            tracker.calls,
            following(tracker.sums),
        ):
            values, placed, weight_bytes = homes.place(tracker)
            steps = Steps(tracker, run, values, partial(homes.batch, placed), held, workload.microbatches, kept)
            trained = {name: weight for name, weight in placed.items() if weight.requires_grad}
            log = steps.train(trained, optimizer) if mode == "train" else steps.infer()
        found[held] = replay(log, cluster, weight_bytes)
    return {name: found[workload.held_on(name)][name] for name in cluster.names}


class _Homes:
    """Where weights and inputs are when a step begins."""

    def __init__(
        self,
        inputs: Sequence[Input],
        weights: Mapping[str, tuple[Spec, str]],
        cluster: Cluster,
        io_device: str,
        arrivals: Mapping[int, str],
    ) -> None:
        self.inputs = inputs
        self.weights = weights
        self.devices = fake_devices(cluster)
        self.device_of = [self.devices[arrivals.get(i, io_device)] for i in range(len(inputs))]

    def place(self, tracker: Tracker) -> tuple[list[Any], dict[str, torch.Tensor], list[int]]:
        """The program's inputs, the weights by name, and the weights' bytes by device."""
        given = self._given()  # by place: two inputs may have the same name
        placed = {name: spec.empty(self.devices[home]) for name, (spec, home) in self.weights.items()}
        tracker.settle(placed.values(), "weights")
        tracker.settle((t for i, t in given.items() if self.inputs[i].kind == "state"), "cache")
        return self._values(placed, given), placed, tracker.allocated_by(list(placed.values()))

    def batch(self, placed: Mapping[str, torch.Tensor]) -> list[Any]:
        """The program's inputs with another batch in them."""
        return self._values(placed, self._given())

    def _given(self) -> dict[int, torch.Tensor]:
        return {
            i: source.spec.empty(self.device_of[i])
            for i, source in enumerate(self.inputs)
            if source.spec is not None and not source.is_weight
        }

    def _values(self, placed: Mapping[str, torch.Tensor], given: Mapping[int, torch.Tensor]) -> list[Any]:
        return [
            placed[source.name] if source.is_weight else given.get(i, source.value)
            for i, source in enumerate(self.inputs)
        ]


def measure_optimizer(factory: OptimizerFactory) -> tuple[float, float]:
    """Step an optimizer on one fake parameter and see what it allocates. Only the solver's estimate rests on it.

    The parameter is a matrix, as most weights of a model are: an optimizer whose state depends on the shape
    (Adafactor keeps a row and a column of a matrix, but all of a vector) keeps more for vectors than this says.

    Returns:
        Bytes that it keeps, and bytes that it takes while it steps, for each byte of parameters.
    """
    size_bytes = _PROBE_SIDE**2 * 4
    cluster = Cluster(devices=(Device(name="probe", kind="probe", memory_bytes=2**62),))
    with fake_mode(), Tracker(1) as tracker:
        parameter = torch.empty(_PROBE_SIDE, _PROBE_SIDE, device="cpu:0", requires_grad=True)
        parameter.grad = torch.empty_like(parameter)
        tracker.settle([parameter, parameter.grad], "weights")
        with tracker.making("optimizer"):
            optimizer = factory({_PROBE: parameter})
        for _ in range(2):
            since = tracker.log.mark()
            with tracker.making("workspace"):
                optimizer.step()
            tracker.settle_new(since, "optimizer")
    parts = replay(tracker.log, cluster, [2 * size_bytes])["probe"].breakdown
    return parts.optimizer_bytes / size_bytes, parts.workspace_bytes / size_bytes
