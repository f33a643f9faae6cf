"""The time of a pipeline and of replicas: against a simulator of single nanoseconds, and against closed forms."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from graphs import cases
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from autosplit.device import Cluster, Device, Link
from autosplit.estimate.judge import Judge
from autosplit.estimate.pipeline import Hop, StageCost, TimedPass, pipeline_costs, pipeline_step, simulate, stage_order
from autosplit.estimate.replicas import BUCKET_BYTES, FIRST_BUCKET_BYTES, exchange_ns, gradient_bytes, ring_ns
from autosplit.graph import CostGraph, Node, Tensor
from autosplit.schedule import Pass, orders

SCHEDULES = ("gpipe", "1f1b")


def by_nanoseconds(stages, hops, by_stage):
    """Every stage and link looks, each nanosecond, whether the next thing of its order may begin."""
    ready: dict[object, int] = {}
    queues = {("stage", s): list(order) for s, order in enumerate(by_stage)}
    everything = [p for order in by_stage for p in order]
    takes = {p: stages[p.stage].forward_ns if p.kind == "F" else stages[p.stage].backward_ns for p in everything}
    needs: dict[object, list[object]] = {p: [] for p in everything}
    for hop in hops:
        for kind, src, dst, cost in (("F", hop.src, hop.dst, hop.forward_ns), ("B", hop.dst, hop.src, hop.gradient_ns)):
            if cost is None:
                continue
            for p in [p for p in by_stage[src] if p.kind == kind]:
                copy = ("copy", src, dst, kind, p.microbatch)
                queues.setdefault(("link", src, dst), []).append(copy)
                takes[copy], needs[copy] = cost, [p]
                needs[Pass(dst, kind, p.microbatch)].append(copy)
    starts: dict[object, int] = {}
    free = dict.fromkeys(queues, 0)
    now = 0
    while any(queues.values()):
        moved = True
        while moved:  # what takes no time lets another begin at once
            moved = False
            for resource, queue in queues.items():
                if queue and free[resource] <= now and all(ready.get(n, now + 1) <= now for n in needs[queue[0]]):
                    job = queue.pop(0)
                    starts[job] = now
                    free[resource] = ready[job] = now + takes[job]
                    moved = True
        now += 1
    return starts, max(ready.values())


def random_pipeline(seed: int):
    rng = random.Random(seed)
    count, microbatches, trains = rng.randint(1, 5), rng.randint(1, 6), rng.random() < 0.7
    stages = [StageCost(rng.randint(0, 12), rng.randint(0, 20) * trains) for _ in range(count)]
    pairs = [(s, t) for s in range(count) for t in range(s + 1, count) if t == s + 1 or rng.random() < 0.3]
    hops = [
        Hop(s, t, rng.randint(0, 9), rng.randint(0, 9) if trains and (t == s + 1 or rng.random() < 0.7) else None)
        for s, t in pairs
    ]
    return stages, hops, orders(rng.choice(SCHEDULES), count, microbatches, trains=trains)


@given(st.integers(0, 10**9))
def test_it_is_what_a_simulator_of_nanoseconds_says(seed):
    stages, hops, by_stage = random_pipeline(seed)
    timed = simulate(stages, hops, by_stage)
    starts, makespan_ns = by_nanoseconds(stages, hops, by_stage)
    assert {Pass(p.stage, p.kind, p.microbatch): p.start_ns for p in timed.passes} == {
        p: start for p, start in starts.items() if isinstance(p, Pass)
    }
    assert timed.makespan_ns == makespan_ns


@given(st.integers(0, 10**9), st.booleans())
def test_no_schedule_is_faster_than_its_work_or_slower_than_one_thing_at_a_time(seed, overlap):
    stages, hops, by_stage = random_pipeline(seed)
    timed = simulate(stages, hops, by_stage, overlap=overlap)
    count = len(by_stage[0]) if by_stage else 0
    trains = any(p.kind == "B" for order in by_stage for p in order)
    microbatches = count // 2 if trains else count
    sent = microbatches * sum(hop.forward_ns + (hop.gradient_ns or 0) for hop in hops)
    assert max(timed.busy_ns) <= timed.makespan_ns <= sum(timed.busy_ns) + sent
    for s in range(len(stages)):
        ran = [p for p in timed.passes if p.stage == s]
        assert all(before.end_ns <= after.start_ns for before, after in pairwise(ran))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (2, 2), (4, 4), (4, 16), (3, 7), (5, 2)])
def test_equal_stages_take_m_plus_p_minus_1(schedule, stages, microbatches):
    by_stage = orders(schedule, stages, microbatches, trains=True)
    timed = simulate([StageCost(10, 20)] * stages, [Hop(s, s + 1, 0, 0) for s in range(stages - 1)], by_stage)
    assert timed.makespan_ns == (microbatches + stages - 1) * 30
    assert timed.busy_ns == (microbatches * 30,) * stages
    assert timed.idle == pytest.approx((stages - 1) / (microbatches + stages - 1))


def test_inference_of_unequal_stages_goes_at_the_slowest():
    hops = [Hop(0, 1, 3), Hop(1, 2, 4)]
    timed = simulate([StageCost(5), StageCost(11), StageCost(2)], hops, orders("gpipe", 3, 8, trains=False))
    assert timed.makespan_ns == 5 + 3 + 8 * 11 + 4 + 2
    assert timed.passes[0] == TimedPass(0, "F", 0, 0, 5)


def test_a_host_that_works_itself_does_one_thing_at_a_time():
    stages = [StageCost(5, 7, is_synchronous=True)] * 3
    hops = [Hop(0, 1, 2, 3), Hop(1, 2, 1, 1)]
    timed = simulate(stages, hops, orders("1f1b", 3, 4, trains=True))
    assert timed.makespan_ns == 4 * (3 * (5 + 7) + 2 + 3 + 1 + 1)


def test_what_the_host_must_issue_is_a_limit_too():
    stages = [StageCost(5, 5, 100, 100)] * 2
    timed = simulate(stages, [Hop(0, 1, 0, 0)], orders("gpipe", 2, 3, trains=True))
    assert timed.makespan_ns == 12 * 100


def test_transfers_that_occupy_both_ends():
    timed = simulate([StageCost(10), StageCost(10)], [Hop(0, 1, 4)], orders("gpipe", 2, 3, trains=False), overlap=False)
    beside = simulate([StageCost(10), StageCost(10)], [Hop(0, 1, 4)], orders("gpipe", 2, 3, trains=False))
    assert beside.makespan_ns == 10 + 4 + 30
    assert timed.makespan_ns > beside.makespan_ns


# ---------------------------------------------------------------- from a graph


def line(weights=(0, 0, 0), mode="train"):
    nodes = [Node(name=f"n{i}", forward_ns={"*": 10}, backward_ns={"*": 20}) for i in range(3)]
    tensors = [
        Tensor(name="x", producer="n0", kind="input", size_bytes=10**6),
        Tensor(name="a", producer="n0", readers=("n1", "n2"), size_bytes=10**6, requires_grad=True),
        Tensor(name="b", producer="n1", readers=("n2",), size_bytes=2 * 10**6),
        Tensor(name="y", producer="n2", size_bytes=10**6, is_output=True, requires_grad=True),
    ]
    tensors += [
        Tensor(name=f"w{i}", producer=f"n{i}", kind="parameter", size_bytes=size, requires_grad=True)
        for i, size in enumerate(weights)
        if size
    ]
    return CostGraph(nodes, tensors, mode)


def cluster_of(count, launch_ns=0):
    """A link carries a byte in a nanosecond, after 5 of them."""
    devices = tuple(Device(name=f"gpu:{i}", kind="k", memory_bytes=2**30, launch_ns=launch_ns) for i in range(count))
    return Cluster(devices=devices, default_bandwidth_bytes_per_s=10**9, default_latency_ns=5)


def test_stages_and_hops_of_a_placement():
    judge = Judge(line(), cluster_of(3, launch_ns=4))
    stages, hops = pipeline_costs(judge, [0, 1, 2])
    mega = 10**6 + 5
    assert hops == [Hop(0, 1, mega, mega), Hop(0, 2, mega, mega), Hop(1, 2, 2 * 10**6 + 5, None)]
    assert stages == [
        StageCost(10 + mega, 20, 4, 4, False, 30),  # with the input from the host
        StageCost(10, 20, 4, 4, False, 30),
        StageCost(10 + mega, 20 + mega, 4, 4, False, 30),  # with the output, and its gradient
    ]
    assert stage_order(judge, [2, 2, 0]) == [2, 0]


def test_what_goes_back_to_a_device_of_the_caller_is_no_hop():
    judge = Judge(line(), cluster_of(2), "gpu:0")
    _, hops = pipeline_costs(judge, [0, 0, 1])
    assert [(hop.src, hop.dst) for hop in hops] == [(0, 1)]
    back = 10**6 + 5
    assert pipeline_costs(judge, [0, 0, 1])[0][1] == StageCost(10 + back, 20 + back, 0, 0, False, 30)


@given(cases(), st.sampled_from(SCHEDULES), st.integers(1, 4))
def test_one_synchronous_stage_runs_its_micro_batches_one_after_another(case, schedule, microbatches):
    cluster = Cluster(devices=(Device(name="sim:0", kind="plain", memory_bytes=2**30),))
    judge = Judge(case.graph, cluster)
    timed = pipeline_step(judge, [0] * len(case.graph), schedule, microbatches)
    assert timed.makespan_ns == microbatches * judge.step_ns([0] * len(case.graph))


# ---------------------------------------------------------------- replicas


def test_a_ring_goes_at_its_slowest_link():
    cluster = cluster_of(3)
    assert ring_ns(cluster, ["gpu:0", "gpu:1", "gpu:2"], 3000) == 4 * 1005
    assert ring_ns(cluster, ["gpu:0"], 3000) == ring_ns(cluster, ["gpu:0", "gpu:1"], 0) == 0
    slow = Link(src="gpu:2", dst="gpu:0", bandwidth_bytes_per_s=10**8, latency_ns=7)
    linked = structs.replace(cluster, links=(slow,))
    assert ring_ns(linked, ["gpu:0", "gpu:1", "gpu:2"], 3000) == 4 * (10_000 + 7)
    assert ring_ns(linked, ["gpu:0", "gpu:1"], 3000) == 2 * 1505


def test_one_bucket_is_sent_after_the_backward():
    graph = line(weights=(100, 200, 300))
    cluster = cluster_of(2)
    assert gradient_bytes(graph) == {"n0": 100, "n1": 200, "n2": 300}
    assert exchange_ns(graph, cluster, ["gpu:0", "gpu:1"]) == ring_ns(cluster, cluster.names, 600)
    assert exchange_ns(line(weights=(100, 200, 300), mode="infer"), cluster, ["gpu:0", "gpu:1"]) == 0


def test_full_buckets_hide_behind_the_backward():
    """The last node fills the first bucket, the middle one the second; the first node's gradients are the last."""
    cluster = cluster_of(2)
    first, second, last = FIRST_BUCKET_BYTES, BUCKET_BYTES, 1000
    graph = line(weights=(last, second, first))
    rings = [ring_ns(cluster, cluster.names, size) for size in (first, second, last)]
    # the backward of a node takes 20 ns: the exchange goes on after it, bucket by bucket, from the first one's end
    assert exchange_ns(graph, cluster, cluster.names) == 20 + sum(rings) - 60
    slow = CostGraph(
        [structs.replace(node, backward_ns={"*": 10**9}) for node in graph.nodes.values()],
        graph.tensors.values(),
        "train",
    )
    assert exchange_ns(slow, cluster, cluster.names) == rings[2]
