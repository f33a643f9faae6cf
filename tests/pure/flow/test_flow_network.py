"""FlowNetwork against networkx's algorithms and against reachability in their residual networks."""

import random

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networkx.algorithms.flow import boykov_kolmogorov, preflow_push

from autosplit.flow import SINK, SOURCE, FlowNetwork

CAPACITIES = st.one_of(st.integers(0, 6), st.sampled_from([0, 1, 2**31, 2**70, 2**70 + 1, None]))


@st.composite
def networks(draw, infinite=True):
    """Arcs (u, v, capacity) on up to eight nodes: parallel ones, self-loops, into the source, out of the sink."""
    count = draw(st.integers(1, 8))
    end = st.integers(SINK, count - 1)
    capacity = CAPACITIES if infinite else st.integers(0, 6)
    return count, draw(st.lists(st.tuples(end, end, capacity), max_size=30))


def own(count, arcs):
    network = FlowNetwork(count)
    for arc in arcs:
        network.add_arc(*arc)
    return network


def theirs(count, arcs):
    graph = nx.DiGraph()
    graph.add_nodes_from((SOURCE, SINK, *range(count)))
    for u, v, capacity in arcs:
        before = graph.edges[u, v].get("capacity") if graph.has_edge(u, v) else 0
        graph.add_edge(u, v, capacity=0)
        graph.edges[u, v]["capacity"] = before
        if capacity is None or before is None:
            del graph.edges[u, v]["capacity"]
        else:
            graph.edges[u, v]["capacity"] += capacity
    return graph


def reached(residual, start, forward):
    found, stack = {start}, [start]
    while stack:
        u = stack.pop()
        for v in residual[u]:
            edge = residual[u][v] if forward else residual[v][u]
            if edge["flow"] < edge["capacity"] and v not in found:
                found.add(v)
                stack.append(v)
    return found


def cost(arcs, inside):
    inside = inside | {SOURCE}
    paid = [capacity for u, v, capacity in arcs if u in inside and v not in inside]
    assert None not in paid, "an infinite arc is cut"
    return sum(paid)


@given(networks())
def test_cut_is_networkx_s_and_both_sides_are_the_extreme_ones(case):
    count, arcs = case
    network, graph = own(*case), theirs(*case)
    try:
        residual = boykov_kolmogorov(graph, SOURCE, SINK)
    except nx.NetworkXUnbounded:
        with pytest.raises(nx.NetworkXUnbounded):
            network.minimum_cut()
        return
    value, smallest = network.minimum_cut()
    assert value == residual.graph["flow_value"] == preflow_push(graph, SOURCE, SINK).graph["flow_value"]
    assert smallest == reached(residual, SOURCE, forward=True) - {SOURCE}
    again, largest = network.minimum_cut(largest=True)
    assert (again, largest) == (value, set(range(count)) - reached(residual, SINK, forward=False))
    assert smallest <= largest
    assert cost(arcs, smallest) == cost(arcs, largest) == value


@given(networks(), st.randoms(use_true_random=False))
def test_the_order_of_arcs_does_not_matter(case, rng):
    count, arcs = case
    shuffled = rng.sample(arcs, len(arcs))
    for largest in (False, True):
        try:
            expected = own(count, arcs).minimum_cut(largest=largest)
        except nx.NetworkXUnbounded:
            continue
        assert own(count, shuffled).minimum_cut(largest=largest) == expected


@given(networks())
def test_flow_is_conserved_and_within_capacities(case):
    graph = theirs(*case)
    try:
        value, flows = own(*case).maximum_flow()
    except nx.NetworkXUnbounded:
        return
    gain = dict.fromkeys(graph, 0)
    for u, v, flow in flows:
        assert 0 < flow <= graph.edges[u, v].get("capacity", flow)
        gain[u] -= flow
        gain[v] += flow
    assert (gain.pop(SINK), gain.pop(SOURCE)) == (value, -value)
    assert not any(gain.values())


@pytest.mark.parametrize("seed", range(6))
def test_wide_and_deep_networks(seed):
    rng = random.Random(seed)
    count = 300
    arcs = [(v, min(count - 1, v + rng.randrange(1, 9)), rng.randrange(1, 50)) for v in range(count) for _ in range(3)]
    arcs += [(v, max(0, v - rng.randrange(1, 9)), rng.choice((None, 7, 2**70))) for v in range(count)]
    arcs += [(SOURCE, rng.randrange(count), rng.randrange(1, 99)) for _ in range(60)]
    arcs += [(rng.randrange(count), SINK, rng.randrange(1, 99)) for _ in range(60)]
    value, largest = own(count, arcs).minimum_cut(largest=True)
    expected, (inside, _) = nx.minimum_cut(theirs(count, arcs), SOURCE, SINK, flow_func=boykov_kolmogorov)
    assert (value, largest | {SOURCE}) == (expected, inside)
    assert cost(arcs, own(count, arcs).minimum_cut()[1]) == value


@given(networks(infinite=False), st.integers(0, 12))
def test_a_cutoff_ends_the_flow_at_it_or_above(case, cutoff):
    most = own(*case).minimum_cut()[0]
    value, flows = own(*case).maximum_flow(cutoff=cutoff)
    assert min(cutoff, most) <= value <= most
    assert value == sum(flow for u, _, flow in flows if u == SOURCE)


def test_back_is_an_arc_the_other_way():
    one, two = FlowNetwork(2), FlowNetwork(2)
    one.add_arc(0, 1, 3, back=None)
    one.add_arc(SINK, 0, 9, back=2)
    two.add_arc(0, 1, 3)
    two.add_arc(1, 0, None)
    two.add_arc(0, SINK, 2)
    assert sorted(one.arcs()) == sorted(two.arcs()) == [(0, SINK, 2), (0, 1, 3), (1, 0, None)]


def test_exact_beyond_floats():
    network = own(1, [(SOURCE, 0, 2**70 + 1), (0, SINK, 2**70), (SOURCE, SINK, 2**70)])
    assert network.minimum_cut() == (2**71, {0})
    network.add_arc(0, SINK, 1)
    assert network.minimum_cut() == (2**71 + 1, set())
    assert network.minimum_cut(largest=True) == (2**71 + 1, {0})


def test_terminals_that_nothing_joins():
    assert own(3, [(SOURCE, 0, 4), (1, SINK, None), (0, 2, None)]).minimum_cut() == (0, {0, 2})
    assert own(3, [(SOURCE, 0, 4), (1, SINK, None)]).minimum_cut(largest=True) == (0, {0, 2})
    assert FlowNetwork().minimum_cut() == (0, set())


def test_an_infinite_path_is_unbounded():
    for arcs in (
        [(SOURCE, SINK, None)],
        [(SOURCE, 0, None), (0, SINK, None)],
        [(SOURCE, 1, None), (1, 0, None), (0, SINK, None)],
    ):
        with pytest.raises(nx.NetworkXUnbounded, match="Infinite capacity path"):
            own(2, arcs).minimum_cut()


@pytest.mark.parametrize("capacity", [-1, 0.5, 2.0, float("nan"), float("inf"), "3"])
def test_only_integers_of_zero_or_more(capacity):
    network = FlowNetwork(2)
    for arc in ((0, 1, capacity), (0, 1, 0, capacity), (SOURCE, 0, capacity)):
        with pytest.raises(nx.NetworkXError, match=r"arc .* capacity"):
            network.add_arc(*arc)
    assert list(network.arcs()) == []


@pytest.mark.parametrize(("u", "v"), [(0, 2), (2, 0), (-3, 0), (0, -3), (SOURCE, 2), (2, SINK)])
def test_unknown_nodes(u, v):
    with pytest.raises(nx.NetworkXError, match="there are 0 to 1"):
        FlowNetwork(2).add_arc(u, v, 1)


def test_a_cut_leaves_the_network_as_it_was():
    network = own(1, [(SOURCE, 0, 5), (0, SINK, 3)])
    assert network.minimum_cut() == network.minimum_cut() == (3, {0})
    node = network.add_node()
    network.add_arc(0, node, None)
    network.add_arc(node, SINK, 9)
    assert network.minimum_cut() == (5, set())
    assert len(network) == 2
    assert SOURCE in network
    assert 2 not in network
