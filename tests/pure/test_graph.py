"""Cost graphs: what is refused, and that a document round trip keeps everything."""

import pytest
from graphs import cases
from hypothesis import given

from autosplit.errors import GraphError
from autosplit.graph import CostGraph, Node, Recomputed, Tensor

A, B, C = (Node(name=name) for name in "abc")


def tensor(**fields: object) -> Tensor:
    return Tensor(**{"name": "x", "producer": "a", "readers": ("b",), "size_bytes": 1, **fields})


@pytest.mark.parametrize(
    ("nodes", "tensors", "message"),
    [
        ([A, A], [], "two nodes have the same name"),
        ([A, B], [tensor(), tensor()], "two tensors have the same name"),
        ([A, B], [tensor(producer="z")], "producer 'z' is not a node"),
        ([A, B], [tensor(readers=("z",))], "reader 'z' is not a node"),
        ([A, B], [tensor(saved_by=("z",))], "reader 'z' is not a node"),
        ([A, B], [tensor(size_bytes=-1)], "tensor 'x': cost -1 must be a non-negative integer"),
        ([A, B], [tensor(state_bytes=1.5)], "cost 1.5 must be"),
        ([Node(name="a", forward_ns={"*": -3})], [], "node 'a': cost -3"),
        ([Node(name="a", workspace_bytes=True)], [], "node 'a': cost True"),
        ([Node(name="a", recomputed=Recomputed(inflight_bytes=-2))], [], "node 'a': cost -2"),
        (
            [Node(name="a", forward_ns={"*": 3, "cpu": 9}, recomputed=Recomputed(forward_ns={"*": 4}))],
            [],
            "node 'a': recomputed it takes 4 ns on 'cpu', less than 9 ns as it is",
        ),
    ],
)
def test_malformed(nodes, tensors, message):
    with pytest.raises(GraphError, match=message):
        CostGraph(nodes, tensors)


@pytest.mark.parametrize("readers", [("a",), ("c", "b"), ("b", "b")])
def test_cycles_repeats_and_disorder_are_named(readers):
    with pytest.raises(GraphError, match=f"tensor 'x': node '{readers[-1]}' reads it but does not run after"):
        CostGraph([A, B, C], [tensor(readers=readers)])


def test_a_cycle_of_two_nodes_is_named():
    with pytest.raises(GraphError, match="tensor 'y': node 'a' reads it but does not run after 'b'"):
        CostGraph([A, B], [tensor(), tensor(name="y", producer="b", readers=("a",))])


@given(cases())
def test_document_round_trip(case):
    again = CostGraph.from_json(case.graph.to_json())
    assert (again.nodes, again.tensors, again.mode) == (case.graph.nodes, case.graph.tensors, case.graph.mode)
    assert again.to_json() == case.graph.to_json()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"nodes": [], "tensors": [], "mode": "fly"}', '{"nodes": 3}'])
def test_other_documents_are_refused(text):
    with pytest.raises(GraphError, match="not a cost graph"):
        CostGraph.from_json(text)


def test_recomputed_times_are_by_kind_and_mode_and_kept_in_documents():
    again = Recomputed(forward_ns={"*": 5}, backward_ns={"*": 20, "cpu": 40}, inflight_bytes=1)
    nodes = [Node(name="a", forward_ns={"*": 5}, backward_ns={"*": 10}, recomputed=again), B]
    graph = CostGraph.from_json(CostGraph(nodes, [], "train").to_json())
    assert graph.nodes["a"].recomputed == again
    assert [graph.recomputed_ns("a", kind) for kind in ("gpu", "cpu")] == [25, 45]
    assert graph.recomputed_ns("b", "gpu") == graph.node_ns("b", "gpu") == 0
    assert CostGraph(nodes, []).recomputed_ns("a", "gpu") == 5


def test_a_document_is_checked_like_a_graph():
    text = CostGraph([A, B], [tensor()]).to_json().replace(b'"producer":"a"', b'"producer":"b"')
    with pytest.raises(GraphError, match="does not run after"):
        CostGraph.from_json(text)


def test_digraph_has_an_edge_for_each_pair_and_names_its_tensors():
    graph = CostGraph([A, B, C], [tensor(readers=("b", "c")), tensor(name="y")])
    assert graph.digraph.edges["a", "b"]["tensors"] == ["x", "y"]
    assert graph.digraph.edges["a", "c"]["tensors"] == ["x"]
    assert graph.digraph.nodes["a"]["cost"] is A


def test_times_by_kind_and_mode():
    node = Node(name="a", forward_ns={"fast": 1, "*": 4}, backward_ns={"*": 10})
    assert CostGraph([node], []).node_ns("a", "fast") == 1
    assert CostGraph([node], []).node_ns("a", "slow") == 4
    assert CostGraph([node], [], "train").node_ns("a", "fast") == 11


def test_a_group_of_one_is_no_group():
    nodes = [Node(name="a", group="g"), Node(name="b", group="h"), Node(name="c", group="h")]
    assert CostGraph(nodes, []).groups == {"h": ("b", "c")}
