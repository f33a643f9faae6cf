"""Estimate: what a placement costs. The solver's fast judge of memory and time; the final plan has a stricter one.

The model is one process that issues the nodes in program order. What of that runs side by side is told in
``autosplit.estimate.makespan``; for memory a *slot* is one moment of the program::

    infer   0 .. n-1  the forward of node i      n  the outputs are handed over
    train   0 .. n-1  the forward of node i      n  the outputs are handed over
            2n - i    the backward of node i     2n+1  the optimizer's step

An allocation is held on one device from a first slot to a last slot, both included. Rules:

- A tensor lives on its producer's device (its home) from its producer to its last read; tensors of one storage share
  that allocation. A read on another device is a transfer, made when the first reader there needs it.
- The copy is an allocation of its own, from the first to the last reader there. A view made from a copy keeps it.
- Weights never leave their home. An input that arrives on a device stays there: the caller holds it. Outputs, and
  their copies on ``io_device``, stay to the end. The host's memory is not counted.
- Training: what a backward saved stays on that device until then. The gradient of a tensor is allocated by the first
  backward that adds to it and freed after its producer's backward; that of a parameter stays to the end, and that of
  a copy until it is sent back. Optimizer state is there from the start (a second step), and the step's own bytes of
  all parameters of a device are taken at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from autosplit.device import HOST, Cluster
from autosplit.estimate.judge import Judge
from autosplit.estimate.spans import record
from autosplit.graph import CostGraph
from autosplit.placement import Objective, Span, Transfer

__all__ = ["busy_ns", "peak_bytes", "spans", "step_ns", "transfer_ns", "transfers", "value"]


def _labels(graph: CostGraph, placement: Mapping[str, str], cluster: Cluster) -> list[int]:
    position = {name: i for i, name in enumerate(cluster.names)}
    return [position[placement[name]] for name in graph.nodes]


def transfers(
    graph: CostGraph, placement: Mapping[str, str], cluster: Cluster, io_device: str = HOST
) -> tuple[Transfer, ...]:
    """Every tensor that goes to another device, once per destination, in the order in which they are sent.

    Args:
        graph: what runs.
        placement: device name by node name.
        cluster: its devices.
        io_device: where inputs arrive and outputs return.

    Returns:
        Forward transfers. An input goes from ``io_device`` to its home, and from there to its other readers. O(reads).

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node, Tensor
    >>> x = Tensor(name="x", producer="a", readers=("b", "c"), size_bytes=8)
    >>> graph = CostGraph([Node(name=name) for name in "abc"], [x])
    >>> [t.dst for t in transfers(graph, {"a": "gpu:0", "b": "gpu:1", "c": "gpu:1"}, parse_cluster("2x1GiB"))]
    ['gpu:1']
    """
    judge = Judge(graph, cluster, io_device)
    places = (*cluster.names, HOST)
    moves = sorted(judge.moves(_labels(graph, placement, cluster)), key=lambda move: move.slot)
    return tuple(
        Transfer(
            tensor=judge.names[move.tensor],
            src=places[move.src],
            dst=places[move.dst],
            size_bytes=judge.items[move.tensor].size,
            returns_gradient=judge.train and judge.items[move.tensor].grad,
        )
        for move in moves
    )


def peak_bytes(
    graph: CostGraph, placement: Mapping[str, str], cluster: Cluster, io_device: str = HOST
) -> dict[str, int]:
    """Most bytes held at once, by device name, under the rules of this module.

    Args and complexity as for ``transfers``.

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node, Tensor
    >>> x = Tensor(name="x", producer="a", readers=("b",), size_bytes=8)
    >>> graph = CostGraph([Node(name="a"), Node(name="b", workspace_bytes=5)], [x])
    >>> peak_bytes(graph, {"a": "gpu:0", "b": "gpu:1"}, parse_cluster("2x1GiB"))
    {'gpu:0': 8, 'gpu:1': 13}
    """
    peaks = Judge(graph, cluster, io_device).peaks(_labels(graph, placement, cluster))
    return dict(zip(cluster.names, peaks, strict=True))


def busy_ns(graph: CostGraph, placement: Mapping[str, str], cluster: Cluster) -> dict[str, int]:
    """Compute nanoseconds of one step, by device name; transfers are not in it. O(nodes).

    Args:
        graph: what runs.
        placement: device name by node name.
        cluster: its devices.

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node
    >>> busy_ns(CostGraph([Node(name="a", forward_ns={"*": 7})], []), {"a": "gpu:1"}, parse_cluster("2x1GiB"))
    {'gpu:0': 0, 'gpu:1': 7}
    """
    return dict(zip(cluster.names, Judge(graph, cluster).busy(_labels(graph, placement, cluster)), strict=True))


def step_ns(graph: CostGraph, placement: Mapping[str, str], cluster: Cluster, io_device: str = HOST) -> int:
    """Nanoseconds of one step: its makespan under the rules of ``autosplit.estimate.makespan``.

    On one device, or on synchronous devices, the sum of all nodes and all transfers (gradients too).
    Args and complexity as for ``transfers``.

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node, Tensor
    >>> x = Tensor(name="x", producer="a", readers=("b",), size_bytes=25)
    >>> graph = CostGraph([Node(name="a", forward_ns={"*": 7}), Node(name="b")], [x])
    >>> step_ns(graph, {"a": "gpu:0", "b": "gpu:1"}, parse_cluster("2x1GiB"))
    10008
    """
    return Judge(graph, cluster, io_device).step_ns(_labels(graph, placement, cluster))


def spans(graph: CostGraph, placement: Mapping[str, str], cluster: Cluster, io_device: str = HOST) -> tuple[Span, ...]:
    """The step of ``step_ns`` as a schedule: which device computes and copies when, ordered by start.

    Args and complexity as for ``transfers``.

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node, Tensor
    >>> x = Tensor(name="x", producer="a", readers=("b",), size_bytes=25)
    >>> graph = CostGraph([Node(name="a", forward_ns={"*": 7}), Node(name="b", forward_ns={"*": 1})], [x])
    >>> found = spans(graph, {"a": "gpu:0", "b": "gpu:1"}, parse_cluster("2x1GiB"))
    >>> [(span.device, span.kind, span.start_ns, span.end_ns) for span in found]
    [('gpu:0', 'forward', 0, 7), ('gpu:0', 'send', 7, 10008), ('gpu:1', 'forward', 10008, 10009)]
    """
    return record(Judge(graph, cluster, io_device), _labels(graph, placement, cluster))


def transfer_ns(graph: CostGraph, placement: Mapping[str, str], cluster: Cluster, io_device: str = HOST) -> int:
    """Nanoseconds of all transfers of one step, gradients too, as if none ran beside another.

    Args and complexity as for ``transfers``.

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node, Tensor
    >>> x = Tensor(name="x", producer="a", readers=("b",), size_bytes=25)
    >>> graph = CostGraph([Node(name="a", forward_ns={"*": 7}), Node(name="b")], [x])
    >>> transfer_ns(graph, {"a": "gpu:0", "b": "gpu:1"}, parse_cluster("2x1GiB"))
    10001
    """
    return Judge(graph, cluster, io_device).transfer_ns(_labels(graph, placement, cluster))


def value(
    graph: CostGraph,
    placement: Mapping[str, str],
    cluster: Cluster,
    objective: Objective,
    io_device: str = HOST,
) -> int:
    """The value that ``solve`` minimises. Args and complexity as for ``transfers``.

    Returns:
        latency: ``step_ns``. throughput: the largest load of a device, compute and the transfers that it sends or
        receives (ns). memory: the largest of ``peak_bytes``.

    >>> from autosplit.device import parse_cluster
    >>> from autosplit.graph import Node
    >>> graph = CostGraph([Node(name=name, forward_ns={"*": 7}) for name in "ab"], [])
    >>> value(graph, {"a": "gpu:0", "b": "gpu:1"}, parse_cluster("2x1GiB"), "throughput")
    7
    """
    judge = Judge(graph, cluster, io_device)
    labels = _labels(graph, placement, cluster)
    return judge.value(labels, objective, judge.peaks(labels) if objective == "memory" else ())
