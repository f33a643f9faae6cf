"""What one stretch of a run allocated and freed, noted again for another that would do the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autosplit.predict.ledger import Record
from autosplit.predict.tracker import Tracker


@dataclass(frozen=True)
class Stretch:
    """A part of a log.

    Attributes:
        events: each storage, and whether that was its birth.
        positions: of each event, counted from the first operator of the stretch.
        operators: how many ran.
    """

    events: Sequence[tuple[Record, bool]]
    positions: Sequence[int]
    operators: int

    @classmethod
    def since(cls, tracker: Tracker, event: int, position: int) -> Stretch:
        """From a moment of ``tracker`` until now."""
        log = tracker.log
        events = [(record, record.born == i) for i, record in enumerate(log.events[event:], event)]
        return cls(events, [at - position for at in log.positions[event:]], tracker.position - position)

    @property
    def born(self) -> list[Record]:
        """The storages that were made in it."""
        return [record for record, is_birth in self.events if is_birth]


@dataclass
class Played:
    """A run of which no operator runs: its stretches are played from another's.

    A storage that neither run frees in its stretches dies with the other's (``outlive``).
    """

    tracker: Tracker
    copies: dict[int, tuple[Record, Record]] = field(default_factory=dict)

    def play(self, stretch: Stretch) -> None:
        """Note what the stretch noted, of storages of its own; what the other only freed is not its own."""
        start = self.tracker.position
        for (record, is_birth), position in zip(stretch.events, stretch.positions, strict=True):
            if is_birth:
                copy = record.again()
                self.copies[id(record)] = record, copy
                self.tracker.log.note(copy, start + position)
            elif id(record) in self.copies:
                copy = self.copies[id(record)][1]
                copy.is_live = False
                self.tracker.log.note(copy, start + position)
        self.tracker.position = start + stretch.operators

    def outlive(self) -> None:
        """Nothing more is played: what is left dies with what it was played from."""
        for record, copy in self.copies.values():
            copy.kind = record.kind
            if copy.is_live:
                assert record.is_live  # else its death is in some stretch
                record.heirs = (*record.heirs, copy)
