"""Profile a program on one device: each distinct operation once, and the sum set right by the whole where it fits."""

from __future__ import annotations

import platform
import statistics
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from autosplit.profiler.alone import measure, needs_ones
from autosplit.profiler.clock import Clock, clock_of, one_thread
from autosplit.profiler.operation import Operation
from autosplit.profiler.passes import Passes
from autosplit.profiler.scratch import scratch_bytes
from autosplit.profiler.store import Store
from autosplit.profiler.timing import Timing, timing
from autosplit.profiler.walk import walk
from autosplit.program import Program, is_control

Progress = Callable[[int, int], None]
"""Told how many operations are done, and of how many."""

_LOCK = threading.RLock()  # the number of threads belongs to the process
_PASSES = 10
_FORWARDS = 7.5  # times a forward pass: what all passes together may take


@dataclass
class Profile:
    """What was measured of one program on one device.

    Attributes:
        timings: by the node's stable name; what is missing could not be measured.
        whole_ns: a whole forward and backward, median of several; None where the model was not run as a whole.
        distinct: operations that were told apart.
        measured: of these, how many were measured now, not read from disk.
        notes: what could not be measured, and why.
    """

    timings: dict[str, Timing] = field(default_factory=dict)
    whole_ns: tuple[int, int] | None = None
    distinct: int = 0
    measured: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def noise(self) -> float:
        """Mean noise of the operations, weighed by their time."""
        total = sum(t.forward_ns + t.backward_ns for t in self.timings.values())
        spread = sum((t.forward_ns + t.backward_ns) * t.noise for t in self.timings.values())
        return spread / total if total else 0.0


def profile(
    program: Program,
    emitted: fx.GraphModule,
    device: torch.device,
    *,
    fits: bool,
    store: Store | None = None,
    measures: bool = True,
    progress: Progress | None = None,
) -> Profile:
    """Measure every operation of ``program`` on ``device``.

    Where it does not fit, arguments are made for each operation and dropped after it, so the device needs memory for
    the largest one only. The model's weights are not touched. On an accelerator the statistics of peak memory start
    anew, and the allocator's cache is emptied at the end. One profile at a time, as it sets the process's threads. An
    operation that fails or does not fit is left out; an interrupt ends the measuring, and what was measured until
    then stays.

    Args:
        program: a captured program.
        emitted: the program emitted for that device alone.
        device: present.
        fits: the device has memory for the whole program, on weights of its own: it is then run as a whole as well,
            and the operations' times are scaled so that they add up to it.
        store: what was measured before; what is measured now goes there.
        measures: False only reads what is in the store.
        progress: told of every distinct operation.
    """
    task = _Task(program, emitted, device)
    state = torch.random.fork_rng([device.index or 0], device_type=device.type) if device.type != "cpu" else _cpu_rng()
    grad = torch.set_grad_enabled(program.mode == "train")
    try:
        with _LOCK, state, one_thread(), grad, _casting(program, device):
            return task.run(store, fits, progress if measures else None, measures=measures)
    finally:
        del task
        if device.type != "cpu" and measures:
            torch.get_device_module(device).empty_cache()


def recall(program: Program, emitted: fx.GraphModule, store: Store, device: str) -> dict[str, Timing]:
    """What the store knows of a program on a device that is not here, by the node's stable name.

    Args:
        program: a captured program.
        emitted: the program emitted for the CPU alone.
        store: what was measured before.
        device: name that the measurements are kept under.
    """
    known = store.read(device)
    cpu = torch.device("cpu")
    with torch.set_grad_enabled(program.mode == "train"), _casting(program, cpu):
        task = _Task(program, emitted, cpu)
        operations = task.operations()
    return {task.names[node]: known[op.key] for node, op in operations if op.is_shared and op.key in known}


class _Task:
    def __init__(self, program: Program, emitted: fx.GraphModule, device: torch.device) -> None:
        self.program, self.emitted, self.device = program, emitted, device
        self.clock: Clock = clock_of(device)
        self.by_name = {name: node for node, name in program.names.items()}
        self.names = {n: n.meta["value_name"] for n in emitted.graph.nodes if "value_name" in n.meta}
        self.forms = {n: program.facts[self.by_name[name]].form for n, name in self.names.items()}

    def run(self, store: Store | None, fits: bool, progress: Progress | None, *, measures: bool) -> Profile:
        result = Profile()
        operations = self.operations()
        distinct = {operation.key: operation for _, operation in operations}
        result.distinct = len(distinct)
        known = store.read(device_name(self.device)) if store is not None else {}
        missing = {key: op for key, op in distinct.items() if key not in known or not op.is_shared} if measures else {}
        fresh: dict[str, Timing] = {}
        try:
            if fits and missing:
                fresh = self.in_passes(operations, result, progress)
                self.add_scratch(missing, fresh)
            self.alone({key: op for key, op in missing.items() if key not in fresh}, fresh, result, progress)
        except KeyboardInterrupt:
            result.notes.append(f"interrupted: {len(fresh)} of {len(missing)} operations were measured")
        result.measured = len(fresh)
        if store is not None:
            store.write(device_name(self.device), {k: t for k, t in fresh.items() if distinct[k].is_shared})
        found = {**known, **fresh}
        result.timings = {self.names[node]: found[op.key] for node, op in operations if op.key in found}
        return result

    def operations(self) -> list[tuple[fx.Node, Operation]]:
        found: list[tuple[fx.Node, Operation]] = []
        program, facts = self.program, self.program.facts
        writes = {n for n, name in self.names.items() if facts[self.by_name[name]].writes}
        inside = {node for region in program.regions.values() for node in region}
        placed = set(program.nodes)
        skip = {n for n, name in self.names.items() if self.by_name[name] in inside or not self._is_shown(name, placed)}
        walk(
            self.emitted,
            self.forms,
            lambda node, operation: found.append((node, operation)),
            device=self.device,
            writes=writes,
            skip=skip,
        )
        for node, name in self.names.items():
            if self.by_name[name] in inside & placed:
                found.append((node, Operation(f"{name} in a region", False, tuple, ((), {}), False, runs_alone=False)))
        return found

    def _is_shown(self, name: str, placed: Collection[fx.Node]) -> bool:
        return self.by_name[name] in placed or is_control(self.by_name[name])

    def alone(
        self, missing: Mapping[str, Operation], fresh: dict[str, Timing], result: Profile, progress: Progress | None
    ) -> None:
        """Measure each operation by itself."""
        for done, (key, operation) in enumerate(missing.items()):
            if progress is not None:
                progress(done, len(missing))
            if not operation.runs_alone:
                continue
            try:
                fresh[key] = measure(operation, self.device, self.clock)
            except Exception as error:  # whatever a kernel does with numbers that mean nothing, or no memory
                result.notes.append(f"not measured: {key.partition(' ')[0]}: {_short(error)}")

    def in_passes(
        self, operations: list[tuple[fx.Node, Operation]], result: Profile, progress: Progress | None
    ) -> dict[str, Timing]:
        """Measure all operations where they run, equal ones together."""
        try:
            samples, wholes = self.passes(operations, progress)
        except Exception as error:
            result.notes.append(f"not measured as a whole: {_short(error)}")
            return {}
        timings = {
            key: timing([forward for forward, _ in pairs], [backward for _, backward in pairs])
            for key, pairs in samples.items()
        }
        sums = [sum(getattr(timings[op.key], kind) for _, op in operations) for kind in ("forward_ns", "backward_ns")]
        result.whole_ns = (int(statistics.median(f for f, _ in wholes)), int(statistics.median(b for _, b in wholes)))
        forward, backward = (w / s if s else 1.0 for w, s in zip(result.whole_ns, sums, strict=True))
        return {key: found.scaled(forward, backward) for key, found in timings.items()}

    def add_scratch(self, missing: Mapping[str, Operation], fresh: dict[str, Timing]) -> None:
        """Passes do not show what each operation takes and gives back: one run of each does."""
        for key, found in list(fresh.items()) if self.device.type != "cpu" else ():
            operation = missing.get(key)
            if operation is not None and operation.runs_alone:
                with suppress(Exception):  # it ran in a pass; with numbers that mean nothing it may not
                    ones = needs_ones(operation, self.device)
                    scratch = scratch_bytes(operation, self.device, ones=ones)
                    fresh[key] = replace(found, workspace_bytes=scratch)

    def passes(
        self, operations: list[tuple[fx.Node, Operation]], progress: Progress | None
    ) -> tuple[dict[str, list[tuple[int, int]]], list[tuple[int, int]]]:
        """Forward and backward ns of each operation by key, and of the whole, from several passes but the first."""
        forms = [self.forms[n] for n in self.emitted.graph.find_nodes(op="placeholder")]
        outputs = range(len(self.program.results))
        returned = [i for i in outputs if self.program.returned is None or self.program.returns(i)]
        task = Passes(self.emitted, forms, returned, self.device, self.clock)
        samples: dict[str, list[tuple[int, int]]] = {}
        wholes: list[tuple[int, int]] = []
        took: list[int] = []
        while len(took) < 2 or (len(took) <= _PASSES and sum(took) + took[-1] <= _FORWARDS * wholes[0][0]):
            if progress is not None:
                progress(len(took), _PASSES)
            start = self.clock.mark()
            times, forward_ns, backward_ns = task.run()
            took += self.clock.read([start, self.clock.mark()])
            if len(took) > 1:  # the first finds cold caches, and kernels that are chosen at first use
                wholes.append((forward_ns, backward_ns))
                for node, operation in operations:
                    samples.setdefault(operation.key, []).append(times[node])
        return samples, wholes


def device_name(device: torch.device) -> str:
    """What measurements on a device are kept under: what it is, not which of several it is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"cpu {_cpu_model()}"


def _cpu_model() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _casting(program: Program, device: torch.device) -> AbstractContextManager[Any]:
    if program.autocast is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=program.autocast)


def _cpu_rng() -> AbstractContextManager[Any]:
    return torch.random.fork_rng([])


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"
