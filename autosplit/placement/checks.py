"""Checks of a plan and of a placement at each hand-over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autosplit.device import HOST, Cluster
from autosplit.errors import CapacityError, PlanError
from autosplit.files import clean, quoted
from autosplit.units import format_bytes

if TYPE_CHECKING:
    from autosplit.graph import CostGraph
    from autosplit.placement.plan import Plan


def check_plan(plan: Plan, graph: CostGraph | None = None) -> None:
    """Check a plan at hand-over: every device known, every prediction within capacity.

    With its ``graph`` also: every node placed exactly once, and groups on one device.

    Raises:
        PlanError: names the node, weight or transfer that is wrong.
        CapacityError: a device is predicted to need more than it has.
    """
    names = frozenset(plan.cluster.names)
    known = names | {HOST}
    for what, mapping in (("node", plan.placement), ("weight", plan.weights)):
        for name, device in mapping.items():
            if device not in names:
                raise PlanError(f"{what} {quoted(name)} is placed on unknown device {quoted(device)}")
    for transfer in plan.transfers:
        if transfer.src not in known or transfer.dst not in known or transfer.src == transfer.dst:
            ends = f"{quoted(transfer.src)} -> {quoted(transfer.dst)}"
            raise PlanError(f"transfer of {quoted(transfer.tensor)}: {ends} is not possible")
    if plan.io_device not in known:
        raise PlanError(f"io_device {quoted(plan.io_device)} is not a device of the plan")
    _check_predicted(plan, names)
    _check_pipeline(plan)
    _check_breakdown(plan)
    _check_memory(plan)
    if graph is not None:
        check_placement(graph, plan.placement, plan.cluster)


def check_placement(graph: CostGraph, placement: dict[str, str], cluster: Cluster) -> None:
    """Check that every node is placed once, on a known device, and that groups stay together.

    Raises:
        PlanError: names the first node that is not.
    """
    names = frozenset(cluster.names)
    for name in graph.nodes:
        if placement.get(name) not in names:
            raise PlanError(
                f"node {quoted(name)} is placed on {placement.get(name)!r}: known are {', '.join(cluster.names)}"
            )
    for name in placement:
        if name not in graph.nodes:
            raise PlanError(f"node {quoted(name)} is placed, but the graph has no such node")
    for group, members in graph.groups.items():
        if len({placement[name] for name in members}) > 1:
            raise PlanError(f"group {quoted(group)} is split over several devices: {', '.join(members[:4])} ...")


def _check_predicted(plan: Plan, names: frozenset[str]) -> None:
    """Each device that is used has a prediction, and no other thing has."""
    for name in plan.prediction.devices:
        if name not in names:
            raise PlanError(f"the prediction names a device that the plan does not have: {quoted(name)}")
    for name in {*plan.placement.values(), *plan.weights.values()}:
        if name not in plan.prediction.devices:
            raise PlanError(f"device {quoted(name)} is used, but nothing is predicted of it: plan again")
    if plan.strategy in ("single", "replicate") and len(set(plan.placement.values())) > 1:
        raise PlanError(f"the strategy is {plan.strategy!r}, but nodes are placed on several devices")
    if plan.batch is not None and plan.batch < 1:
        raise PlanError(f"a plan for a batch of {plan.batch}: it must be 1 or more")


def _check_pipeline(plan: Plan) -> None:
    """Every placed node is in one stage, and there is a micro-batch to run."""
    if plan.replicas < 1:
        raise PlanError(f"a plan of {plan.replicas} replicas: there must be 1 or more")
    if plan.pipeline is None:
        if plan.strategy == "pipeline":
            raise PlanError("the strategy is 'pipeline', but the plan has no pipeline: plan again")
        return
    if plan.pipeline.microbatches < 1 or not all(plan.pipeline.stages):
        raise PlanError(
            f"a pipeline of {plan.pipeline.microbatches} micro-batches and {len(plan.pipeline.stages)} stages: "
            "there must be 1 or more, and no stage may be empty"
        )
    staged = [name for stage in plan.pipeline.stages for name in stage]
    if len(staged) != len(plan.placement) or set(staged) != set(plan.placement):
        wrong = min(set(staged) ^ set(plan.placement), default="a node in two stages")
        raise PlanError(f"the stages of the pipeline are not the placed nodes: {quoted(wrong)} differs; plan again")


def _check_breakdown(plan: Plan) -> None:
    for name, device in plan.prediction.devices.items():
        parts = device.breakdown.parts
        if any(parts.values()) and (sum(parts.values()), parts["reserve"]) != (
            device.reserved_bytes,
            device.reserved_bytes - device.peak_bytes,
        ):
            raise PlanError(
                f"prediction of {quoted(name)}: the parts of its memory sum to {sum(parts.values())} B, "
                f"of which {parts['reserve']} B beyond the peak; it reserves {device.reserved_bytes} B, "
                f"its peak is {device.peak_bytes} B"
            )
        if len(device.timeline.positions) != len(device.timeline.allocated_bytes):
            raise PlanError(f"prediction of {quoted(name)}: its timeline has not one size for each position")


def _check_memory(plan: Plan) -> None:
    needs = {name: device.reserved_bytes for name, device in plan.prediction.devices.items()}
    has = {device.name: device.memory_bytes for device in plan.cluster.devices}
    over = [name for name, need in needs.items() if need > has[name]]
    if over:
        worst = max(over, key=lambda name: needs[name] - has[name])
        raise CapacityError(
            f"device {clean(worst)[:120]} needs {format_bytes(needs[worst])} of {format_bytes(has[worst])}",
            needs_bytes=needs,
            has_bytes=has,
        )
