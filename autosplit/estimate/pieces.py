"""Latency when accelerators are offered whole pieces of the program by a host (Tarnawski et al. 2020, latency).

Tensors lie in the host's memory. A node of the host runs when its inputs are there, on one of unlimited cores. All
nodes of an accelerator are one piece: it starts when everything that it reads from outside is there, takes the
accelerator's load (its work, and each tensor that it reads or gives, once), and gives all that it makes at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autosplit.estimate.judge import Judge

NEVER_NS = 2**62
"""The latency of pieces that wait for each other."""


def pieces_ns(judge: Judge, labels: Sequence[int]) -> int:
    """Nanoseconds until the last node and the last piece are done; NEVER_NS when two pieces wait for each other.

    Args:
        judge: a graph and a cluster as numbers, with transfers through the host.
        labels: for each node in program order the position of its device in the cluster.

    Returns:
        The longest path over nodes of the host and pieces. O(nodes + reads).
    """
    part = [i if judge.is_host[device] else judge.n + device for i, device in enumerate(labels)]
    load = judge.load_ns(labels)
    takes = {
        own: judge.node_ns[d][i] if own < judge.n else load[d]
        for i, (own, d) in enumerate(zip(part, labels, strict=True))
    }
    after: dict[int, set[int]] = {own: set() for own in takes}
    for item in judge.items:
        after[part[item.producer]].update(part[reader] for reader in item.readers)
    waits = dict.fromkeys(takes, 0)
    for own, others in after.items():
        others.discard(own)
        for other in others:
            waits[other] += 1
    ready = [own for own, count in waits.items() if not count]
    start = dict.fromkeys(takes, 0)
    end_ns, done = 0, 0
    while ready:
        own = ready.pop()
        finish = start[own] + takes[own]
        end_ns, done = max(end_ns, finish), done + 1
        for other in after[own]:
            start[other] = max(start[other], finish)
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)
    return end_ns if done == len(takes) else NEVER_NS
