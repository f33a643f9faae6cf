"""Nodes that may not run everywhere: where they are put, and what cannot be."""

import pytest

from autosplit.checker import check
from autosplit.device import Cluster, Device
from autosplit.errors import GraphError
from autosplit.graph import CostGraph, Node, Tensor
from autosplit.solvers import solve

CLUSTER = Cluster(
    devices=(
        Device(name="d0", kind="slow", memory_bytes=1000),
        Device(name="d1", kind="fast", memory_bytes=1000),
        Device(name="d2", kind="fast", memory_bytes=1000),
    )
)
X = Tensor(name="x", producer="a", readers=("b",), size_bytes=8)


def graph_of(a: tuple[str, ...], b: tuple[str, ...], group: str | None = None) -> CostGraph:
    pins = {"a": a, "b": b}
    nodes = [Node(name=name, forward_ns={"*": 5}, devices=pins[name], group=group) for name in "ab"]
    return CostGraph(nodes, [X])


@pytest.mark.parametrize("objective", ["latency", "throughput", "memory"])
@pytest.mark.parametrize(
    ("a", "b", "group", "allowed"),
    [
        (("d0",), ("d2",), None, {("d0", "d2")}),
        (("slow",), ("fast",), None, {("d0", "d1"), ("d0", "d2")}),
        (("d2", "d0"), ("fast",), "g", {("d2", "d2")}),
        (("d0", "no such device"), (), "g", {("d0", "d0")}),
    ],
)
def test_a_node_runs_where_it_may(a, b, group, allowed, objective):
    graph = graph_of(a, b, group)
    found = solve(graph, CLUSTER, objective=objective)
    assert tuple(found.devices.values()) in allowed
    check(graph, found, CLUSTER)


@pytest.mark.parametrize(
    ("a", "b", "group", "message"),
    [
        (("d7",), (), None, r"node 'a' may run on d7; of the devices d0, d1, d2 none is that"),
        (
            ("slow",),
            ("fast",),
            "g",
            r"node 'b' of group 'g' may run on fast; of the devices d0, d1, d2 none .* its whole group",
        ),
        (("d1",), ("d2",), "g", r"node 'b' of group 'g' may run on d2;"),
    ],
)
def test_a_node_that_may_run_nowhere_is_named(a, b, group, message):
    with pytest.raises(GraphError, match=message):
        solve(graph_of(a, b, group), CLUSTER)
