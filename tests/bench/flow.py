"""Minimum cuts: ours against networkx's, in thread CPU time, interleaved.

    python tests/bench/flow.py [--ops 1000,10000,100000] [--repeats 3] [--slow-limit 10000]

"grid" is Ishikawa's network of a random DAG of operators and four devices in a row, three nodes per operator, each with
a price of its own on every device; "priced" has one price of time and of bytes per device instead. "window" is the
boundary cut of a run of a random DAG between what is before it and what is after it. Every algorithm must find the same
value. networkx is left out above ``--slow-limit`` operators ("unmeas.").
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov, preflow_push

from autosplit.flow import SINK, SOURCE, FlowNetwork

DEVICES = 4
WINDOWS = (120, 470, 1880)
Arcs = list[tuple[int, int, int | None]]


def main() -> int:
    """Print the table; exit 1 when two algorithms differ in a value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", default="1000,10000,100000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slow-limit", type=int, default=10_000)
    options = parser.parse_args()
    print(f"{'ms':16} {'nodes':>8} {'arcs':>8} {'build':>9} {'cut':>9} {'dispatch':>9} {'nx BK':>9} {'nx push':>9}")
    good = True
    for size in WINDOWS:
        good &= row(f"window {size}", *window(random.Random(size), size), 10 * options.repeats, nx_too=True)
    for size in map(int, options.ops.split(",")):
        for name, costs in (("grid", own_prices), ("priced", common_prices)):
            nodes, arcs = grid(random.Random(size), size, costs)
            good &= row(f"{name} {size}", nodes, arcs, options.repeats, nx_too=size <= options.slow_limit)
    return 0 if good else 1


def row(name: str, nodes: int, arcs: Arcs, repeats: int, nx_too: bool) -> bool:
    """Measure one network and print its line; False when the values differ."""
    own, theirs = own_network(nodes, arcs), nx_network(nodes, arcs) if nx_too else None
    algorithms: dict[str, Callable[[], object]] = {
        "build": lambda: own_network(nodes, arcs),
        "cut": lambda: own.minimum_cut()[0],
    }
    if "autosplit" in nx.utils.backends.backends:
        algorithms["dispatch"] = lambda: nx.minimum_cut(own, SOURCE, SINK)[0]
    if nx_too:
        algorithms["nx BK"] = lambda: nx.minimum_cut(theirs, SOURCE, SINK, flow_func=boykov_kolmogorov)[0]
        algorithms["nx push"] = lambda: nx.minimum_cut(theirs, SOURCE, SINK, flow_func=preflow_push)[0]
    seconds: dict[str, list[float]] = {key: [] for key in algorithms}
    values = set()
    for _ in range(repeats):
        for key, algorithm in algorithms.items():
            start = time.thread_time()
            value = algorithm()
            seconds[key].append(time.thread_time() - start)
            if key != "build":
                values.add(value)
    print(f"{name:16} {nodes:8} {len(arcs):8}", end="")
    for key in ("build", "cut", "dispatch", "nx BK", "nx push"):
        print(f" {statistics.median(seconds[key]) * 1e3:9.2f}" if key in seconds else f" {'unmeas.':>9}", end="")
    print("" if len(values) == 1 else f"  DIFFER: {values}", flush=True)
    return len(values) == 1


def own_network(nodes: int, arcs: Arcs) -> FlowNetwork:
    """The arcs as our network."""
    network = FlowNetwork(nodes)
    add = network.add_arc
    for u, v, capacity in arcs:
        add(u, v, capacity)
    return network


def nx_network(nodes: int, arcs: Arcs) -> nx.DiGraph:
    """The arcs as networkx's; parallel arcs do not occur but to add up."""
    net = nx.DiGraph()
    net.add_nodes_from((SOURCE, SINK, *range(nodes)))
    for u, v, capacity in arcs:
        if capacity is None:
            net.add_edge(u, v)
            net.edges[u, v].pop("capacity", None)
        elif not net.has_edge(u, v):
            net.add_edge(u, v, capacity=capacity)
        elif "capacity" in net.edges[u, v]:
            net.edges[u, v]["capacity"] += capacity
    return net


def tensors(rng: random.Random, count: int) -> Iterator[tuple[int, int, list[int]]]:
    """A chain of operators with branches and skips: each tensor's producer, cost and readers."""
    for u in range(count - 1):
        readers = {u + 1} if rng.random() < 0.8 else set()
        while not readers or rng.random() < 0.3:
            readers.add(min(count - 1, u + rng.choice((1, 2, 3, 5, 8, 40))))
        yield u, rng.randrange(1, 2000), sorted(readers)


def own_prices(rng: random.Random) -> list[int]:
    """The cost of an operator on each device, at random."""
    return [rng.randrange(1000) for _ in range(DEVICES)]


def common_prices(rng: random.Random) -> list[int]:
    """The cost of an operator by the devices' prices of its time and of its bytes, above its cheapest device."""
    time_units, byte_units = rng.randrange(1, 1000), rng.randrange(1, 1000)
    costs = [time_units * a + byte_units * b for a, b in zip((10, 11, 12, 10), (3, 1, 0, 2), strict=True)]
    return [cost - min(costs) for cost in costs]


def grid(rng: random.Random, count: int, costs: Callable[[random.Random], list[int]]) -> tuple[int, Arcs]:
    """Ishikawa's network: node v * 3 + l is on the source's side when operator v is on a device after l."""
    layers = DEVICES - 1
    nodes, arcs = count * layers, []
    for v in range(count):
        column = [SOURCE, *range(v * layers, v * layers + layers), SINK]
        for below, above, pay in zip(column, column[1:], costs(rng), strict=False):
            arcs.append((below, above, pay))
        arcs += [(above, below, None) for below, above in pairwise(column[1:-1])]
    for u, pay, readers in tensors(rng, count):
        for layer in range(layers):
            arcs += [(u * layers + layer, v * layers + layer, None) for v in readers]
            if len(readers) == 1:
                arcs.append((readers[0] * layers + layer, u * layers + layer, pay))
                continue
            arcs.append((nodes, u * layers + layer, pay))
            arcs += [(v * layers + layer, nodes, None) for v in readers]
            nodes += 1
    return nodes, arcs


def window(rng: random.Random, count: int) -> tuple[int, Arcs]:
    """The boundary cut of about ``count`` nodes: what is before them is the source, what is after them the sink."""
    free = round(count / 1.44)  # the rest are nodes of tensors with several readers
    nodes, arcs = free, []

    def where(op: int) -> int:
        return SOURCE if op < 40 else op - 40 if op < free + 40 else SINK

    for u, pay, readers in tensors(rng, free + 80):
        producer, ends = where(u), list(dict.fromkeys(map(where, readers)))
        arcs += [(v, producer, None) for v in ends if v != SINK and producer != SOURCE]
        ends = [v for v in ends if v != SOURCE]
        if producer == SINK or not ends:
            continue
        if SINK in ends:
            arcs.append((producer, SINK, pay))
        elif len(ends) == 1:
            arcs.append((producer, ends[0], pay))
        else:
            arcs.append((producer, nodes, pay))
            arcs += [(nodes, v, None) for v in ends]
            nodes += 1
    return nodes, arcs


if __name__ == "__main__":
    sys.exit(main())
