"""One call of a model whose pipeline goes through ranks: flat inputs to flat outputs, the same on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from autosplit.emit import StageGraph
from autosplit.errors import PlanError
from autosplit.pipeline.batches import Values, count_of, cut
from autosplit.pipeline.call import Call, Line
from autosplit.pipeline.handed import hand_out
from autosplit.ranks.engine import Engine
from autosplit.ranks.relay import Part, crossings
from autosplit.ranks.seats import Seat, gather
from autosplit.ranks.stage import StageModule, torch_stage
from autosplit.samples import Samples
from autosplit.schedule import ScheduleName


@dataclass(frozen=True)
class Crew:
    """Who runs what.

    Attributes:
        seat: this rank's place.
        ranks: the position, in its pipeline, of the rank that runs each stage.
        tied: the group of the ranks that read a weight, by the weight's name, where they are several.
    """

    seat: Seat
    ranks: Sequence[int]
    tied: Mapping[str, dist.ProcessGroup]

    @property
    def mine(self) -> list[int]:
        """The stages of this rank."""
        return [stage for stage, rank in enumerate(self.ranks) if rank == self.seat.position]


class RankCall(Call):
    """Runs calls of one form on this rank's stages, beside the other ranks of the pipeline.

    Args:
        line: the program of a micro-batch and all its stages.
        microbatches: how many, all of one size.
        size: samples of each.
        samples: what of inputs and outputs is batched.
        devices: the torch device for each name; those of other ranks are not used.
        schedule: "gpipe" goes back when the caller's ``backward()`` does; all others within the call, from the loss.
        crew: who runs what.

    Raises:
        PlanError: as Call, or torch has not that schedule for so many stages and micro-batches.
    """

    def __init__(
        self,
        line: Line,
        microbatches: int,
        size: int,
        samples: Samples,
        devices: Mapping[str, torch.device],
        schedule: ScheduleName,
        *,
        crew: Crew,
    ) -> None:
        super().__init__({size: line}, [size] * microbatches, samples, devices, schedule)
        self.crew = crew
        self.is_last = crew.ranks[-1] == crew.seat.position
        self.engine = self._engine(line, devices)
        self.read = {name for module in self.engine.modules for name in module.part.takes}
        self._counts = any(merge.counted is not None for merge in self.merges)
        self._forms: list[Any] = []
        self._factor = 1.0
        self._is_new = True

    def __call__(self, values: Mapping[str, Any]) -> list[Any]:
        """As Call: the outputs, on every rank; their gradients go to the weights of the rank's own stages."""
        given = {}
        for node, source in self.program.inputs.items():
            name = self.program.names[node]
            given[name] = values.get(name, source.value)
        if self._is_new:
            self._check(given)
        held = self._weights()
        weights = {name: given[name] for name in held if name in self.read}
        shared = {name: _apart(given[name]) for name in given if name not in self.dims and name not in held}
        batches = cut({name: _apart(given[name]) for name in self.dims}, self.dims, self.parts)
        found = self.engine.run(weights, [{**shared, **batch} for batch in batches])
        leaves = {name: value for name, value in weights.items() if value.requires_grad} if self.trains else {}
        if not self.trains:
            outputs = self._shared_outputs(self._outputs(found, shared, batches))
        elif self.loss is None:
            outputs = self._forth(found, shared, batches, leaves)
        else:
            outputs = self._forth_and_back(found, shared, batches, leaves)
        self._is_new = False
        return outputs

    def _engine(self, line: Line, devices: Mapping[str, torch.device]) -> Engine:
        parts = [_part(graph, devices, s in self.crew.mine) for s, graph in enumerate(line.stages)]
        counted = [merge.counted[0] for merge in self.merges if merge.counted is not None]
        names, born = line.program.names, {name for part in parts for name in part.gives}
        wanted = [name for name in dict.fromkeys([*self.results, *counted]) if name in born and name is not None]
        carrying = {self.results[place] for place in self._carrying()}
        self.returned = [name for name in wanted if name in carrying] if self.loss is None else [self.loss]
        self.trains = line.program.mode == "train" and bool(self.returned)
        forms = {names[node]: facts.form for node, facts in line.program.facts.items()}
        between = crossings(parts, wanted)
        stages = []
        for s in self.crew.mine:
            ends = s == len(parts) - 1
            returns = self.returned if ends and self.trains else ()
            module = StageModule(parts[s], between[s], forms, wanted if ends else (), returns)
            stages.append(torch_stage(module, s, len(parts), self.crew.seat.pipeline))
        schedule = self.schedule if self.loss is not None or len(stages) > 1 else "gpipe"
        weigh = self._weigh if self.loss is not None else None
        return Engine(stages, schedule, len(self.parts), weigh, in_two=self.trains and self.loss is None)

    def _weights(self) -> set[str]:
        return {self.program.names[node] for node, source in self.program.inputs.items() if source.is_weight}

    def _weigh(self, number: int, loss: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch as it counts in the whole's, before ``_scale``; on the rank of the last stage."""
        merge = self.merges[self.results.index(self.loss)]
        if merge.kind == "sum":
            return loss
        if merge.counted is None:
            return loss * (1 / len(self.parts))
        count, targets = self._count(merge.counted, number)
        share = count / (targets.numel() * len(self.parts))
        return torch.where(share > 0, loss * share.to(loss.device), torch.zeros_like(loss))

    def _count(self, counted: tuple[str, int], number: int) -> tuple[torch.Tensor, torch.Tensor]:
        last = self.engine.modules[-1]
        name, ignored = counted
        found = last.results[number] if name in last.results[number] else last.inputs[number]
        return count_of(found[name], ignored), found[name]

    def _scale(self, found: Mapping[int, Values], inputs: Sequence[Mapping[str, Any]]) -> float:
        """What all gradients are still to be multiplied by."""
        merge = self.merges[self.results.index(self.loss)]
        if merge.counted is None:
            return 1.0
        name, ignored = merge.counted
        targets = [found[i][name] if name in found[i] else inputs[i][name] for i in range(len(self.parts))]
        counted = sum(int(count_of(target, ignored)) for target in targets)
        return float(sum(target.numel() for target in targets) / max(counted, 1))

    def _forth_and_back(
        self, found: Any, shared: Values, batches: Sequence[Values], leaves: Mapping[str, torch.Tensor]
    ) -> list[Any]:
        """The gradients are there already: they are handed out when the caller goes back."""
        scale = self._scale(found, [{**shared, **batch} for batch in batches]) if self.is_last else 1.0
        outputs = self._shared_outputs(self._outputs(found, shared, batches), scale)
        gradients = self._tied(self.engine.gradients(), leaves)
        factor = self._factor

        def hand(loss: torch.Tensor) -> list[torch.Tensor | None]:
            return [None, *(_scaled(gradients.pop(name, None), loss * factor) for name in leaves)]

        carrying = self._carrying()
        place = carrying.index(self.results.index(self.loss))
        anchor = torch.zeros((), requires_grad=True)  # a rank may have no weight that trains
        handed = hand_out([outputs[i] for i in carrying], place, [anchor, *leaves.values()], hand)
        return _with(outputs, carrying, handed)

    def _forth(
        self, found: Any, shared: Values, batches: Sequence[Values], leaves: Mapping[str, torch.Tensor]
    ) -> list[Any]:
        """The backward passes come when the caller goes back, from the gradients of the outputs."""
        merged, roots = self._merged_with_roots(found, shared, batches) if self.is_last else ([], [])
        outputs = self._shared_outputs([_apart(value) for value in merged])
        carrying = self._carrying()

        def back(arrived: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
            self.engine.backward(_to_parts([merged[i] for i in carrying], arrived, roots) if self.is_last else {})
            gradients = self._tied(self.engine.gradients(), leaves)
            return [gradients.pop(name, None) for name in leaves]

        anchor = torch.zeros((), requires_grad=True)
        run: Callable[..., tuple[torch.Tensor, ...]] = _GoBack.apply
        handed = run(back, tuple(outputs[i] for i in carrying), anchor, *leaves.values())
        return _with(outputs, carrying, handed)

    def _merged_with_roots(
        self, found: Mapping[int, Values], shared: Values, batches: Sequence[Values]
    ) -> tuple[list[Any], list[list[torch.Tensor]]]:
        """The outputs, and by micro-batch the leaves that they are made from, for their gradients."""
        roots = []
        for i in range(len(self.parts)):
            mine = {name: found[i][name].detach().requires_grad_() for name in self.returned if name is not None}
            found[i].update(mine)
            roots.append(list(mine.values()))
        with torch.enable_grad():
            return self._merged([found[i] for i in range(len(self.parts))], shared, batches), roots

    def _carrying(self) -> list[int]:
        """Places of the outputs that carry a gradient."""
        facts = self.program.facts
        return [
            place
            for place, node in enumerate(self.program.results)
            if self.results[place] is not None and any(leaf.requires_grad for leaf in facts[node].leaves)
        ]

    def _outputs(self, found: Any, shared: Values, batches: Sequence[Values]) -> list[Any]:
        if not self.is_last:
            return []
        with torch.no_grad():
            return self._merged([found[i] for i in range(len(self.parts))], shared, batches)

    def _shared_outputs(self, outputs: list[Any], scale: float = 1.0) -> list[Any]:
        """The outputs of the last stage, sent to every rank of the pipeline."""
        pipeline, source = self.crew.seat.pipeline, self.crew.seat.global_rank(self.crew.ranks[-1])
        if self._is_new or self._counts:
            said: list[Any] = [[_form(value) for value in outputs], scale]
            dist.broadcast_object_list(said, src=source, group=pipeline)
            self._forms, self._factor = said
        shared: list[Any] = []
        for place, form in enumerate(self._forms):
            if not isinstance(form, _Form):
                shared.append(form)
                continue
            home = self.engine.modules[-1].comm
            value = outputs[place].detach().to(home).contiguous() if self.is_last else form.empty(home)
            dist.broadcast(value, src=source, group=pipeline)
            shared.append(value)
        return shared

    def _tied(self, gradients: dict[str, torch.Tensor], leaves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The gradients of weights that several ranks read, summed over these."""
        for name, group in self.crew.tied.items():
            if name in leaves:
                gradient = gradients.get(name)
                gradient = torch.zeros_like(leaves[name]) if gradient is None else gradient.contiguous()
                dist.all_reduce(gradient, group=group)
                gradients[name] = gradient
        return gradients

    def _check(self, given: Mapping[str, Any]) -> None:
        """That all ranks of the pipeline run one program on one batch, and this one has the weights that it reads."""
        for name in sorted(self.read & self._weights()):
            if given[name].is_meta:
                raise PlanError(f"{name!r} is read on this rank and is with another: partition for this mode too")
        tensors = {name: given[name] for name in given if name not in self._weights()}
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and value.requires_grad and self.trains:
                raise PlanError(f"{name!r} requires a gradient, which does not flow across ranks: detach it")
        nodes = hashlib.sha256("\n".join(self.program.names.values()).encode()).hexdigest()
        said = gather((nodes, _digest(tensors)), self.crew.seat.pipeline)
        for position, (other, batch) in enumerate(said):
            if other != said[0][0]:
                raise PlanError(
                    f"rank {position} of the pipeline captured another program than rank 0: build the same model, in "
                    "the same mode, with the same versions of torch and of the model's library on every rank"
                )
            if batch != said[0][1]:
                seat = self.crew.seat
                raise PlanError(
                    f"rank {position} of the pipeline was called with another batch than rank 0: the ranks of a "
                    "pipeline share a batch. Let the data sampler go by replica, not by rank: "
                    f"DistributedSampler(data, num_replicas={seat.replicas}, rank=split.replica), here {seat.replica}"
                )


class _GoBack(torch.autograd.Function):
    """The outputs of a call; going back from any of them runs its backward passes."""

    @staticmethod
    def forward(ctx: Any, back: Any, outputs: tuple[torch.Tensor, ...], *leaves: torch.Tensor) -> Any:
        ctx.back = back
        ctx.set_materialize_grads(False)
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *arrived: torch.Tensor | None) -> Any:
        if ctx.back is None:
            raise RuntimeError("backward() was called twice: what the call kept for it is gone")
        back, ctx.back = ctx.back, None
        return None, None, None, *back(arrived)


@dataclass(frozen=True)
class _Form:
    """Of an output that other ranks get."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def empty(self, device: torch.device) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)


def _form(value: Any) -> Any:
    return _Form(tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value


def _part(graph: StageGraph, devices: Mapping[str, torch.device], is_mine: bool) -> Part:
    ports = (*graph.takes, *graph.gives)
    return Part(
        graph.graph_module.forward,
        tuple(port.name for port in graph.takes),
        tuple(port.name for port in graph.gives),
        {port.name: devices[port.device] for port in ports} if is_mine else {},
    )


def _to_parts(
    merged: Sequence[torch.Tensor], arrived: Sequence[torch.Tensor | None], roots: Sequence[Sequence[torch.Tensor]]
) -> dict[int, list[torch.Tensor | None]]:
    """The gradients of the micro-batches' outputs, from those of the call's."""
    pairs = [(value, gradient) for value, gradient in zip(merged, arrived, strict=True) if gradient is not None]
    flat = [root for part in roots for root in part]
    with torch.enable_grad():
        found = iter(
            torch.autograd.grad(
                [value for value, _ in pairs],
                flat,
                [gradient.to(value.device) for value, gradient in pairs],
                allow_unused=True,
            )
        )
    return {i: [next(found) for _ in part] for i, part in enumerate(roots)}


def _apart(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _scaled(gradient: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor | None:
    return None if gradient is None else gradient.mul_(scale.to(gradient.device))


def _with(outputs: list[Any], places: Sequence[int], values: Sequence[torch.Tensor]) -> list[Any]:
    instead = dict(zip(places, values, strict=True))
    return [instead.get(place, output) for place, output in enumerate(outputs)]


def _digest(values: Mapping[str, Any]) -> str:
    """Equal for equal inputs."""
    digest = hashlib.sha256()
    for name in sorted(values):
        value = values[name]
        digest.update(f"{name} {_form(value)}".encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
