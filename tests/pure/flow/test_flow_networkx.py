"""Our algorithm in networkx's clothes: ``flow_func=``, and the functions of the backend, against networkx's own."""

import math
from decimal import Decimal
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networkx.algorithms.flow import preflow_push

from autosplit.flow import SINK, SOURCE, FlowNetwork, backend, boykov_kolmogorov

INTEGERS = st.one_of(st.integers(0, 6), st.sampled_from([2**70, None]))
EIGHTHS = st.one_of(st.integers(0, 40).map(lambda n: n / 8), st.sampled_from([math.inf, None]))


@st.composite
def graphs(draw, capacities):
    graph = draw(st.sampled_from([nx.DiGraph, nx.Graph]))()
    names = [*"stabcdef"[: draw(st.integers(2, 8))]]
    graph.add_nodes_from(draw(st.permutations(names)))
    for u, v, capacity in draw(st.lists(st.tuples(*2 * [st.sampled_from(names)], capacities), max_size=24)):
        graph.add_edge(u, v, **({} if capacity is None else {"size": capacity}))
    return graph


def outcome(call):
    try:
        return call()
    except nx.NetworkXException as error:
        return type(error), str(error)


@given(st.one_of(graphs(INTEGERS), graphs(EIGHTHS)))
def test_the_same_as_networkx(graph):
    marked = backend.convert_from_nx(graph, edge_attrs={"size": math.inf})
    expected = outcome(lambda: nx.minimum_cut(graph, "s", "t", capacity="size"))
    assert outcome(lambda: backend.minimum_cut(marked, "s", "t", capacity="size")) == expected
    assert outcome(lambda: nx.minimum_cut(graph, "s", "t", capacity="size", flow_func=boykov_kolmogorov)) == expected
    value = outcome(lambda: nx.maximum_flow_value(graph, "s", "t", capacity="size"))
    assert outcome(lambda: backend.minimum_cut_value(marked, "s", "t", capacity="size")) == value
    assert outcome(lambda: backend.maximum_flow_value(marked, "s", "t", capacity="size")) == value


@given(st.one_of(graphs(INTEGERS), graphs(EIGHTHS)))
def test_the_flow_is_one(graph):
    try:
        value, flow = backend.maximum_flow(backend.convert_from_nx(graph), "s", "t", capacity="size")
    except nx.NetworkXUnbounded:
        return
    for node in graph:
        gain = sum(flow[u].get(node, 0) for u in graph) - sum(flow[node].values())
        assert gain == {"s": -value, "t": value}.get(node, 0)
    for u, v, capacity in graph.edges(data="size", default=math.inf):
        assert 0 <= flow[u][v] <= capacity
        assert u == v or graph.is_directed() or 0 <= flow[v][u] <= capacity


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0, 4))
def test_floats_are_exact(sizes, last):
    graph = nx.DiGraph()
    for i, size in enumerate(sizes):
        graph.add_edge("s", i, capacity=size)
        graph.add_edge(i, "m", capacity=math.inf)
    graph.add_edge("m", "t", capacity=last)
    total = sum(map(Fraction, sizes))
    value, (inside, _) = backend.minimum_cut(graph, "s", "t")
    assert value == float(min(total, Fraction(last)))
    assert ("m" in inside) == (total >= Fraction(last))
    assert nx.minimum_cut(graph, "s", "t", flow_func=boykov_kolmogorov)[1][0] == inside


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [
        ((3, 5), 3),
        ((3.0, 5), 3.0),
        ((Fraction(1, 3), 5), Fraction(1, 3)),
        ((Decimal("0.1"), 5), 0.1),
        ((np.int64(3), np.float32(2.5)), 2.5),
        ((True, 5), 1),
        ((5e-324, 1e308), 5e-324),
    ],
)
def test_kinds_of_numbers(capacities, expected):
    graph = nx.DiGraph()
    nx.add_path(graph, "sat")
    nx.set_edge_attributes(graph, dict(zip(graph.edges, capacities, strict=True)), "capacity")
    value = backend.minimum_cut_value(graph, "s", "t")
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("capacity", [-1, -0.5, math.nan, -math.inf, "3", None])
def test_what_is_no_capacity_is_refused(capacity):
    graph = nx.DiGraph([("s", "t", {"capacity": capacity})])
    for cut in (backend.minimum_cut, boykov_kolmogorov):
        with pytest.raises(nx.NetworkXError, match="edge 's', 't': capacity"):
            cut(graph, "s", "t")


@pytest.mark.parametrize(
    ("graph", "source", "sink"),
    [
        (nx.DiGraph([("s", "t")]), "s", "q"),
        (nx.DiGraph([("s", "t")]), "q", "t"),
        (nx.DiGraph([("s", "t")]), "s", "s"),
        (nx.MultiDiGraph([("s", "t")]), "s", "t"),
        (nx.DiGraph([("s", "t")]), "s", "t"),
    ],
)
def test_the_same_errors_as_networkx(graph, source, sink):
    expected = outcome(lambda: nx.minimum_cut(graph, source, sink))
    assert issubclass(expected[0], nx.NetworkXException)
    assert outcome(lambda: backend.minimum_cut(graph, source, sink)) == expected
    assert outcome(lambda: nx.minimum_cut(graph, source, sink, flow_func=boykov_kolmogorov)) == expected


def test_residual_network_is_used_again_and_cut_off():
    graph = nx.DiGraph()
    for middle, size in zip("abc", (2, 3, 4), strict=True):
        nx.add_path(graph, ("s", middle, middle.upper(), "t"), capacity=size)
    residual = boykov_kolmogorov(graph, "s", "t")
    assert (residual.graph["flow_value"], residual.graph["algorithm"]) == (9, "boykov_kolmogorov")
    theirs = preflow_push(graph, "s", "t")
    assert set(residual.edges) == set(theirs.edges)
    again = boykov_kolmogorov(graph, "s", "t", residual=residual, cutoff=3)
    assert again is residual
    assert 3 <= again.graph["flow_value"] < 9
    assert sum(again["s"][v]["flow"] for v in "abc") == again.graph["flow_value"]
    assert all(again[u][v]["flow"] == -again[v][u]["flow"] for u, v in again.edges)


def test_a_flow_network_is_a_graph_to_networkx():
    network = FlowNetwork(2)
    network.add_arc(SOURCE, 0, 5)
    network.add_arc(0, 1, 3, back=None)
    network.add_arc(1, SINK, 4)
    graph = backend.convert_to_nx(network)
    assert set(graph) == {SOURCE, SINK, 0, 1}
    expected = nx.minimum_cut(graph, SOURCE, SINK)
    assert backend.minimum_cut(network, SOURCE, SINK) == expected == (3, ({SOURCE, 0}, {SINK, 1}))
    assert backend.minimum_cut(network, SOURCE, 1) == nx.minimum_cut(graph, SOURCE, 1)


def test_a_flow_func_is_not_ours_to_run():
    graph = nx.DiGraph()
    assert backend.can_run("minimum_cut", (graph, 0, 1, "capacity", None), {}) is True
    assert "flow_func" in backend.can_run("minimum_cut", (graph, 0, 1, "capacity", preflow_push), {})
    assert "flow_func" in backend.can_run("minimum_cut", (graph, 0, 1), {"flow_func": preflow_push})
    assert "cutoff" in backend.can_run("minimum_cut", (graph, 0, 1), {"cutoff": 3})
