"""A training step on fakes that runs two micro-batches of each size; the others' memory is played from the second's.

The first micro-batch makes the gradients, and all after it add to them: what one allocates and frees in a pass is what
each of its size does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autosplit.pipeline.descent import Descent
from autosplit.predict import Played, Stretch, Tracker, active_tracker
from autosplit.schedule import Pass, ScheduleName


class CannotPlayError(Exception):
    """A micro-batch leaves something to those after it: they do not all do the same."""


class Rehearsal(Descent):
    """One training step in which most micro-batches run no operator; to be called where a tracker books storages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        found = active_tracker()
        assert found is not None  # who asks for a rehearsal tracks it
        self._tracker: Tracker = found
        self._stretches: dict[Pass, Stretch] = {}
        self._played: dict[int, Played] = {}
        second = {part: i + 1 for i, part in reversed([*enumerate(self.parts[1:])])}
        self._model = [second[part] if i else 0 for i, part in enumerate(self.parts)]
        """For each micro-batch the one whose passes are its own."""

    def run(self, schedule: ScheduleName) -> None:
        """All passes, in the order of ``schedule``.

        Raises:
            CannotPlayError: micro-batches do not all do the same; nothing of what was booked is right.
        """
        super().run(schedule)
        self._check()
        for played in self._played.values():
            played.outlive()
        run = sorted({*self._model})
        counts = dict(zip(run, self._counts, strict=True)) if self._counts else {}
        self._counts = [counts[model] for model in self._model if counts]
        self.values = [self.values[model] for model in self._model]
        self.batches = [self.batches[model] for model in self._model]

    def _forward(self, one: Pass) -> None:
        self._run_or_play(one, super()._forward)

    def _backward(self, one: Pass) -> None:
        self._run_or_play(one, super()._backward)

    def _run_or_play(self, one: Pass, run: Callable[[Pass], None]) -> None:
        model = self._model[one.microbatch]
        if model == one.microbatch:
            start = self._tracker.now()
            run(one)
            self._stretches[one] = Stretch.since(self._tracker, *start)
        else:
            played = self._played.setdefault(one.microbatch, Played(self._tracker))
            played.play(self._stretches[one._replace(microbatch=model)])

    def _check(self) -> None:
        """Check that what later passes find is from the first micro-batch, or from none."""
        later = {id(record) for one, s in self._stretches.items() if one.microbatch for record in s.born}
        kept = [value.grad for value in self.shared.values() if getattr(value, "grad", None) is not None]
        kept += [copied.grad for copied in self._shared_copies.values() if copied.grad is not None]
        kept += self._shared_copies.values()
        if any(id(record) in later for record in self._tracker.records(kept)):
            raise CannotPlayError("a micro-batch after the first made a gradient, or a copy for all")
