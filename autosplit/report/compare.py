"""What differs between two plans, for people and for programs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from autosplit.placement import Pipeline, Plan, Transfer
from autosplit.report.grid import Grid
from autosplit.report.words import clean, layer_words
from autosplit.units import format_bytes, format_ns

_HASH = re.compile("[0-9a-f]{64}")
_FEW = 8  # assumptions told one by one
_TOLD = frozenset(
    {"cluster", "placement", "transfers", "prediction", "assumptions", "options", "weight_forms", "weights"}
)
_NAMES = {"fingerprint": "weights (sha256)", "graph_fingerprint": "graph (sha256)"}
_TIMES, _SIZES = ("step_ns", "transfer_ns"), ("peak_bytes", "reserved_bytes", "weight_bytes")


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that two plans say differently, in words; "" where one says nothing of it."""

    what: str
    before: str
    after: str


class DiffDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``autosplit diff --json`` prints."""

    equal: bool
    differences: tuple[Difference, ...]


def differences(before: Plan, after: Plan) -> tuple[Difference, ...]:
    """What ``after`` says otherwise than ``before``; none where the plans are equal. O(nodes)."""
    if before == after:
        return ()
    found = [
        *_fields(before, after),
        *_by_name("device", _devices(before), _devices(after)),
        *_by_name("weights of", _weight_counts(before), _weight_counts(after)),
        *_placement(before, after),
        *_transfers(before, after),
        *_figures(before, after),
        *_assumptions(before, after),
    ]
    return tuple(found) or (Difference(what="details", before="figures that are not shown", after="others"),)


def diff_document(before: Plan, after: Plan) -> str:
    """The differences as one JSON document."""
    found = differences(before, after)
    return msgspec.json.encode(DiffDocument(equal=not found, differences=found)).decode()


@dataclass(frozen=True)
class DiffTable:
    """The differences of two plans as something that a rich console prints."""

    before: Plan
    after: Plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A row for each, or that there is none."""
        found = differences(self.before, self.after)
        if not found:
            yield "no difference"
            return
        grid = Grid("what", "before", "after", wraps="text")
        for difference in found:
            grid.add_row(*(Text(clean(words)) for words in (difference.what, difference.before, difference.after)))
        yield grid


def _fields(before: Plan, after: Plan) -> Iterator[Difference]:
    """Whatever is one value in both."""
    for name in Plan.__struct_fields__:
        one, two = getattr(before, name), getattr(after, name)
        if name in _TOLD or one == two:
            continue
        words = [
            _cost(plan, v) if name in ("value", "bound") else _word(v) for plan, v in ((before, one), (after, two))
        ]
        if words[0] == words[1]:  # too near for words; or of a pipeline the same but for its nodes
            words = [str(one), str(two)] if isinstance(one, int) else [words[0], f"{words[1]}, of other nodes"]
        yield Difference(what=_NAMES.get(name, name.replace("_", " ")), before=words[0], after=words[1])


def _cost(plan: Plan, value: int) -> str:
    return format_bytes(value) if plan.objective == "memory" else format_ns(value)


def _word(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, str) and _HASH.fullmatch(value):
        return value[:12]
    if isinstance(value, Pipeline):
        return f"{value.schedule}, {value.microbatches} micro-batches, {len(value.stages)} stages"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {form}" for name, form in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _by_name(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Difference]:
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield Difference(what=f"{what} {name}", before=before.get(name, "-"), after=after.get(name, "-"))


def _devices(plan: Plan) -> dict[str, str]:
    found = {
        d.name: f"{d.kind}, {format_bytes(d.memory_bytes)}, {d.flops_per_s.float32 / 1e12:g} TFLOP/s"
        for d in plan.cluster.devices
    }
    speeds = {f"{link.bandwidth_bytes_per_s / 1e9:g}" for link in plan.cluster.links}
    default = f"{plan.cluster.default_bandwidth_bytes_per_s / 1e9:g} GB/s"
    return {**found, "links": f"{len(plan.cluster.links)} of {', '.join(sorted(speeds))} GB/s; others {default}"}


def _weight_counts(plan: Plan) -> dict[str, str]:
    return {device: f"{count} tensors" for device, count in Counter(plan.weights.values()).items()}


def _placement(before: Plan, after: Plan) -> Iterator[Difference]:
    if before.placement == after.placement:
        return
    yield from _by_name("runs on", layer_words(before.placement), layer_words(after.placement))
    common = [name for name in before.placement if name in after.placement]
    moved = sum(before.placement[name] != after.placement[name] for name in common)
    gone, new = len(before.placement) - len(common), len(after.placement) - len(common)
    parts = [(moved, "moved"), (gone, "only before"), (new, "only after")]
    words = ", ".join(f"{count} {word}" for count, word in parts if count) or "in another order"
    yield Difference(what="nodes", before=str(len(before.placement)), after=f"{len(after.placement)}: {words}")


def _transfers(before: Plan, after: Plan) -> Iterator[Difference]:
    if before.transfers == after.transfers:
        return
    words = [_total(plan.transfers) for plan in (before, after)]
    only = len(set(after.transfers) - set(before.transfers))
    yield Difference(what="transfers", before=words[0], after=f"{words[1]}; {only} that were not there")


def _total(transfers: tuple[Transfer, ...]) -> str:
    return f"{len(transfers)}, {format_bytes(sum(transfer.size_bytes for transfer in transfers))}"


def _figures(before: Plan, after: Plan) -> Iterator[Difference]:
    one, two = before.prediction, after.prediction
    for name in _TIMES:
        yield from _figure(name, format_ns(getattr(one, name)), format_ns(getattr(two, name)))
    for name in ("time_source", "memory_source"):
        yield from _figure(name, getattr(one, name), getattr(two, name))
    for device in dict.fromkeys([*one.devices, *two.devices]):
        rows = [plan.devices.get(device) for plan in (one, two)]
        for name in _SIZES:
            yield from _figure(
                f"{name} {device}", *("-" if r is None else format_bytes(getattr(r, name)) for r in rows)
            )
        yield from _figure(f"busy {device}", *("-" if row is None else format_ns(row.busy_ns) for row in rows))


def _figure(name: str, before: str, after: str) -> Iterator[Difference]:
    if before != after:
        yield Difference(
            what=name.replace("_bytes", "").replace("_ns", "").replace("_", " "), before=before, after=after
        )


def _assumptions(before: Plan, after: Plan) -> Iterator[Difference]:
    gone = [words for words in before.assumptions if words not in after.assumptions]
    new = [words for words in after.assumptions if words not in before.assumptions]
    yield from (Difference(what="assumed", before=words, after="-") for words in gone[:_FEW])
    yield from (Difference(what="assumed", before="-", after=words) for words in new[:_FEW])
    more = len(gone[_FEW:]) + len(new[_FEW:])
    if more:
        yield Difference(what="assumed", before="", after=f"{more} more differ")
