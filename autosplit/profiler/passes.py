"""Whole passes on the device, with a mark after every operation: its time where it runs, with the caches it finds."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from autosplit.profiler.clock import Clock
from autosplit.profiler.materials import differentiable, make

_PROBES = 64

Times = dict[fx.Node, tuple[int, int]]


class Passes:
    """Runs an emitted graph on weights and inputs of its own, and notes what each node takes.

    The forward has a mark after each node. The backward has one before each step of autograd, which belongs to the
    node whose forward recorded it. What marks and hooks take themselves is measured first and taken off.

    Args:
        emitted: a graph emitted for one device.
        forms: of each placeholder.
        returned: places of the outputs that a loss may be made of.
        device: where.
        clock: of that device.
    """

    def __init__(
        self,
        emitted: fx.GraphModule,
        forms: Sequence[Any],
        returned: Sequence[int],
        device: torch.device,
        clock: Clock,
    ) -> None:
        self._returned, self._clock = returned, clock
        self._inputs = make(list(forms), device)
        self._nodes: list[fx.Node] = []
        self._marks: list[Any] = []
        self._known: set[Any] = set()
        self._started: list[tuple[int, Any]] = []
        self._marked = self._instrumented(emitted)
        self._hook_ns = self._probe(device) if torch.is_grad_enabled() else 0

    def run(self) -> tuple[Times, int, int]:
        """One pass.

        Returns:
            Forward and backward ns by node of the emitted graph; the whole forward and the whole backward, ns.
        """
        self._marks, self._known, self._started = [self._clock.mark()], set(), []
        outputs = self._marked.forward(*self._inputs)
        forward = self._clock.read(self._marks)[::2]
        backward = self._backward([outputs[i] for i in self._returned]) if torch.is_grad_enabled() else {}
        times = {node: (forward[i], backward.get(i, 0)) for i, node in enumerate(self._nodes)}
        return times, sum(forward), sum(backward.values())

    def _instrumented(self, emitted: fx.GraphModule) -> fx.GraphModule:
        graph = copy.deepcopy(emitted.graph)
        originals = {node.name: node for node in emitted.graph.nodes}
        for node in list(graph.nodes):
            if node.op in ("call_function", "call_method"):
                with graph.inserting_after(node):
                    graph.call_function(self._done, (len(self._nodes), node))
                self._nodes.append(originals[node.name])
        return fx.GraphModule(emitted, graph)

    def _done(self, place: int, value: Any) -> None:
        """A node has run; what follows up to the second mark is not counted."""
        self._marks.append(self._clock.mark())
        for tensor in differentiable(value) if torch.is_grad_enabled() else ():
            self._watch(place, tensor.grad_fn)
        self._marks.append(self._clock.mark())

    def _watch(self, place: int, step: Any) -> None:
        """Note when autograd comes to the steps that a node recorded."""
        pending = [step]
        while pending:
            step = pending.pop()
            if step is not None and step not in self._known:
                self._known.add(step)
                step.register_prehook(lambda _: self._started.append((place, self._clock.mark())))
                pending += [following for following, _ in step.next_functions]

    def _backward(self, outputs: Sequence[Any]) -> dict[int, int]:
        """Nanoseconds of the backward by place of the node."""
        descended = differentiable(list(outputs))
        self._known = set()
        if not descended:
            return {}
        torch.autograd.backward(descended, [torch.ones_like(output) for output in descended])
        end = self._clock.mark()
        for tensor in differentiable(self._inputs):
            tensor.grad = None
        took = self._clock.read([mark for _, mark in self._started] + [end])
        total: dict[int, int] = {}
        for (place, _), ns in zip(self._started, took, strict=True):
            total[place] = total.get(place, 0) + max(0, ns - self._hook_ns)
        self._started = []
        return total

    def _probe(self, device: torch.device) -> int:
        """What a hook takes by itself: a backward through many steps that do nothing, with hooks and without."""

        def took(watch: Callable[[int, Any], None]) -> int:
            tensor = torch.zeros(1, device=device, requires_grad=True)
            for place in range(_PROBES):
                tensor = tensor.view_as(tensor)
                watch(place, tensor.grad_fn)
            start = self._clock.mark()
            torch.autograd.backward([tensor], [torch.ones_like(tensor)])
            return self._clock.read([start, self._clock.mark()])[0]

        pairs = [(took(self._watch), took(lambda place, step: None)) for _ in range(5)]
        self._known, self._started = set(), []
        return int(statistics.median(max(0, hooked - plain) for hooked, plain in pairs) / _PROBES)
