"""What a plan would cost under another batch or on other devices, without planning again."""

from __future__ import annotations

import weakref
from dataclasses import replace

import msgspec

from autosplit.api.batch import Trials, check_batch
from autosplit.api.problem import Problem
from autosplit.api.scale import Scaled
from autosplit.capture import Captured
from autosplit.costs import build_graph
from autosplit.device import HOST, Cluster
from autosplit.errors import PlanError
from autosplit.estimate.judge import Judge
from autosplit.graph import CostGraph
from autosplit.hardware import DevicesLike, resolve
from autosplit.placement import Breakdown, DevicePrediction, Placement, Plan, Prediction, Timeline
from autosplit.runtime import unsplit_class

_SMALL_BYTES, _SEGMENT_BYTES = 2 * 2**20, 20 * 2**20  # of the allocator, as in autosplit.allocator
_COSTED = "costed"  # where a plan carries its costs: never in the file


def recost(plan: Plan, *, devices: DevicesLike | None = None, batch: int | None = None) -> Prediction:
    """What ``plan`` would cost with the same placement under another batch, or on other devices.

    Memory is what the plan predicts plus the difference that the engine's estimate sees, at costs linear in the batch,
    made right at a second batch by an exact prediction; times are the estimate's. It takes milliseconds, but for the
    first call for another batch: that one predicts memory at the second batch, and captures the model there (seconds;
    a plan made with batch="max" was captured before).

    Args:
        plan: as ``plan`` returned it, or ``split.plan``, in this process, of a model that is still there: neither a
            file nor a copy carries the costs.
        devices: as in ``plan``; the first stands for the plan's first, and so on. None keeps the plan's. What the new
            ones lack is not an error: compare ``reserved_bytes`` with their memory, and plan before you rely on it:
            what the allocator takes beyond the peak is a guess here.
        batch: samples along dimension 0 of the inputs; None keeps the plan's.

    Returns:
        The prediction, in bytes and ns, by the name of the new devices; its sources say "estimated". O(nodes + reads).

    Raises:
        PlanError: the plan does not carry its costs, the model's batch cannot be varied, or there are too few devices.
        DeviceError: as in ``plan``.
    """
    if plan.pipeline is not None or plan.replicas > 1:
        raise PlanError("recost tells what a call as a whole costs, not a pipeline or replicas: plan again")
    costed = plan.__dict__.get(_COSTED)
    if not isinstance(costed, _Costed):
        raise PlanError(
            "this plan does not carry its costs: recost takes a plan as autosplit.plan returned it in this process; "
            "plan again"
        )
    if batch is not None:
        check_batch(batch)
    cluster = plan.cluster if devices is None else resolve(devices)
    names = _stand_ins(plan, cluster)
    before = costed.sizes(plan)
    placement = {node: names[device] for node, device in plan.placement.items()}
    after = _Sizes(costed.graph(plan, cluster, batch), placement, cluster, names.get(plan.io_device, HOST))
    return Prediction(
        devices={
            new: _shifted(
                plan.prediction.devices.get(old),
                after.busy_ns[new],
                round(costed.slope(old) * (after.peaks[new] - before.peaks[old])),
            )
            for old, new in names.items()
        },
        step_ns=after.step_ns,
        transfer_ns=after.transfer_ns,
        time_source="calibrated" if costed.is_timed else "estimated",
        memory_source="estimated",
    )


def remember(plan: Plan, problem: Problem, trials: Trials) -> None:
    """Have ``plan`` carry its costs, for ``recost``; they are no part of the file, and of no comparison."""
    plan.__dict__[_COSTED] = _Costed(plan, problem, trials)


class _Costed:
    """A plan's costs; the model only as long as somebody else keeps it."""

    def __init__(self, plan: Plan, problem: Problem, trials: Trials) -> None:
        self._batch = plan.batch or trials.example.samples
        self._program, self._optimizer, self._timed = problem.program, problem.optimizer_cost, problem.timed
        # An optimizer and a placement by hand may be objects that hold weights; a factory holds options.
        self._request = replace(problem.request, optimizer=problem.factory, placement=None, batch=None)
        self._example = trials.example.forms()
        self._model = weakref.ref(trials.model)
        others = ((b, c) for b, c in trials.captured.items() if b not in (self._batch, None) and c.rung == "graph")
        self._captured: dict[int | None, Captured] = dict(list(others)[:1])
        self._scaled: Scaled | None = None
        self._slopes: dict[str, float] = {}
        self._sizes: _Sizes | None = None

    @property
    def is_timed(self) -> bool:
        """Whether its times follow measured ones."""
        return bool(self._timed.lenders)

    def sizes(self, plan: Plan) -> _Sizes:
        """What the estimate says of the plan itself."""
        if self._sizes is None:
            self._sizes = _Sizes(self.graph(plan, plan.cluster, None), plan.placement, plan.cluster, plan.io_device)
        return self._sizes

    def slope(self, name: str) -> float:
        """Bytes that a device of the plan exactly takes more with the batch, for each that the estimate sees."""
        return self._slopes.get(name, 1.0)

    def graph(self, plan: Plan, cluster: Cluster, batch: int | None) -> CostGraph:
        """The costs on the devices of ``cluster``."""
        program = self._program
        if batch not in (None, self._batch):
            if self._batch is None:
                raise PlanError(f"batch={batch}: no input of this plan has samples along a dimension 0")
            program = (self._scaled or self._vary(plan, self._batch)).program(batch)
        if program is self._program:
            return build_graph(program, cluster.devices, self._optimizer, self._timed.times, self._timed.lent)
        return build_graph(program, cluster.devices, self._optimizer, lent=self._timed.lenders)

    def _vary(self, plan: Plan, batch: int) -> Scaled:
        """Capture at a second batch where that was not done, and predict the plan's memory there exactly."""
        model, other = self._model(), next((b for b in self._captured if b is not None), 2 * batch)
        if model is None:
            raise PlanError("the model of this plan is gone, and its batch was not varied yet: keep it, or plan again")
        trials = Trials(model, unsplit_class(model), self._request, self._example, self._captured)
        problem = trials.problem(other)
        scaled = Scaled((batch, self._program), (other, problem.program))
        graph = build_graph(scaled.program(other), plan.cluster.devices, self._optimizer)
        before, after = self.sizes(plan), _Sizes(graph, plan.placement, plan.cluster, plan.io_device)
        placement = Placement(devices=plan.placement, objective="latency", value=0, bound=0, method="as planned")
        for name, footprint in problem.evaluate(placement).footprints.items():
            more, seen = (
                footprint.peak_bytes - plan.prediction.devices[name].peak_bytes,
                after.peaks[name] - before.peaks[name],
            )
            self._slopes[name] = more / seen if more * seen > 0 else 1.0
        self._scaled, self._captured = scaled, {}
        return scaled


class _Sizes:
    """What the engine's estimate says of one placement."""

    def __init__(self, graph: CostGraph, placement: dict[str, str], cluster: Cluster, io_device: str) -> None:
        judge = Judge(graph, cluster, io_device)
        position = {name: i for i, name in enumerate(cluster.names)}
        labels = [position[placement[name]] for name in graph.nodes]
        self.step_ns = judge.step_ns(labels)
        self.transfer_ns = judge.transfer_ns(labels)
        self.busy_ns = dict(zip(cluster.names, judge.busy(labels), strict=True))
        self.peaks = dict(zip(cluster.names, judge.peaks(labels), strict=True))


def _stand_ins(plan: Plan, cluster: Cluster) -> dict[str, str]:
    """The new device for each of the plan's."""
    used = {*plan.placement.values(), *plan.weights.values()}
    names = dict(zip(plan.cluster.names, cluster.names, strict=False))
    missing = [name for name in plan.cluster.names if name in used and name not in names]
    if missing:
        raise PlanError(
            f"the plan uses {len(used)} devices, given are {len(cluster.devices)}: nothing stands for "
            f"{', '.join(missing)}; give as many, or plan again"
        )
    return names


def _shifted(exact: DevicePrediction | None, busy_ns: int, more_bytes: int) -> DevicePrediction:
    """The exact prediction, by so many bytes more; what they are parts of is not known."""
    if exact is None:
        return DevicePrediction(peak_bytes=0, reserved_bytes=0, weight_bytes=0, busy_ns=busy_ns)
    if not more_bytes:
        return msgspec.structs.replace(exact, busy_ns=busy_ns)
    peak_bytes = max(exact.weight_bytes, exact.peak_bytes + more_bytes)
    return msgspec.structs.replace(
        exact,
        peak_bytes=peak_bytes,
        reserved_bytes=_reserved(exact, peak_bytes),
        busy_ns=busy_ns,
        breakdown=Breakdown(),
        timeline=Timeline(),
    )


def _reserved(exact: DevicePrediction, peak_bytes: int) -> int:
    """What the allocator may take for that peak: as much beyond it as in the plan, and room for one more segment.

    It is a guess: fragments are not smooth in the batch.
    """
    if peak_bytes == exact.peak_bytes:
        return exact.reserved_bytes
    beyond = max(exact.reserved_bytes - exact.peak_bytes, _SEGMENT_BYTES if peak_bytes > _SMALL_BYTES else 0)
    return -(-(peak_bytes + beyond) // _SMALL_BYTES) * _SMALL_BYTES
