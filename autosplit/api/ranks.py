"""Pipelines through the ranks of a process group: who plans, which rank holds what, and how a call runs there."""

from __future__ import annotations

import socket
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autosplit.api.batch import Example
from autosplit.api.pipelining import capture_pieces, captured_at, check_alike, line_of, names_of
from autosplit.api.running import Caller, Lock, callers_level, refuse_shared_memory
from autosplit.capture import Captured, Compile, Frontend, Run
from autosplit.device import HOST, Cluster, with_memory
from autosplit.errors import DeviceError, PlanError
from autosplit.hardware import DevicesLike, is_mesh, resolve, torch_devices
from autosplit.pipeline.call import Line
from autosplit.placement import Plan
from autosplit.program import Program, closed_on_error
from autosplit.ranks.across import Crew, RankCall
from autosplit.ranks.engine import ranks_of_stages
from autosplit.ranks.held import ReplicatedStages, absent, hold_only
from autosplit.ranks.seats import Seat, gather, rank_of, seats_of_mesh, take_seats
from autosplit.runtime import SplitState, install, place_weights
from autosplit.samples import Samples

_WEIGHT = "weight/"


def own_cluster(devices: DevicesLike) -> Cluster:
    """The devices of this rank.

    Ranks of one host that were given the same devices share them out: each an equal run of them, in order; of one CPU
    each an equal part of its memory. Given a DeviceMesh, each has one device of its kind.

    Raises:
        DeviceError: there are fewer devices than ranks, or they cannot be shared out evenly.
    """
    if is_mesh(devices):
        devices = devices.device_type  # type: ignore[union-attr]  # a DeviceMesh has it
    cluster = resolve(devices)
    torch_devices(cluster)
    return share_of(cluster)


def share_of(cluster: Cluster) -> Cluster:
    """What this rank has of devices that all ranks of this host were given; every rank calls it.

    Raises:
        DeviceError: as ``own_cluster``.
    """
    mine = (socket.gethostname(), cluster.names)
    alike = [rank for rank, said in enumerate(gather(mine)) if said == mine]
    count, place = len(alike), alike.index(dist.get_rank())
    if count == 1:
        return cluster
    if cluster.names == ("cpu",):
        cpu = cluster.devices[0]
        return msgspec.structs.replace(cluster, devices=(with_memory(cpu, cpu.memory_bytes // count),))
    size, left = divmod(len(cluster.devices), count)
    if left or not size:
        raise DeviceError(
            f"{len(cluster.devices)} devices for {count} ranks of one host: give a multiple, or each rank its own"
        )
    share = cluster.devices[place * size : (place + 1) * size]
    names = {device.name for device in share} | {HOST}
    links = tuple(link for link in cluster.links if {link.src, link.dst} <= names)
    return msgspec.structs.replace(cluster, devices=share, links=links)


def seat_of(devices: DevicesLike, replicas: int) -> Seat:
    """The place of this rank: by the mesh, where ``devices`` is one."""
    return seats_of_mesh(devices) if is_mesh(devices) else take_seats(replicas)


def apply_across(model: nn.Module, plan: Plan, seat: Seat, frontend: Frontend, captured: Captured) -> nn.Module:
    """Make ``model`` this rank's part of the pipeline that ``plan`` is; every rank calls it.

    Args:
        model: whole, on every rank; what other ranks run is emptied in place.
        plan: with a pipeline whose devices are named by rank.
        seat: this rank's place.
        frontend: what captured the model.
        captured: the call that was planned.

    Returns:
        ``model``; in DistributedDataParallel where there are replicas.

    Raises:
        PlanError: the ranks captured different programs, or the plan is not for so many ranks.
    """
    if plan.replicas != seat.replicas:
        raise PlanError(f"the plan is for {plan.replicas} replicas and the DeviceMesh has {seat.replicas}: plan again")
    devices = _devices(plan, seat)
    line = line_of(captured.program, plan.pipeline, plan.placement, plan.weights, devices, Samples({}, (), ()))  # type: ignore[arg-type]  # it has one
    ranks = _ranks(plan, seat)
    _agree(captured.program, seat)
    readers = _readers(line, ranks)
    kept = _homes(model, plan, seat, line, ranks, devices)
    place_weights(model, kept)
    hold_only(model, kept)
    crew = Crew(seat, ranks, _tie(model, readers, seat))
    lock = threading.RLock()
    install(model, SplitState(RankCaller(plan, crew, frontend, lock), plan, is_partial=True, lock=lock))
    model.replica = seat.replica  # type: ignore[assignment]  # a number beside the modules
    if seat.twins is None or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, absent(model))
    wrapped = ReplicatedStages(model, process_group=seat.twins)
    wrapped.plan, wrapped.replica = plan, seat.replica  # type: ignore[assignment]  # as on the model
    return wrapped


class _UnknownFormError(Exception):
    """A call of this program, of inputs of this form, wants a capture of its micro-batches first."""

    def __init__(self, program: Program, form: Any) -> None:
        self.program, self.form = program, form


class RankCaller(Caller):
    """Calls this rank's part of a model; every rank of the pipeline calls its own with the same batch.

    Args:
        plan: with a pipeline.
        crew: who runs what.
        frontend: what captured the model for the plan.
        lock: held by its calls.
    """

    def __init__(self, plan: Plan, crew: Crew, frontend: Frontend | None, lock: Lock) -> None:
        super().__init__(plan, frontend, is_pinned=True, lock=lock)
        self._crew = crew
        self._calls: weakref.WeakKeyDictionary[Program, dict[Any, RankCall]] = weakref.WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> Caller:
        raise PlanError("a pipeline through ranks cannot be copied: copy the model before, and partition the copy")

    def _exported(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise PlanError(
            f"torch.export of a {type(model).__name__} that is a pipeline through ranks: this "
            "rank has a part of its weights; export the model before it is split"
        )

    def _call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super()._call(model, args, kwargs)
        except _UnknownFormError as wanted:
            self._calls.setdefault(wanted.program, {})[wanted.form] = self._prepare(wanted.program, model, args, kwargs)
        return super()._call(model, args, kwargs)

    def _compile(self, model: nn.Module) -> Compile:
        return _compiler(self._calls)

    def _prepare(self, program: Program, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RankCall:
        plan, example = self._plan, Example(args, kwargs, HOST)
        pipeline = plan.pipeline
        assert pipeline is not None  # it goes through ranks
        samples = example.samples or 1
        count = next(n for n in range(min(samples, pipeline.microbatches), 0, -1) if samples % n == 0)
        if count < min(samples, pipeline.microbatches):
            cut = "goes through as a whole" if count == 1 else f"is cut into {count} micro-batches"
            self._tell(
                f"a batch of {samples} {cut}: across ranks all micro-batches have one size; use batches that "
                f"{pipeline.microbatches} divides (drop_last=True leaves the last, smaller one out)"
            )
        pieces = capture_pieces(partial(captured_at, model, example), program, samples, [samples // count])
        small = pieces.small[samples // count]
        words = check_alike(pieces, samples // count)
        if words is not None:
            self._tell(f"micro-batches may change what this model computes: {words}")
        if len(small.results) != len(program.results):
            raise PlanError("it returns or keeps a number that changes from call to call: ranks cannot share that")
        devices = _devices(plan, self._crew.seat)
        homes = {name: home for name, home in plan.weights.items() if home in devices}
        line = line_of(small, pipeline, plan.placement, homes, devices, pieces.samples)
        waits = not model.training and pipeline.schedule == "1f1b"  # nobody trains: go back only if asked to
        schedule = "gpipe" if waits else pipeline.schedule
        return RankCall(line, count, samples // count, pieces.samples, devices, schedule, crew=self._crew)

    def _tell(self, words: str) -> None:
        if words not in self._told:
            self._told.add(words)
            warnings.warn(words, stacklevel=callers_level())


def _compiler(calls: weakref.WeakKeyDictionary[Program, dict[Any, RankCall]]) -> Compile:
    """Makes what runs one captured program; what crosses ranks has a form of its own for each form of the inputs."""

    def compile_program(program: Program) -> Run:
        names, known = names_of(program), weakref.ref(program)
        movable = [i for i, source in enumerate(program.inputs.values()) if not source.is_weight]

        def run(inputs: Sequence[Any], io_device: torch.device, homes_id: int) -> Sequence[Any]:
            current = known()
            assert current is not None  # it is being called
            form = tuple(tuple(inputs[i].shape) if isinstance(inputs[i], torch.Tensor) else inputs[i] for i in movable)
            call = calls.get(current, {}).get(form)
            if call is None:
                raise _UnknownFormError(current, form)
            refuse_shared_memory(current, inputs)
            with closed_on_error(io_device.type):
                outputs = call(dict(zip(names, inputs, strict=True)))
            return [output.to(io_device) if isinstance(output, torch.Tensor) else output for output in outputs]

        return run

    return compile_program


def _devices(plan: Plan, seat: Seat) -> dict[str, torch.device]:
    """The torch device of each of the plan's devices: those of other ranks hold nothing here."""
    found = {HOST: torch.device("cpu")}
    for name in plan.cluster.names:
        known = rank_of(name)
        if known is None:
            raise PlanError(
                f"this plan is for {name!r} in one process, not for ranks: under a process group give "
                "strategy='pipeline' or 'hybrid' to partition, or call it without a process group"
            )
        found[name] = torch.device(known[1] if known[0] == seat.position else "meta")
    return found


def _ranks(plan: Plan, seat: Seat) -> list[int]:
    """The position of the rank that runs each stage."""
    assert plan.pipeline is not None  # the caller looked
    ranks: list[int] = []
    for stage, nodes in enumerate(plan.pipeline.stages):
        found = {known[0] for node in nodes if (known := rank_of(plan.placement[node])) is not None}
        if len(found) != 1:
            raise PlanError(f"stage {stage} is on the devices of ranks {sorted(found)}: a stage runs on one rank")
        ranks += found
    if set(ranks) != set(range(seat.size)):
        raise PlanError(
            f"the plan's stages run on ranks {', '.join(map(str, sorted(set(ranks))))} of a pipeline of {seat.size}: "
            "plan for as many ranks as there are, or start fewer"
        )
    wanted = ranks_of_stages(plan.pipeline.schedule, len(ranks), seat.size)
    if ranks != wanted:
        raise PlanError(
            f"the plan's stages run on ranks {', '.join(map(str, ranks))}; schedule {plan.pipeline.schedule!r} wants "
            f"them on ranks {', '.join(map(str, wanted))}: plan again"
        )
    return ranks


def _agree(program: Program, seat: Seat) -> None:
    """Every rank must have captured the same nodes: each emits its own stages."""
    said = gather(list(program.names.values()))
    for rank, names in enumerate(said):
        if names != said[0]:
            other = next((pair for pair in zip(said[0], names, strict=False) if pair[0] != pair[1]), ("end", "end"))
            raise PlanError(
                f"rank {rank} captured another program than rank 0 ({other[1]!r} where that has {other[0]!r}): build "
                "the same model, with inputs of the same form and the same versions of its libraries on every rank"
            )


def _readers(line: Line, ranks: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The positions that read each weight."""
    found: dict[str, set[int]] = {}
    for stage, graph in enumerate(line.stages):
        for port in graph.takes:
            if port.name.startswith(_WEIGHT):
                found.setdefault(port.name.removeprefix(_WEIGHT), set()).add(ranks[stage])
    return {name: tuple(sorted(positions)) for name, positions in found.items()}


def _homes(
    model: nn.Module,
    plan: Plan,
    seat: Seat,
    line: Line,
    ranks: Sequence[int],
    devices: Mapping[str, torch.device],
) -> dict[str, torch.device]:
    """Where this rank keeps each weight that it reads; what no stage reads in this mode stays on every rank."""
    read: dict[str, torch.device] = {}
    anywhere: set[str] = set()
    for stage, graph in enumerate(line.stages):
        taken = {port.name.removeprefix(_WEIGHT): port for port in graph.takes if port.name.startswith(_WEIGHT)}
        anywhere |= set(taken)
        if ranks[stage] == seat.position:
            for name, port in taken.items():
                home = devices[plan.weights[name]]
                read.setdefault(name, devices[port.device] if home.type == "meta" else home)
    first = next(device for name, device in devices.items() if name != HOST and device.type != "meta")
    named = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return read | {name: first for name in named if name not in anywhere}


def _tie(model: nn.Module, readers: Mapping[str, tuple[int, ...]], seat: Seat) -> dict[str, dist.ProcessGroup]:
    """The group of the ranks that read each weight that several read; made equal there. Every rank calls it."""
    shared = {name: positions for name, positions in readers.items() if len(positions) > 1}
    mine = tuple(seat.global_rank(position) for position in range(seat.size))
    groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for pipeline in sorted({*gather(mine)}):
        for positions in sorted({*shared.values()}):
            group = dist.new_group([pipeline[position] for position in positions])
            if pipeline == mine and seat.position in positions:
                groups[positions] = group
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tied = {}
    for name, positions in shared.items():
        if positions in groups:
            with torch.no_grad():
                dist.broadcast(weights[name].data, seat.global_rank(positions[0]), group=groups[positions])
            tied[_WEIGHT + name] = groups[positions]
    return tied
