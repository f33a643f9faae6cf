"""A placement's latency: when all is done, if one thread issues the program and accelerators run their queues.

Written from the rules in ``autosplit.estimate.makespan``, without its code: the step is written out as a list of what
is issued, each with the queues that it needs, and the list is played.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from autosplit.checker.traffic import Sending
from autosplit.device import HOST, Cluster
from autosplit.graph import CostGraph
from autosplit.placement import Transfer


class _Issue(NamedTuple):
    """One thing that the host's thread issues: its time, on each of these places, once all of them are free.

    ``launch_ns`` is what the host takes to issue it, where it need not wait for it.
    """

    places: tuple[str, ...]
    time_ns: int
    launch_ns: int


def latency_ns(graph: CostGraph, devices: Mapping[str, str], cluster: Cluster, sendings: Iterable[Sending]) -> int:
    """Nanoseconds of one step. O(nodes + devices + transfers).

    Args:
        graph: what runs.
        devices: device name by node name.
        cluster: its devices.
        sendings: all transfers, in program order.
    """
    queue = {device.name: HOST if device.is_synchronous else device.name for device in cluster.devices}
    queue[HOST] = HOST
    free = dict.fromkeys((*queue.values(), HOST), 0)
    for issue in _step(graph, devices, cluster, sendings):
        waits_for = {queue[place] for place in issue.places}
        issued = free[HOST]
        done = max(issued, *(free[name] for name in waits_for)) + issue.time_ns
        free[HOST] = issued + min(issue.launch_ns, issue.time_ns)
        free.update(dict.fromkeys(waits_for, done))
    return max(free.values())


def _step(
    graph: CostGraph, devices: Mapping[str, str], cluster: Cluster, sendings: Iterable[Sending]
) -> Iterator[_Issue]:
    """The forward in program order; in training then the same from its end, with gradients on their way back."""
    known = {device.name: device for device in cluster.devices}
    launch = {name: device.launch_ns for name, device in known.items()} | {HOST: 0}

    def run(name: str, *, back: bool) -> _Issue:
        device = known[devices[name]]
        forward_ns = graph.forward_ns(name, device.kind)
        time_ns = graph.node_ns(name, device.kind) - forward_ns if back else forward_ns
        return _Issue((device.name,), time_ns, device.launch_ns)

    def send(src: str, dst: str, hop: Transfer) -> _Issue:
        return _Issue((src, dst), cluster.transfer_ns(src, dst, hop.size_bytes), launch[src])

    sent_before: dict[str | None, list[Transfer]] = defaultdict(list)
    for hop, reader in sendings:
        sent_before[reader].append(hop)
    order: tuple[str | None, ...] = (*graph.nodes, None)  # None: the outputs
    for name in order:
        yield from (send(hop.src, hop.dst, hop) for hop in sent_before.get(name, ()))
        if name is not None:
            yield run(name, back=False)
    for name in reversed(order) if graph.mode == "train" else ():
        if name is not None:
            yield run(name, back=True)
        returning = (hop for hop in reversed(sent_before.get(name, [])) if hop.returns_gradient)
        yield from (send(hop.dst, hop.src, hop) for hop in returning)
