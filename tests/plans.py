"""Plans made by hand, for tests of what is shown of them."""

from autosplit.device import Cluster, Device, parse_cluster
from autosplit.placement import (
    Breakdown,
    DevicePrediction,
    Option,
    Pipeline,
    Plan,
    Prediction,
    Span,
    Timeline,
    Transfer,
)
from autosplit.schedule import in_turn, orders

GIB = 2**30
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "line\nbreak\u2028\u2029",
    "\u202ertl\u200f\x1b[31m",
    "]]>&amp;&lt;",
    "http://example.org/steal?",
    "__proto__",
]
"""Names that would do harm where they are not escaped."""


def used(place=0, step=100):
    return DevicePrediction(
        peak_bytes=9 * GIB,
        reserved_bytes=10 * GIB,
        weight_bytes=4 * GIB,
        busy_ns=30_000_000,
        breakdown=Breakdown(weights_bytes=4 * GIB, activations_bytes=5 * GIB, reserve_bytes=GIB),
        timeline=Timeline(
            positions=(0, step, 2 * step, 3 * step),
            allocated_bytes=(4 * GIB, (5 + place % 4) * GIB, 9 * GIB, 4 * GIB),
            phases=(("forward", 0), ("backward", 2 * step)),
        ),
    )


def layers(stages=4, each=6, operators=5):
    """A placement of numbered layers, as many on each device."""
    names = [f"gpu:{stage}" for stage in range(stages)]
    placement = {"model.embed/embedding": names[0]}
    for layer in range(stages * each):
        for op in range(operators):
            placement[f"model.layers.{layer}.mlp/op#{op}"] = names[layer // each]
    return placement | {"model.norm/mul": names[-1], "head/linear": names[-1]}


def pipeline_spans(names, microbatches, forward_ns=2_000_000, copy_ns=200_000):
    """A 1F1B schedule, each pass as soon as it can."""
    free, done, spans = [0] * len(names), {}, []
    for kind_stage in in_turn(orders("1f1b", len(names), microbatches, trains=True)):
        stage, kind, number = kind_stage
        start = free[stage]
        source = (stage - 1, "F", number) if kind == "F" else (stage + 1, "B", number)
        if source in done:
            way = {"device": names[source[0]], "to": names[stage], "stage": source[0], "microbatch": number}
            at = done[source]
            spans.append(Span(kind="send" if kind == "F" else "return", start_ns=at, end_ns=at + copy_ns, **way))
            start = max(start, at + copy_ns)
        end = start + (forward_ns if kind == "F" else 2 * forward_ns)
        word = "forward" if kind == "F" else "backward"
        spans.append(Span(device=names[stage], kind=word, start_ns=start, end_ns=end, stage=stage, microbatch=number))
        free[stage] = done[stage, kind, number] = end
    return tuple(sorted(spans, key=lambda span: span.start_ns)), max(free)


def pipelined(stages=4, microbatches=6, **changes):
    """A plan of a pipeline with all that a report can show."""
    names = [f"gpu:{stage}" for stage in range(stages)]
    placement = changes.pop("placement", None) or layers(stages)
    spans, step_ns = pipeline_spans(names, microbatches)
    mine = [tuple(node for node, device in placement.items() if device == name) for name in names]
    given = {
        "strategy": "pipeline",
        "mode": "train",
        "cluster": parse_cluster(f"{stages}x16GiB"),
        "io_device": "host",
        "placement": placement,
        "weights": {},
        "transfers": (
            Transfer(tensor="input/ids", src="host", dst=names[0], size_bytes=4096),
            *(
                Transfer(tensor=part[-1], src=names[i], dst=names[i + 1], size_bytes=2**24, returns_gradient=True)
                for i, part in enumerate(mine[:-1])
            ),
        ),
        "objective": "throughput",
        "value": step_ns,
        "bound": step_ns - 1000,
        "prediction": Prediction(
            devices={name: used(place) for place, name in enumerate(names)},
            step_ns=step_ns,
            transfer_ns=1_000_000,
            spans=spans,
        ),
        "reason": "does not fit one device",
        "assumptions": ("times: roofline estimate, unmeasured",),
        "pipeline": Pipeline(microbatches=microbatches, schedule="1f1b", stages=tuple(mine)),
        "options": (
            Option(strategy="pipeline", words="stages and micro-batches", devices=stages, step_ns=step_ns, samples=12),
            Option(strategy="replicate", words="does not fit", devices=stages),
        ),
    }
    return Plan(**given | changes)


def hostile():
    """A plan all of whose names would do harm."""
    names = tuple(f"{name}{i}" for i, name in enumerate(HOSTILE[:4]))
    cluster = Cluster(
        devices=tuple(Device(name=name, kind=HOSTILE[i], memory_bytes=16 * GIB) for i, name in enumerate(names))
    )
    placement = {f"{name}.{i}.{name}/{name}{i}": names[i % 4] for i, name in enumerate(HOSTILE * 6)}
    transfers = tuple(
        Transfer(tensor=node, src=names[0], dst=names[1], size_bytes=64)
        for node, device in placement.items()
        if device == names[0]
    )
    spans = tuple(
        Span(device=name, kind="forward", start_ns=i * 10, end_ns=i * 10 + 10) for i, name in enumerate(names)
    )
    return Plan(
        strategy="split",
        mode="infer",
        cluster=cluster,
        io_device="host",
        placement=placement,
        weights={},
        transfers=transfers,
        objective="latency",
        value=10,
        bound=0,
        prediction=Prediction(devices={name: used() for name in names}, step_ns=40, transfer_ns=5, spans=spans),
        reason=" ".join(HOSTILE),
        assumptions=tuple(HOSTILE),
        fingerprint=HOSTILE[0],
        options=(Option(strategy="split", words=HOSTILE[0], devices=4, step_ns=40, samples=1),),
    )


def large(nodes=20_000, devices=8):
    """A plan of so many nodes: layers of attention and a network, on so many devices."""
    operators = ("norm/mean", "attn.q/linear", "attn.k/linear", "attn.v/linear", "attn/softmax", "attn.o/linear")
    operators += ("norm2/mean", "mlp.up/linear", "mlp/gelu", "mlp.down/linear")
    count = nodes // len(operators)
    placement = {
        f"model.layers.{i}.{operator}": f"gpu:{i * devices // count}" for i in range(count) for operator in operators
    }
    return pipelined(devices, 4 * devices, placement=placement)
