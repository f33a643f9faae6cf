"""Which rank has which place: pipelines of consecutive ranks, side by side as replicas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch.distributed as dist

from autosplit.errors import AutosplitError, PlanError

T = TypeVar("T")


@dataclass(frozen=True)
class Seat:
    """This rank's place.

    Attributes:
        pipeline: the ranks of its pipeline.
        position: its own among them; its devices are "rankPOSITION/NAME" in a plan.
        replica: which of the equal pipelines it is in. Ranks of one replica take the same batch.
        replicas: how many there are.
        twins: the ranks of the same position in all replicas, which average their gradients; None where it is alone.
    """

    pipeline: dist.ProcessGroup
    position: int
    replica: int = 0
    replicas: int = 1
    twins: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """Ranks in a pipeline."""
        return dist.get_world_size(self.pipeline)

    def global_rank(self, position: int) -> int:
        """The rank of a position of this pipeline in the whole world."""
        return dist.get_global_rank(self.pipeline, position)


def take_seats(replicas: int = 1) -> Seat:
    """The place of this rank where ``replicas`` pipelines share the world; every rank must call it.

    Ranks 0 to n - 1 are the first pipeline, the next n the second.

    Raises:
        PlanError: the world cannot be divided so.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    if world % replicas:
        raise PlanError(f"{replicas} replicas on {world} ranks: the number of ranks must be a multiple of the replicas")
    size = world // replicas
    if replicas == 1:
        return Seat(dist.group.WORLD, rank)  # type: ignore[arg-type]  # torch's property of the default group
    pipelines = [dist.new_group([r * size + p for p in range(size)]) for r in range(replicas)]
    twins = [dist.new_group([r * size + p for r in range(replicas)]) for p in range(size)]
    return Seat(pipelines[rank // size], rank % size, rank // size, replicas, twins[rank % size])


_OF_REPLICAS = ("dp", "replicate", "dp_replicate", "data")


def seats_of_mesh(mesh: Any) -> Seat:
    """The place of this rank in a torch DeviceMesh: a pipeline, or replicas ("dp", "replicate") of pipelines ("pp").

    Raises:
        PlanError: more dimensions than two, or of other names.
    """
    names = tuple(mesh.mesh_dim_names or ())
    if mesh.ndim == 1:
        return Seat(mesh.get_group(0), mesh.get_local_rank(0))
    across = [name for name in names if name in _OF_REPLICAS]
    along = [name for name in names if name in ("pp", "pipeline")]
    if mesh.ndim != 2 or len(across) != 1 or len(along) != 1:
        raise PlanError(
            f"DeviceMesh with dimensions {names or mesh.ndim}: expected one, or two named 'dp' (replicas) and 'pp' "
            "(stages), as init_device_mesh(type, (2, 4), mesh_dim_names=('dp', 'pp')) makes it"
        )
    dp, pp = across[0], along[0]
    seat = Seat(mesh.get_group(pp), mesh.get_local_rank(pp), mesh.get_local_rank(dp), mesh.size(names.index(dp)))
    return replace(seat, twins=mesh.get_group(dp)) if seat.replicas > 1 else seat


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """``value`` of every rank of the group, in order."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def decided_by_first(make: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What ``make`` returns on the first rank, on every rank; an error of it is raised on every rank.

    What is returned must be picklable.
    """
    first = dist.get_global_rank(group, 0) if group is not None else 0
    said: list[Any] = [None, None]
    if dist.get_rank() == first:
        try:
            said = [make(), None]
        except AutosplitError as error:
            said = [None, error]
        except Exception as error:
            said = [None, PlanError(f"rank {first}: {type(error).__name__}: {error}")]
    dist.broadcast_object_list(said, src=first, group=group)
    if said[1] is not None:
        raise said[1]
    return said[0]  # type: ignore[no-any-return]  # what make returned


def rank_name(position: int, device: str) -> str:
    """A device as the plan of a pipeline of ranks names it."""
    return f"rank{position}/{device}"


def rank_of(name: str) -> tuple[int, str] | None:
    """Position and own name of such a device; None for another.

    >>> rank_of("rank2/cuda:0"), rank_of("cuda:0")
    ((2, 'cuda:0'), None)
    """
    head, found, own = name.partition("/")
    if not found or not head.startswith("rank") or not head[4:].isdecimal():
        return None
    return int(head[4:]), own
