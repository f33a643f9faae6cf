"""Fleet: the devices as the stage solvers see them, interchangeable ones counted instead of named."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

UNLIMITED = 2**62


class Kind(NamedTuple):
    """Devices that can be swapped with each other.

    Attributes:
        devices: their positions in the cluster.
        capacity_bytes: of each.
        pays: whether a transfer occupies the device; a host, in whose memory the tensors lie, does not pay.
    """

    devices: tuple[int, ...]
    capacity_bytes: int = UNLIMITED
    pays: bool = True


@dataclass(frozen=True, eq=False)
class Fleet:
    """Kinds of devices, and what a transfer costs them.

    Attributes:
        kinds: in the order of their first device; together all devices that may be used.
        sender_pays: whether a stage pays for what it sends, too; it always pays for what it receives.
        overlap: whether transfers run beside compute: a stage then takes the longer of the two, not their sum.
    """

    kinds: tuple[Kind, ...]
    sender_pays: bool = True
    overlap: bool = False

    @property
    def size(self) -> int:
        """How many devices there are."""
        return sum(len(kind.devices) for kind in self.kinds)

    @cached_property
    def states(self) -> tuple[tuple[int, ...], ...]:
        """How many devices of each kind are used: every such tuple, in an order in which fewer come first."""
        return tuple(sorted(product(*(range(len(kind.devices) + 1) for kind in self.kinds)), key=lambda s: (sum(s), s)))

    @cached_property
    def number(self) -> dict[tuple[int, ...], int]:
        """The position of each state in ``states``."""
        return {state: q for q, state in enumerate(self.states)}

    def less(self, state: tuple[int, ...], kind: int, count: int = 1) -> int | None:
        """The number of the state with ``count`` fewer devices of a kind; None when it has not so many."""
        if state[kind] < count:
            return None
        return self.number[(*state[:kind], state[kind] - count, *state[kind + 1 :])]
