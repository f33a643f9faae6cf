"""partition under a process group: one plan for all ranks, made by the first."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import torch.distributed as dist
from torch import nn

from autosplit.api.given import seated
from autosplit.api.planning import make_plan
from autosplit.api.problem import Request
from autosplit.api.ranks import apply_across, own_cluster, seat_of
from autosplit.capture import Captured, Frontend, climb
from autosplit.device import Cluster
from autosplit.errors import AutosplitError, CapacityError, PlanError
from autosplit.hardware import DevicesLike, is_mesh, torch_devices
from autosplit.placement import Plan, check_plan, renamed
from autosplit.ranks.joined import joined
from autosplit.ranks.seats import decided_by_first, gather, rank_name, rank_of, seats_of_mesh
from autosplit.ranks.wires import Wires, measure_wires
from autosplit.replicate import process_group_is_up
from autosplit.runtime import unsplit_class, weight_signature

Ask = Callable[[Cluster], Request]


def is_across(strategy: str, plan: Plan | None) -> bool:
    """Whether what is asked for goes through several ranks: a pipeline, or replicas of one, under a process group."""
    if not process_group_is_up() or dist.get_world_size() == 1:
        return False
    return plan.pipeline is not None if plan is not None else strategy in ("pipeline", "hybrid")


def partition_across(
    model: nn.Module,
    devices: DevicesLike,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    ask: Ask,
    plan: Plan | None = None,
) -> nn.Module:
    """Partition ``model`` over all ranks; every rank calls it with the same model and inputs of the same form.

    Args:
        model: whole, on every rank.
        devices: of this rank, or of this host, or a DeviceMesh with one dimension, or with "dp" and "pp".
        args: example inputs of one rank's call.
        kwargs: the same by keyword.
        ask: what is asked for of a cluster.
        plan: made before for so many ranks; None plans.

    Raises:
        CapacityError, CaptureError: on every rank, as the first found.
        PlanError: the ranks do not agree, or the plan is for others.
    """
    own = own_cluster(devices)
    clusters = gather(own)
    frontend = Frontend(model, unsplit_class(model))
    request = ask(own)
    captured = _agreed(lambda: _captured(frontend, args, kwargs, request), (request.profile, plan is None))
    wires = None
    if plan is None and request.profile is not False:
        wires = measure_wires(socket.gethostname(), torch_devices(own)[own.names[0]])

    def decide() -> bytes:
        layouts = _layouts(devices, request, clusters, wires)
        return _first_that_fits(model, frontend, args, kwargs, ask, layouts).to_json()

    if plan is None:
        made = Plan.from_json(decided_by_first(decide))
    else:
        made = seated(plan, joined(dict(enumerate(clusters)), None))
    check_plan(made)
    if made.fingerprint != weight_signature(model):
        raise PlanError(
            f"stale plan: it was made for another model than this {type(model).__name__} "
            "(names, shapes or dtypes of the weights differ); plan again, or build the same model on every rank"
        )
    return apply_across(model, made, seat_of(devices, made.replicas), frontend, captured)


def _agreed(make: Callable[[], Captured], asked: tuple[Any, ...]) -> Captured:
    """What ``make`` returns, once all ranks have come so far and ask for the same.

    Raises:
        Exception: what ``make`` raised on this rank.
        AutosplitError: what it raised on the first rank on which it did.
        PlanError: the ranks ask for different things.
    """
    made: Captured | None = None
    error: Exception | None = None
    try:
        made = make()
    except Exception as raised:
        error = raised
    known = error if isinstance(error, AutosplitError) else error and f"{type(error).__name__}: {error}"
    said = gather((known, asked))
    if error is not None:
        raise error
    for rank, (other, wanted) in enumerate(said):
        if other is not None:
            raise other if isinstance(other, AutosplitError) else PlanError(f"rank {rank}: {other}")
        if wanted != asked:
            raise PlanError(
                f"rank {rank} called partition with other profile= or plan= than rank {dist.get_rank()}: "
                "call it alike on every rank"
            )
    assert made is not None  # nothing was raised
    return made


def _captured(frontend: Frontend, args: Sequence[Any], kwargs: Mapping[str, Any], request: Request) -> Captured:
    captured = climb(frontend, args, kwargs, request.mode, request.capture)
    if captured.rung != "graph":
        raise PlanError(
            f"{type(frontend.model).__name__} is not one graph, and only one graph becomes stages of several ranks: "
            f"{'; '.join(captured.notes[:2])}; rewrite that line, or use strategy='split' in one process"
        )
    return captured


def _layouts(
    devices: DevicesLike, request: Request, clusters: Sequence[Cluster], wires: Wires | None
) -> Iterator[tuple[int, Cluster]]:
    """Numbers of replicas with the devices of the first, the most first."""
    world = len(clusters)

    def of(ranks: Iterable[int]) -> Cluster:
        return joined({rank: clusters[rank] for rank in ranks}, wires)

    if is_mesh(devices):
        seat = seats_of_mesh(devices)
        yield seat.replicas, of(seat.global_rank(position) for position in range(seat.size))
        return
    if request.strategy in ("hybrid", "auto"):
        for replicas in range(world // 2, 1, -1):
            if world % replicas == 0:
                yield replicas, of(range(world // replicas))
    if request.strategy == "hybrid":
        return
    yield 1, of(range(world))


def _first_that_fits(
    model: nn.Module,
    frontend: Frontend,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    ask: Ask,
    layouts: Iterator[tuple[int, Cluster]],
) -> Plan:
    refused: CapacityError | None = None
    for replicas, cluster in layouts:
        try:
            plan, _ = make_plan(model, frontend, args, kwargs, replace(ask(cluster), strategy="pipeline"))
        except CapacityError as error:
            refused = error
            continue
        plan = by_rank(plan)
        if replicas == 1:
            return plan
        reason = f"{plan.reason}; {replicas} replicas, each on {len(cluster.devices)} devices of its own"
        return msgspec.structs.replace(plan, strategy="hybrid", replicas=replicas, reason=reason)
    if refused is not None:
        raise refused
    raise PlanError(
        f"strategy='hybrid' wants replicas of two ranks or more, and {dist.get_world_size()} ranks cannot be divided "
        "so: use strategy='pipeline', or another number of ranks"
    )


def by_rank(plan: Plan) -> Plan:
    """The plan with one stage a rank, in the order of the ranks; the devices of a rank share its stage as in a split.

    Raises:
        PlanError: data would flow back to a rank, or the ranks would have to be in another order.
    """
    pipeline = plan.pipeline
    assert pipeline is not None  # it was asked for
    stages: list[list[str]] = []
    order: list[int] = []
    for nodes in pipeline.stages:
        rank = _rank_of(plan.placement[nodes[0]])
        if rank not in order:
            order.append(rank)
            stages.append([])
        elif rank != order[-1]:
            raise PlanError(f"the plan leaves rank {rank} and comes back to it; give each rank devices of one kind")
        stages[-1] += nodes
    plan = _renamed(plan, {rank: place for place, rank in enumerate(order)})
    place = {node: i for i, node in enumerate(plan.placement)}
    in_order = tuple(tuple(sorted(nodes, key=place.__getitem__)) for nodes in stages)
    return msgspec.structs.replace(plan, pipeline=msgspec.structs.replace(pipeline, stages=in_order))


def _rank_of(device: str) -> int:
    known = rank_of(device)
    if known is None:
        raise PlanError(f"device {device!r} is of no rank: plan again")
    return known[0]


def _renamed(plan: Plan, place: Mapping[int, int]) -> Plan:
    """The ranks in the order of the stages; only ranks with the same devices can change places."""
    if all(rank == other for rank, other in place.items()):
        return plan
    alike = plan.cluster.first_alike
    names: dict[str, str] = {}
    for device in plan.cluster.names:
        rank, own = rank_of(device) or (0, device)
        names[device] = rank_name(place.get(rank, rank), own)
    if set(names.values()) != set(names) or any(alike[name] != alike[other] for name, other in names.items()):
        ranks = ", ".join(map(str, place))
        raise PlanError(f"the stages run best on ranks {ranks}, in this order, and these differ: start them so")
    return msgspec.structs.replace(renamed(plan, names), cluster=plan.cluster)
