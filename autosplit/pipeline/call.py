"""One call of a pipelined model in one process: flat inputs to flat outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autosplit.emit import StageGraph
from autosplit.errors import PlanError
from autosplit.pipeline.batches import Values, count_of, cut, merged, weights
from autosplit.pipeline.descent import Descent
from autosplit.pipeline.handed import hand_out
from autosplit.pipeline.local import Stages
from autosplit.program import Program
from autosplit.samples import Merge, Samples
from autosplit.schedule import ScheduleName


@dataclass(frozen=True)
class Line:
    """The program of one micro-batch, and its stages."""

    program: Program
    stages: Sequence[StageGraph]


class Call:
    """Runs calls of one form.

    Args:
        lines: by number of samples of a micro-batch.
        parts: samples of each micro-batch.
        samples: what of inputs and outputs is batched.
        devices: the torch device for each name.
        schedule: "gpipe", or "1f1b" where the call is one of training.
        descent: what runs the passes of "1f1b".

    Raises:
        PlanError: an output of the micro-batches cannot be merged, or "1f1b" has no loss to descend.
    """

    def __init__(
        self,
        lines: Mapping[int, Line],
        parts: Sequence[int],
        samples: Samples,
        devices: Mapping[str, torch.device],
        schedule: ScheduleName,
        descent: type[Descent] = Descent,
    ) -> None:
        self.parts, self.samples, self.schedule, self.descent = parts, samples, schedule, descent
        self.program = program = lines[parts[0]].program
        self.results = [program.names.get(result) for result in program.results]
        self.merges = [self._merge(place) for place in range(len(self.results))]
        counted = [merge.counted[0] for merge in self.merges if merge.counted is not None]
        wanted = {name for name in self.results if name is not None} | set(counted)
        self.stages = Stages([lines[part].stages for part in parts], devices, wanted)
        self.dims = {
            program.names[node]: samples.inputs[source.name]
            for node, source in program.inputs.items()
            if not source.is_weight and source.name in samples.inputs
        }
        self.loss = self._loss() if schedule != "gpipe" and program.mode == "train" else None

    def __call__(self, values: Mapping[str, Any]) -> list[Any]:
        """The outputs of one call.

        Args:
            values: weights and inputs by the program's name of their node; those that it lacks are sizes.
        """
        given = {}
        for node, source in self.program.inputs.items():
            name = self.program.names[node]
            given[name] = values.get(name, source.value)
        shared = {name: value for name, value in given.items() if name not in self.dims}
        batches = cut(given, self.dims, self.parts)
        if self.loss is None:
            return self._merged(self.stages.forward(shared, batches), shared, batches)
        return self._descended(given, shared, batches)

    def _merge(self, place: int) -> Merge:
        merge = self.samples.outputs[place]
        if merge is None and self.results[place] is not None and len(self.parts) > 1:
            raise PlanError(
                f"output {place} of the model cannot be put together from those of micro-batches: "
                f"{'; '.join(self.samples.mixing) or 'its batch dimension is not known'}; use strategy='split'"
            )
        return merge or Merge("same")

    def _loss(self) -> str:
        facts = self.program.facts
        places = [
            place
            for place, node in enumerate(self.program.results)
            if self.merges[place].kind in ("mean", "sum") and any(leaf.requires_grad for leaf in facts[node].leaves)
        ]
        if len(places) != 1:
            raise PlanError(
                f"schedule {self.schedule!r} goes back within the call from the one loss that the model returns; this "
                f"one returns {len(places)} scalars that carry a gradient: return the loss alone, or use "
                "schedule='gpipe'"
            )
        name = self.results[places[0]]
        assert name is not None  # it is a node
        return name

    def _merged(self, values: Sequence[Values], shared: Mapping[str, Any], batches: Sequence[Values]) -> list[Any]:
        outputs: list[Any] = []
        for place, (name, merge) in enumerate(zip(self.results, self.merges, strict=True)):
            if name is None:
                outputs.append(self.program.results[place])
                continue
            found = [_find(name, one, batch, shared) for one, batch in zip(values, batches, strict=True)]
            outputs.append(merged(merge, found, self._shares(merge, values, batches, shared)))
        return outputs

    def _shares(
        self, merge: Merge, values: Sequence[Values], batches: Sequence[Values], shared: Mapping[str, Any]
    ) -> list[Any]:
        if merge.kind not in ("mean", "sum"):
            return []
        counts = None
        if merge.counted is not None:
            name, ignored = merge.counted
            counts = [count_of(_find(name, *found, shared), ignored) for found in zip(values, batches, strict=True)]
        return weights(merge, counts, self.parts)

    def _descended(self, given: Mapping[str, Any], shared: Mapping[str, Any], batches: Sequence[Values]) -> list[Any]:
        assert self.loss is not None  # the caller asked
        place = self.results.index(self.loss)
        step = self.descent(self.stages, shared, batches, loss=self.loss, merge=self.merges[place], parts=self.parts)
        step.run(self.schedule)
        with torch.no_grad():
            outputs = self._merged(step.values, shared, batches)
        names = [name for name, value in given.items() if isinstance(value, torch.Tensor) and value.requires_grad]
        facts = self.program.facts
        tensors = [
            i
            for i, node in enumerate(self.program.results)
            if self.results[i] is not None and any(leaf.requires_grad for leaf in facts[node].leaves)
        ]

        found, factor = step.gradients, step.scale
        for name in self.dims:
            own = [batch.get(name) for batch in step.batch_gradients]
            if all(gradient is not None for gradient in own):
                found[name] = torch.cat(own, self.dims[name])  # type: ignore[arg-type]  # none is None
        del step  # what the micro-batches were is not wanted any more

        def gradients(loss: torch.Tensor) -> list[torch.Tensor | None]:
            scale = loss * factor
            return [found[name].mul_(scale.to(found[name].device)) if name in found else None for name in names]

        handed = hand_out(
            [outputs[i] for i in tensors], tensors.index(place), [given[name] for name in names], gradients
        )
        for i, output in zip(tensors, handed, strict=True):
            outputs[i] = output
        return outputs


def _find(name: str, *places: Mapping[str, Any]) -> Any:
    return next(values[name] for values in places if name in values)
