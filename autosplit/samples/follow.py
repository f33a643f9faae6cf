"""Where the batch is in every value of a program, and whether each sample goes its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx

from autosplit.program import Input, Program, Spec, closed_on_error, fake_mode, is_control, operator_name, source_line
from autosplit.samples.kinds import MIXED, UNKNOWN, Kind, Part, Rows, Sizes
from autosplit.samples.nodes import Run, Seen, Tensor, call_node, frozen, look, mapped, tensors_in
from autosplit.samples.ordering import name_of_order


@dataclass(frozen=True)
class Merge:
    """How one output of the micro-batches becomes the call's.

    Attributes:
        kind: "cat" along ``dim``; "mean", each micro-batch weighing as many samples as it has; "sum"; "same": it does
            not depend on the batch, the first's will do.
        dim: the dimension of the samples, of "cat".
        counted: of a mean over what is not ignored, the name of the node or input of the targets, and the index that
            is ignored: a micro-batch weighs as many targets as it has that are not.
    """

    kind: Literal["cat", "mean", "sum", "same"]
    dim: int = 0
    counted: tuple[str, int] | None = None


@dataclass(frozen=True)
class Samples:
    """Where the batch is in a program, and what does not treat each sample by itself.

    Attributes:
        inputs: the batch dimension, by name, of those inputs that have one.
        outputs: how each of the program's results is merged; None where that is not known, or it is no tensor.
        mixing: one line for each node that lets samples see each other, or is not known not to: its name, the
            operator, its source line, and why. Empty: micro-batches, merged, are the call.
        random: the names of nodes that draw random numbers: a micro-batch draws others than the call would.
    """

    inputs: Mapping[str, int]
    outputs: tuple[Merge | None, ...]
    mixing: tuple[str, ...]
    random: tuple[str, ...] = ()


def follow_samples(small: Program, large: Program) -> Samples:
    """Follow the samples through a program, captured at two batch sizes in one mode.

    The batch is the dimension in which the inputs of the two captures differ. Every node's operators, as they are
    below autograd, are looked at one by one: what is not known to keep samples apart is said to mix them. Gradients
    follow: a function that keeps samples apart has a gradient that does, except an autograd.Function with a backward
    of its own, which is said in a program for training.

    Args:
        small: the program at a number of samples, 2 or more: of one sample, sizes of 1 are not told from the batch.
        large: the program at more samples.

    Returns:
        What is cut and how results are merged. It takes time linear in the number of nodes; nodes that are alike are
        looked at once.
    """
    return _Walk(small, large).run()


class _Walk:
    """Goes through the nodes of both programs, pair by pair."""

    def __init__(self, small: Program, large: Program) -> None:
        self.small, self.large = small, large
        self.nodes = list(small.graph_module.graph.nodes)
        self.twins = small.twins(large) or {}
        self.named = {name: node for node, name in small.names.items()}
        self.mine = {twin: node for node, twin in self.twins.items()}
        self.values: dict[fx.Node, tuple[Any, Any]] = {}  # results at both sizes, a Tensor for each tensor
        self.known: dict[Any, Seen] = {}
        self.lines: dict[fx.Node, str] = {}
        self.random: list[str] = []
        self.modes: tuple[Any, ...] = ()  # autocast and grad, since a mark in the graph changed them
        self.sizes = Sizes(1, 1)
        storages = (facts.writes for facts in small.facts.values())
        self.written: frozenset[int] = frozenset().union(*storages)

    def run(self) -> Samples:
        if not self.twins:
            return self._unknown("the model runs other operators with another number of samples")
        found = _sizes_of(self.sources())
        if found is None:
            return self._unknown("no input has a dimension, the same for all, that differs between the two captures")
        self.sizes = found
        inputs = self._place_inputs()
        with ExitStack() as stack:
            stack.enter_context(closed_on_error())
            stack.enter_context(fake_mode())
            stack.enter_context(torch.set_grad_enabled(self.small.mode == "train"))
            stack.enter_context(self.small.casting())
            self._visit_all()
        outputs = tuple(self._merge(place, result) for place, result in enumerate(self.small.results))
        needed = _needed(self.small)
        lines = tuple(line for node, line in self.lines.items() if node in needed)
        return Samples(inputs, outputs, lines, tuple(self.random))

    def sources(self) -> Iterator[tuple[fx.Node, Input, Input]]:
        """Each input, as it is at the two sizes."""
        for node, source in self.small.inputs.items():
            yield node, source, self.large.inputs[self.twins[node]]

    def _unknown(self, why: str) -> Samples:
        return Samples({}, (None,) * len(self.small.results), (why,))

    def _place_inputs(self) -> dict[str, int]:
        """The batch dimension of each input."""
        found: dict[str, int] = {}
        for node, source, other in self.sources():
            if source.spec is None or other.spec is None:
                self.values[node] = source.value, other.value
                if source.value != other.value and node.users:
                    self._say(node, "a number that depends on the batch")
                continue
            kind: Kind = None
            if source.spec.shape != other.spec.shape:
                kind = self.sizes.by_shape(source.spec.shape, other.spec.shape)
                if not isinstance(kind, Rows):
                    self._say(node, f"shapes {source.spec.shape} and {other.spec.shape} have no one batch dimension")
                elif source.kind != "input":
                    self._say(node, "it has a batch, but is held by an object: it cannot be cut with the inputs")
                else:
                    found[source.name] = kind.dim
            self._set(node, Tensor(source.spec, other.spec, kind, self.small.names[node]))
        return found

    def _set(self, node: fx.Node, value: Tensor) -> None:
        self.values[node] = value, value

    def _visit_all(self) -> None:
        inside: set[fx.Node] = set()
        for node in self.nodes:
            if node.op in ("placeholder", "output") or node in inside:
                continue
            if node in self.small.regions:
                region = self.small.regions[node]
                inside.update(region)
                self._visit_region(region)
            elif node.op == "get_attr":
                self._visit_constant(node)
            elif is_control(node):
                self._enter(node)
            else:
                self._visit(node)

    def _visit_constant(self, node: fx.Node) -> None:
        one, other = (_attribute(n, p) for n, p in ((node, self.small), (self.twins[node], self.large)))
        if isinstance(one, torch.Tensor):
            same = one.shape == other.shape and (one.device.type == "meta" or torch.equal(one, other))
            self._set(node, Tensor(Spec.of(one), Spec.of(other), None if same else MIXED, self.small.names[node]))
            if not same:
                self._say(node, "a constant that depends on the number of samples")
        else:
            self.values[node] = one, other

    def _enter(self, node: fx.Node) -> None:
        """A region mark: it holds for the nodes that follow."""
        result = node.target(*self._filled(node.args), **self._filled(node.kwargs))  # type: ignore[operator]
        self.values[node] = result, result
        self.modes = (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_grad_enabled())

    def _filled(self, arguments: Any) -> Any:
        """Arguments of a node with the values of the nodes in them."""
        return fx.node.map_arg(arguments, lambda node: self.values[node][0])

    def _filled_too(self, arguments: Any) -> Any:
        """The same for a node of the other capture."""
        return fx.node.map_arg(arguments, lambda node: self.values[self.mine[node]][1])

    def _visit(self, node: fx.Node) -> None:
        twin = self.twins[node]
        ours, theirs = self._filled((node.args, node.kwargs)), self._filled_too((twin.args, twin.kwargs))
        key = (node.op, node.target, twin.target, frozen(ours), frozen(theirs), self.modes)
        seen = self.known.get(key)
        if seen is None:
            forms = self.small.facts[node].form, self.large.facts[twin].form
            seen = self.known[key] = look(_callers(node, twin, self), (ours, theirs), forms, self.sizes)
        given = [tensor.name for tensor in tensors_in(ours)]
        self._keep(node, seen, given)
        for place, kind in seen.changed:
            self._change(given[place], name_of_order(kind, self.small.names[node]))

    def _visit_region(self, region: list[fx.Node]) -> None:
        """A vmap, as one: its tensors make sense only inside."""
        within = set(region)
        outside = list(dict.fromkeys(a for node in region for a in node.all_input_nodes if a not in within))
        left = [node for node in region if any(user not in within for user in node.users)]
        ours = [self.values[node][0] for node in outside]
        theirs = [self.values[node][1] for node in outside]
        runs = (
            lambda args: _run_region(region, left, dict(zip(outside, args, strict=True))),
            lambda args: _run_region(
                [self.twins[node] for node in region],
                [self.twins[node] for node in left],
                {self.twins[node]: value for node, value in zip(outside, args, strict=True)},
            ),
        )
        forms = [
            [p.facts[n].form for n in nodes]
            for p, nodes in ((self.small, left), (self.large, map(self.twins.__getitem__, left)))
        ]
        seen = look(runs, (ours, theirs), (forms[0], forms[1]), self.sizes)
        self.values |= dict.fromkeys(region, (None, None))
        for place, node in enumerate(left):
            self._keep(
                node,
                replace(seen, small=seen.small[place], large=seen.large[place]),
                [n for v in ours for n in _names(v)],
            )
            seen = replace(seen, why=None, random=False)

    def _keep(self, node: fx.Node, seen: Seen, given: list[str]) -> None:
        """Note what became of a node; ``given`` are the names of its tensors."""
        facts, name = self.small.facts[node], self.small.names[node]
        written = any(leaf.storage in self.written for leaf in facts.leaves)

        def named(tensor: Tensor) -> Tensor:
            kind = tensor.kind
            if isinstance(kind, Part) and kind.counted and isinstance(kind.counted[0], int):
                kind = replace(kind, counted=(given[kind.counted[0]], kind.counted[1]))
            kind = name_of_order(kind, name)
            if written and isinstance(kind, Rows) and kind.outer is None:
                kind = replace(kind, outer=1)
            return replace(tensor, kind=kind, name=name)

        self.values[node] = mapped(seen.small, named), mapped(seen.large, named)
        if seen.why:
            self._say(node, seen.why)
        if self.small.mode == "train" and "autograd_function_apply" in operator_name(node):
            self._say(node, "the backward of an autograd.Function is its own: what it does is not followed")
        if seen.random:
            self.random.append(name)
        if facts.writes and "_norm" not in operator_name(node):
            self._check_writes(node, facts.writes)

    def _change(self, name: str, kind: Kind) -> None:
        """A write made a tensor one of another kind: so it is to those that read it later; its views are not known."""
        node = self.named[name]
        storages = {leaf.storage for leaf in self.small.facts[node].leaves}
        for other, value in self.values.items():
            leaves = self.small.facts[other].leaves if other is not node else ()
            if any(leaf.storage in storages for leaf in leaves):
                lost = mapped(value[0], lambda tensor: replace(tensor, kind=UNKNOWN))
                self.values[other] = lost, lost
        changed = mapped(self.values[node][0], lambda tensor: replace(tensor, kind=kind))
        self.values[node] = changed, changed

    def _check_writes(self, node: fx.Node, written: frozenset[int]) -> None:
        """What is not the batch's own is written by every micro-batch again."""
        for target, source in self.small.inputs.items():
            if not any(leaf.storage in written for leaf in self.small.facts[target].leaves):
                continue
            value = self.values[target][0]
            own = source.kind == "input" and isinstance(value, Tensor) and isinstance(value.kind, Rows)
            if not own and not source.name.endswith("num_batches_tracked"):
                self._say(node, f"writes {source.name}: every micro-batch does it again")

    def _say(self, node: fx.Node, why: str) -> None:
        where = f"{self.small.names[node]}: {operator_name(node)}{source_line(node)}"
        self.lines.setdefault(node, f"{where}: {why}")

    def _merge(self, place: int, result: Any) -> Merge | None:
        value = self.values[result][0] if isinstance(result, fx.Node) else None
        if not isinstance(value, Tensor):
            return None
        kind = value.kind
        if isinstance(kind, Part):
            return Merge(kind.kind, counted=kind.counted)  # type: ignore[arg-type]  # named in _keep
        if isinstance(kind, Rows) and kind.outer in (1, None) and not kind.numbers and kind.by is None:
            return Merge("cat", kind.dim)
        if kind not in (None, MIXED, UNKNOWN):
            self._say(result, f"output {place} does not have one sample after another")
        return Merge("same") if kind is None else None


def _callers(node: fx.Node, twin: fx.Node, walk: _Walk) -> tuple[Run, Run]:
    ours, theirs = walk.small.graph_module, walk.large.graph_module
    return (lambda given: call_node(node, given, ours)), (lambda given: call_node(twin, given, theirs))


def _run_region(region: list[fx.Node], left: list[fx.Node], env: dict[fx.Node, Any]) -> list[Any]:
    for node in region:
        env[node] = call_node(
            node, fx.node.map_arg((node.args, node.kwargs), env.__getitem__), node.graph.owning_module
        )
    return [env[node] for node in left]


def _names(value: Any) -> list[str]:
    return [tensor.name for tensor in tensors_in(value)]


def _needed(program: Program) -> set[fx.Node]:
    """The nodes whose values reach a result or are written somewhere."""
    needed: set[fx.Node] = {program.output, *program.inputs}
    for node in reversed(program.graph_module.graph.nodes):
        if node in needed or program.facts[node].writes:
            needed.add(node)
            needed.update(node.all_input_nodes)
    return needed


def _sizes_of(sources: Iterable[tuple[fx.Node, Input, Input]]) -> Sizes | None:
    """The numbers of samples: the least sizes by which the inputs differ, of which the others are multiples."""
    pairs: set[tuple[int, int]] = set()
    for _, one, other in sources:
        if one.spec and other.spec and len(one.spec.shape) == len(other.spec.shape):
            pairs |= {(a, b) for a, b in zip(one.spec.shape, other.spec.shape, strict=True) if a != b}
    if not pairs:
        return None
    sizes = Sizes(*min(pairs))
    return sizes if sizes.small < sizes.large and all(sizes.factor(*pair) for pair in pairs) else None


def _attribute(node: fx.Node, program: Program) -> Any:
    found: Any = program.graph_module
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found
