"""The checker against the simulator, against the Judge, on cases worked out by hand; and that it finds every lie."""

import random
from dataclasses import replace as changed

import msgspec
import pytest
from graphs import Case, cases, random_case, random_placement
from hypothesis import given
from hypothesis import strategies as st
from reference import reference_peaks

from autosplit import estimate
from autosplit.checker import Replay, check, replay
from autosplit.device import HOST, Cluster, Device
from autosplit.errors import AutosplitError, CapacityError, DeviceError, PlanError
from autosplit.estimate.judge import Judge
from autosplit.graph import CostGraph, Node, Tensor
from autosplit.placement import CostModel, Placement
from autosplit.solvers import solve

OBJECTIVES = ("latency", "throughput", "memory")


def pair(*kinds: str) -> Cluster:
    """Devices A, B, ... of 1000 B; a transfer takes 100 ns and 1 ns for each byte."""
    return Cluster(
        devices=tuple(Device(name="ABCD"[i], kind=kind, memory_bytes=1000) for i, kind in enumerate(kinds)),
        default_bandwidth_bytes_per_s=10**9,
        default_latency_ns=100,
    )


def node(name: str, time_ns: int = 0, **fields: object) -> Node:
    return Node(name=name, forward_ns={"*": time_ns}, **fields)


# ---------------------------------------------------------------- against others

MODELS = st.builds(
    CostModel,
    transfers=st.sampled_from(("direct", "host", "receiver")),
    overlap=st.booleans(),
    microbatches=st.integers(1, 5),
    schedule=st.sampled_from(("1f1b", "gpipe")),
)


def wild(rng: random.Random, case: Case) -> Case:
    """The same with all that is rare: storages without a base, savers that read nothing, bytes of nodes, hosts."""
    graph, names = case.graph, list(case.graph.nodes)
    tensors = []
    for tensor in graph.tensors.values():
        mate = rng.choice([*tensors, tensor])
        tensors.append(
            msgspec.structs.replace(
                tensor,
                storage=mate.allocation if rng.random() < 0.2 else tensor.storage,
                saved_by=tuple(rng.sample(names, min(2, len(names)))) if rng.random() < 0.2 else tensor.saved_by,
                is_held=rng.random() < 0.8,
                is_output=rng.random() < 0.15,
            )
        )
    nodes = [
        msgspec.structs.replace(n, fixed_bytes=rng.choice((0, 5)), inflight_bytes=rng.choice((0, 3)))
        for n in graph.nodes.values()
    ]
    devices = tuple(
        msgspec.structs.replace(d, kind="cpu" if rng.random() < 0.3 else d.kind) for d in case.cluster.devices
    )
    cluster = msgspec.structs.replace(case.cluster, devices=devices)
    return changed(case, graph=CostGraph(nodes, tensors, graph.mode), cluster=cluster)


def agrees_with_the_judge(case: Case, model: CostModel, rng: random.Random) -> None:
    graph, cluster, io_device = case.graph, case.cluster, case.io_device
    placement = random_placement(rng, case)
    judge = Judge(graph, cluster, io_device, model)
    labels = [cluster.names.index(placement[name]) for name in graph.nodes]
    peaks = judge.peaks(labels)
    for objective in OBJECTIVES:
        found = replay(graph, placement, cluster, objective=objective, cost_model=model, io_device=io_device)
        assert found.value == judge.value(labels, objective, peaks)
    assert found.load_ns == dict(zip(cluster.names, judge.load_ns(labels), strict=True))
    assert found.peak_bytes == dict(zip(cluster.names, peaks, strict=True))
    assert found.transfers == estimate.transfers(graph, placement, cluster, io_device)


@given(cases(), MODELS, st.randoms(use_true_random=False))
def test_the_judge_finds_the_same(case, model, rng):
    agrees_with_the_judge(case, model, rng)
    agrees_with_the_judge(wild(rng, case), model, rng)


def test_the_judge_finds_the_same_on_many_graphs():
    for seed in range(700):
        rng = random.Random(seed)
        case = random_case(rng, rng.randrange(1, 16), rng.randrange(1, 5))
        model = CostModel(
            transfers=rng.choice(("direct", "host", "receiver")),
            overlap=rng.random() < 0.5,
            microbatches=rng.choice((1, 2, 5)),
            schedule=rng.choice(("1f1b", "gpipe")),
        )
        agrees_with_the_judge(wild(rng, case), model, rng)


def test_the_simulator_finds_the_same_peaks():
    for seed in range(500):
        rng = random.Random(seed)
        case = random_case(rng, rng.randrange(1, 12), rng.randrange(1, 4))
        placement = random_placement(rng, case)
        expected = reference_peaks(case.graph, placement, case.cluster.names, case.io_device)
        found = replay(case.graph, placement, case.cluster, objective="memory", io_device=case.io_device)
        assert found.peak_bytes == expected


@given(cases(most_nodes=7), st.sampled_from(OBJECTIVES), MODELS, st.booleans())
def test_what_is_solved_passes(case, objective, model, contiguous):
    options = {"cost_model": model, "io_device": case.io_device, "contiguous": contiguous}
    try:
        found = solve(case.graph, case.cluster, objective=objective, **options)
    except CapacityError:
        return
    result = check(case.graph, found, case.cluster, **options)
    assert (result.value, result.over_bytes) == (found.value, {})


# ---------------------------------------------------------------- worked out by hand


def three() -> CostGraph:
    """a, on A, makes x of 10 B for b on A, c and d on B, and e on C."""
    x = Tensor(name="x", producer="a", readers=("b", "c", "d", "e"), size_bytes=10, requires_grad=True)
    return CostGraph([node(name, 50) for name in "abcde"], [x])


PLACES = dict(zip("abcde", "AABBC", strict=True))


@pytest.mark.parametrize(
    ("model", "kinds", "load", "latency"),
    [
        (CostModel(), "kkk", (100 + 220, 100 + 110, 50 + 110), 250 + 220),
        (CostModel(overlap=True), "kkk", (220, 110, 110), 250 + 220),
        (CostModel(transfers="receiver"), "kkk", (100, 210, 160), 250 + 220),
        (CostModel(transfers="host"), "kkk", (210, 210, 160), 210 + 210),  # B and C wait for all of A
        (CostModel(transfers="host", overlap=True), "kkk", (110, 110, 110), 110 + 110),
        (CostModel(transfers="host"), ("cpu", "k", "k"), (100, 210, 160), 50 + 210),  # B waits for a alone
        (CostModel(transfers="host"), ("k", "cpu", "k"), (210, 100, 160), 210 + 160),
    ],
)
def test_who_pays(model, kinds, load, latency):
    cluster = pair(*kinds)
    found = replay(three(), PLACES, cluster, objective="throughput", cost_model=model)
    assert found.load_ns == dict(zip("ABC", load, strict=True))
    assert found.value == max(load)
    assert [(t.src, t.dst) for t in found.transfers] == [("A", "B"), ("A", "C")]
    assert replay(three(), PLACES, cluster, objective="latency", cost_model=model).value == latency


def test_a_gradient_goes_back_in_training():
    graph = CostGraph(three().nodes.values(), three().tensors.values(), "train")
    found = replay(graph, PLACES, pair(*"kkk"), objective="throughput")
    assert found.load_ns == {"A": 100 + 440, "B": 100 + 220, "C": 50 + 220}
    assert all(t.returns_gradient for t in found.transfers)


def test_an_input_in_the_host_is_not_sent_there_again():
    x = Tensor(name="x", producer="a", readers=("b",), size_bytes=10, kind="input")
    y = Tensor(name="y", producer="b", size_bytes=20, is_output=True)
    graph = CostGraph([node("a"), node("b")], [x, y])
    model = CostModel(transfers="host")
    found = replay(graph, {"a": "A", "b": "B"}, pair(*"kk"), objective="throughput", cost_model=model)
    assert found.load_ns == {"A": 110, "B": 110 + 120}  # A gets x, B gets x from the host and returns y
    from_a = replay(graph, {"a": "B", "b": "B"}, pair(*"kk"), objective="throughput", cost_model=model, io_device="A")
    assert from_a.load_ns == {"A": 110 + 120, "B": 110 + 120}


def latency_ns(names: tuple[str, str], launch_ns: int, mode: str = "infer") -> int:
    """a (50 ns) on the first device sends x to c (70 ns) on the second, which runs b (60 ns) before."""
    devices = tuple(Device(name=name, kind="k", memory_bytes=1000, launch_ns=launch_ns) for name in names)
    cluster = Cluster(devices=devices, default_bandwidth_bytes_per_s=10**9, default_latency_ns=20)
    x = Tensor(name="x", producer="a", readers=("c",), size_bytes=10, requires_grad=True)
    times = {"a": 50, "b": 60, "c": 70}
    nodes = [Node(name=name, forward_ns={"*": ns}, backward_ns={"*": 2 * ns}) for name, ns in times.items()]
    places = dict(zip("abc", (names[0], names[1], names[1]), strict=True))
    return replay(CostGraph(nodes, [x], mode), places, cluster, objective="latency").value


@pytest.mark.parametrize(
    ("names", "launch_ns", "expected"),
    [
        (("A", "B"), 0, 60 + 30 + 70),  # a beside b; the copy waits for both
        (("A", "B"), 10, 10 + 60 + 30 + 70),  # b is issued 10 later
        (("A", "B"), 1000, 50 + 60 + 30 + 70),  # issuing takes as long as running
        (("sim:0", "sim:1"), 0, 50 + 60 + 30 + 70),
        (("sim:0", "B"), 0, 50 + 60 + 30 + 70),  # the host runs a before it issues b
        (("A", "cpu"), 0, 60 + 30 + 70),  # the host runs b while A runs a, and waits for the copy
    ],
)
def test_accelerators_run_side_by_side(names, launch_ns, expected):
    assert latency_ns(names, launch_ns) == expected


def test_the_backward_is_the_mirror_of_the_forward():
    # c until 140 beyond the forward, its gradient until 170, then a (100) beside b (120)
    assert latency_ns(("A", "B"), 0, "train") == 60 + 30 + 70 + 140 + 30 + 120
    assert latency_ns(("sim:0", "sim:1"), 0, "train") == 3 * 180 + 60


def pipeline(mode: str) -> CostGraph:
    """a, b, c hold 7 B for each micro-batch and 100 B always; a saves 10 B for its backward, b 20 B."""
    tensors = [
        Tensor(name="x", producer="a", readers=("b",), size_bytes=10, saved_by=("a",)),
        Tensor(name="y", producer="b", readers=("c",), size_bytes=20, saved_by=("b",)),
    ]
    return CostGraph([node(name, fixed_bytes=100, inflight_bytes=7) for name in "abc"], tensors, mode)


@pytest.mark.parametrize(
    ("mode", "model", "peaks"),
    [
        # A: 100 fixed, 7 and x for each in flight. B: y likewise, and x while b runs. C: y while c runs.
        ("train", CostModel(), (117, 137, 127)),
        ("train", CostModel(microbatches=2), (134, 164, 127)),
        ("train", CostModel(microbatches=9), (151, 164, 127)),
        ("train", CostModel(microbatches=9, schedule="gpipe"), (100 + 63 + 90, 100 + 63 + 180 + 10, 100 + 63 + 20)),
        ("infer", CostModel(microbatches=9), (100 + 21 + 10, 100 + 14 + 30, 127)),
    ],
)
def test_micro_batches_in_flight(mode, model, peaks):
    found = replay(
        pipeline(mode), dict(zip("abc", "ABC", strict=True)), pair(*"kkk"), objective="memory", cost_model=model
    )
    assert found.peak_bytes == dict(zip("ABC", peaks, strict=True))
    assert found.value == max(peaks)


def test_what_is_not_held_takes_no_memory_but_is_sent():
    x = Tensor(name="x", producer="a", readers=("b",), size_bytes=10, requires_grad=True, is_held=False)
    graph = CostGraph([node("a"), node("b")], [x], "train")
    found = replay(graph, {"a": "A", "b": "B"}, pair(*"kk"), objective="latency")
    assert (found.value, found.peak_bytes) == (220, {"A": 0, "B": 0})


def test_capacities_take_the_place_of_memory():
    graph = CostGraph([node("a", fixed_bytes=700)], [])
    assert replay(graph, {"a": "A"}, pair("k"), objective="memory").over_bytes == {}
    found = replay(graph, {"a": "A"}, pair("k"), objective="memory", capacities={"A": 600})
    assert found.over_bytes == {"A": 100}


def test_nothing_at_all():
    found = replay(CostGraph([], [], "train"), {}, pair(*"kk"), objective="memory")
    assert found == Replay(0, {"A": 0, "B": 0}, {"A": 0, "B": 0}, {}, ())


@pytest.mark.parametrize("placement", [{}, {"a": "Z"}, {"a": "A", "b": "A"}])
def test_what_cannot_be_replayed(placement):
    with pytest.raises(PlanError, match=r"is placed on|has no such node"):
        replay(CostGraph([node("a")], []), placement, pair("k"), objective="latency")
    with pytest.raises(DeviceError, match="unknown device 'Z'"):
        replay(CostGraph([], []), {}, pair("k"), objective="latency", io_device="Z")


# ---------------------------------------------------------------- lies

GRAPH = CostGraph(
    [node("a", 5, group="g"), node("b", 6, devices=("A", "fast")), node("c", 7, group="g"), node("d", 8)],
    [
        Tensor(name="x", producer="a", readers=("b",), size_bytes=10),
        Tensor(name="y", producer="b", readers=("c",), size_bytes=10),
        Tensor(name="w", producer="d", size_bytes=600, kind="parameter"),
    ],
)
TRUE = {"a": "A", "b": "A", "c": "A", "d": "B"}


def claim(**fields: object) -> Placement:
    fields = {"devices": TRUE, "objective": "latency", "value": 26, "bound": 26, "method": "guess", **fields}
    return Placement(**fields)


def test_the_truth_passes():
    assert check(GRAPH, claim(), pair(*"kk"), contiguous=True).value == 26
    assert check(GRAPH, claim(bound=0), pair(*"kk"), capacities={"B": 600}).peak_bytes["B"] == 600
    on_fast = claim(devices={**TRUE, "b": "B"}, value=26 + 220)
    assert check(GRAPH, on_fast, pair("k", "fast")).load_ns == {"A": 12 + 220, "B": 14 + 220}


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"value": 25, "bound": 25}, {}, "latency: claimed 25, found 26"),
        ({"value": 27}, {}, "latency: claimed 27, found 26"),
        ({"bound": 27}, {}, "claimed a lower bound of 27, found 26"),
        ({"bound": -1}, {}, "claimed a lower bound of -1, found 26"),
        ({"objective": "throughput", "value": 19, "bound": 0}, {}, "throughput: claimed 19, found 18"),
        ({"objective": "memory", "value": 20, "bound": 0}, {}, "memory: claimed 20, found 600"),
        ({}, {"capacities": {"B": 599}}, r"claimed to fit, found 600 B on B, 1 B \(1 B\) too many"),
        ({"devices": {**TRUE, "b": "B"}}, {}, "node 'b' is on B, but may run only on A, fast"),
        ({"devices": {**TRUE, "c": "B"}}, {}, "group 'g': 'a' is on A, 'c' on B"),
        ({"devices": {**TRUE, "d": "Z"}}, {}, "node 'd' is placed on 'Z'"),
        ({"devices": {**TRUE, "e": "A"}}, {}, "node 'e' is placed, but the graph has no such node"),
        ({"devices": {"a": "A", "b": "A", "c": "A"}}, {}, "node 'd' is placed on None"),
        ({"devices": dict(reversed(TRUE.items()))}, {}, "not in program order"),
        ({"value": 26 + 1}, {"cost_model": CostModel(transfers="receiver")}, "claimed 27, found 26"),
        ({}, {"cost_model": CostModel(transfers="host")}, "claimed 26, found 18"),  # two pieces side by side
    ],
)
def test_every_lie_is_found(fields, options, message):
    with pytest.raises(
        AutosplitError, match=f"wrong result of solver 'guess': .*{message}.*bug in autosplit"
    ) as raised:
        check(GRAPH, claim(**fields), pair(*"kk"), **options)
    assert type(raised.value) is AutosplitError


def loop(*, backward: bool) -> tuple[CostGraph, Placement]:
    """A to B and, by a node that may be of the backward pass, to A again."""
    nodes = [node("a"), node("b"), node("c", is_backward=backward)]
    x = Tensor(name="x", producer="a", readers=("b",), size_bytes=10)
    y = Tensor(name="y", producer="b", readers=("c",), size_bytes=10)
    places = {"a": "A", "b": "B", "c": "A"}
    return CostGraph(nodes, [x, y]), claim(devices=places, value=220, bound=0)


def test_stages_must_not_go_back_in_the_forward():
    graph, placement = loop(backward=False)
    with pytest.raises(AutosplitError, match=r"claimed to be contiguous, found .*B -> A \(tensor 'y'\)"):
        check(graph, placement, pair(*"kk"), contiguous=True)
    assert check(graph, placement, pair(*"kk")).value == 220
    graph, placement = loop(backward=True)
    assert check(graph, placement, pair(*"kk"), contiguous=True).value == 220


@given(cases(most_nodes=8), st.randoms(use_true_random=False), st.sampled_from(OBJECTIVES))
def test_a_random_lie_is_found(case, rng, objective):
    roomy = dict.fromkeys(case.cluster.names, 10**6)
    devices = random_placement(rng, case)
    value = replay(case.graph, devices, case.cluster, objective=objective, io_device=case.io_device).value
    options = {"io_device": case.io_device, "capacities": roomy}
    true = Placement(devices=devices, objective=objective, value=value, bound=value, method="m")
    check(case.graph, true, case.cluster, **options)
    lies = [{"value": value + 1}, {"value": value - 1, "bound": 0}, {"bound": value + 1}]
    lies.append({"devices": {**devices, rng.choice(list(devices)): HOST}})
    for lie in lies:
        with pytest.raises(AutosplitError, match="wrong result"):
            check(case.graph, msgspec.structs.replace(true, **lie), case.cluster, **options)


def test_stages_are_numbered_so_that_nothing_goes_back():
    """z reads y: the device of y comes first, whichever node comes first in the program."""
    graph = CostGraph(
        [node("x"), node("y", inflight_bytes=10), node("z")],
        [Tensor(name="t", producer="y", readers=("z",), size_bytes=1, is_held=False)],
    )
    placed = {"x": "B", "y": "A", "z": "B"}
    model = CostModel(microbatches=4)
    found = replay(graph, placed, pair(*"kk"), objective="memory", cost_model=model)
    assert found.peak_bytes == {"A": 2 * 10, "B": 0}
    judge = Judge(graph, pair(*"kk"), HOST, model)
    assert judge.peaks([1, 0, 1]) == [20, 0]
