"""Makespan: when the last device is done with a step, if the emitted program runs as torch runs it.

One thread issues the program in order. A device is one of two kinds:

- *synchronous* (``Device.is_synchronous``: the CPU and the virtual devices, which compute there): the host itself does
  the work, and goes on when it is done;
- *asynchronous* (an accelerator): the host pays ``Device.launch_ns`` for an operator (never more than the operator
  takes: its time holds the launch, and a view has none) and goes on; the device runs its queue in order. An operator
  starts when the host comes to it and the device is done with what was issued before.

So there are as many clocks as asynchronous devices, and the host's. Rules for a transfer:

- It is issued right before the first reader on its destination, that of an output after the last node.
- It starts when the queues of both ends have come to it, and occupies both until it is done: torch copies on the
  current streams of both devices. One from or to the host, or a synchronous device, occupies the host as well, as
  ``.to()`` waits there unless the memory is pinned.
- No other wait is needed: a reader is behind the copy in its queue, and the copy behind the producer in the other.

In training the backward is the mirror image: nodes in reverse order, and each transfer's gradient the other way, right
after the backward of the reader that it was made for. autograd has a thread for each device; that all is issued by one
in reverse order is the safe side. The optimizer's update and a loss outside the model are not in it, nor is the Python
between the parts of a model in several graphs.

When every device is synchronous the makespan is the sum of all nodes and all transfers; so it is on a single device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autosplit.estimate.judge import Judge, Move


class Clocks:
    """When the host (the last clock) and the queue of each asynchronous device are done with what was issued.

    Args:
        judge: devices and costs.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge, self.host = judge, judge.k
        self.queue = queues(judge)
        self.at = [0] * (judge.k + 1)

    def turn(self) -> None:
        """The forward pass was issued; what follows is the backward."""

    def compute(self, device: int, time_ns: int) -> None:
        """Issue an operator."""
        at, queue = self.at, self.queue[device]
        if queue == self.host:
            at[queue] += time_ns
            return
        issued = at[self.host]
        at[queue] = max(issued, at[queue]) + time_ns
        at[self.host] = issued + min(self.judge.launch_ns[device], time_ns)

    def copy(self, src: int, dst: int, time_ns: int) -> None:
        """Issue a transfer; the host is ``judge.k``."""
        at, a, b = self.at, self.queue[src], self.queue[dst]
        issued = at[self.host]
        at[a] = at[b] = max(issued, at[a], at[b]) + time_ns
        if self.host not in (a, b):
            at[self.host] = issued + min(self.judge.launch_ns[src], time_ns)


def queues(judge: Judge) -> list[int]:
    """The clock of each device, and the host's last: its own if it is asynchronous, else the host's."""
    devices = judge.cluster.devices
    return [judge.k if device.is_synchronous else d for d, device in enumerate(devices)] + [judge.k]


def makespan_ns(judge: Judge, labels: Sequence[int]) -> int:
    """Nanoseconds from the start of a step until every device and the host are done.

    Args:
        judge: a graph and a cluster as numbers.
        labels: for each node in program order the position of its device in the cluster.

    Returns:
        The makespan under the rules of this module. O(nodes + reads + transfers * log transfers).
    """
    clocks = Clocks(judge)
    play(clocks, labels)
    return max(clocks.at)


def play(clocks: Clocks, labels: Sequence[int]) -> None:
    """Issue a whole step, in training with its backward."""
    moves = sorted(clocks.judge.moves(labels), key=lambda move: move.slot)
    _forward(clocks, labels, moves)
    if clocks.judge.train:
        clocks.turn()
        _backward(clocks, labels, moves)


def _forward(clocks: Clocks, labels: Sequence[int], moves: Sequence[Move]) -> None:
    judge, done = clocks.judge, 0
    for i, device in enumerate(labels):
        while done < len(moves) and moves[done].slot == i:
            _send(clocks, moves[done])
            done += 1
        clocks.compute(device, judge.forward_ns[device][i])
    for move in moves[done:]:
        _send(clocks, move)


def _send(clocks: Clocks, move: Move) -> None:
    judge = clocks.judge
    clocks.copy(move.src, move.dst, judge.one_way_ns(move.src, move.dst, judge.items[move.tensor].size))


def _backward(clocks: Clocks, labels: Sequence[int], moves: Sequence[Move]) -> None:
    judge = clocks.judge
    returning = [move for move in moves if judge.items[move.tensor].grad]
    for i in range(judge.n, -1, -1):
        if i < judge.n:
            device = labels[i]
            clocks.compute(device, judge.node_ns[device][i] - judge.forward_ns[device][i])
        while returning and returning[-1].slot == i:
            move = returning.pop()
            clocks.copy(move.dst, move.src, judge.one_way_ns(move.dst, move.src, judge.items[move.tensor].size))
