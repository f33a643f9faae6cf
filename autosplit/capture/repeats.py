"""Layers that are alike are traced once: what Dynamo makes of the first is copied for the others.

torch 2.13 has regions for that (hierarchical compilation: torch.compiler.nested_compile_region). The first call of a
region is traced as a graph of its own; a later one is that graph on other weights, if Dynamo's guards on what the
first call read hold for it too. Here the calls are put back into one flat graph, as if every layer had been traced.

What is asked of the later layers is asked once, and not guarded: such a graph is good to plan from, not to be called.
"""

from __future__ import annotations

import inspect
import itertools
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.variables import higher_order_ops, invoke_subgraph
from torch._dynamo.variables.base import AttributeMutationExisting, ValueMutationExisting
from torch._guards import ChainedSource, Source

from autosplit.capture.alike import groups
from autosplit.capture.hooks import has_hooks
from autosplit.program import COPIED, is_control

_FEWEST = 4
"""Layers, from which on the calls of regions cost less than what they save."""

_CALL = torch.ops.higher_order.invoke_subgraph
_regions: Any = invoke_subgraph  # torch exports none of its names
_operators: Any = higher_order_ops
_CONSTANT = _regions.InputTag.CONSTANT
_MODULE = _regions.InputTag.MODULE
_IN_GRAPH = (_regions.InputTag.TENSOR, _regions.InputTag.SYMNODE)

_BOUND = ".forward.__self__"
"""How Dynamo comes to a module in its own forward."""

_EXISTING = (AttributeMutationExisting, ValueMutationExisting)
"""Objects that were there before what is traced."""


_Stack = dict[str, tuple[str, Any]]
"""The modules that a node is in, outermost first: path and class by a key."""


class NotAlikeError(Exception):
    """Layers that look alike cannot be traced once for all."""


def repeated(model: nn.Module) -> list[list[nn.Module]]:
    """The modules to trace once, those together that are alike: siblings of one class, none inside another."""
    found: list[list[nn.Module]] = []
    seen: set[int] = set()

    def visit(module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        kinds: dict[Any, list[nn.Module]] = defaultdict(list)
        for child in module.children():
            kinds[_kind(child)].append(child)
        for kind, children in kinds.items():
            if kind is not None and len(children) >= _FEWEST:
                found.extend(group for group in groups(children) if len(group) > 1)
            else:
                for child in children:
                    visit(child)

    visit(model)
    return found


def _kind(module: nn.Module) -> Any:
    """Equal for modules that may be alike; None for one that is not worth a region, or cannot be one."""
    cls = type(module)
    plain = isinstance(inspect.getattr_static(cls, "forward", None), types.FunctionType)
    if not plain or "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule):
        return None
    inside = list(module.modules())[1:]
    if not inside or any(map(has_hooks, inside)):  # the layers' own are called around the region
        return None
    weights = [*module.named_parameters(), *module.named_buffers()]
    if not weights or any(torch.nn.parameter.is_lazy(weight) for _, weight in weights):
        return None
    return cls, tuple((name, weight.shape, weight.dtype, weight.requires_grad) for name, weight in weights)


class _Reuse:
    """Whether what was traced of one call may serve another: stands for Dynamo's own answers, and asks for more.

    Dynamo's guards look at objects as they were before all that is traced; so here nothing may have changed since.
    """

    def __init__(self) -> None:
        self._changes = 0  # to objects that were there before
        self._traced: dict[int, tuple[Any, int, list[int]]] = {}  # what it read, how many changes, which were the same
        self._is_eligible, self._is_reusable = _regions.is_reuse_eligible, _regions.is_reusable

    def is_eligible(self, tx: Any, result: Any, given: Any, info: Any, read: Any, **named: Any) -> bool:
        """Whether a call may serve others.

        Raises:
            NotAlikeError: it may not.
        """
        modules = sum(tag is _MODULE for tag, _ in given.flat_vts)
        if modules > 1 or not self._is_eligible(tx, result, given, info, read, **named):
            raise NotAlikeError("it takes or returns what is no tensor, or changes what is not its own")
        self._traced[id(read)] = read, self._changes, _same(given)
        return True

    def is_reusable(self, tx: Any, condition: Any, given: Any, entry: Any) -> bool:
        """Whether what was traced serves this call."""
        _, changes, same = self._traced[id(condition.traced_sources)]
        if changes != self._changes or same != _same(given):
            return False
        before = [value for tag, value in condition.input_checks if tag is _CONSTANT]
        constants = [item.value for tag, item in given.flat_vts if tag is _CONSTANT]
        if list(map(repr, before)) != list(map(repr, constants)):  # 1, True and 1.0 are equal
            return False
        with _replaced(ChainedSource, "clone", _remembering_clone()):
            return bool(self._is_reusable(tx, condition, given, entry))

    def counted(self, change: Callable[..., None]) -> Callable[..., None]:
        """A method of Dynamo's that notes a change."""

        def noted(effects: SideEffects, item: Any, *rest: Any, **named: Any) -> None:
            self._changes += isinstance(item.mutation_type, _EXISTING)
            change(effects, item, *rest, **named)

        return noted


def _remembering_clone() -> Callable[..., Source]:
    """``clone`` of a source that is within another, made once however many lie within it.

    What a layer reads are thousands of sources that share their ways from the layer on, and each clone is of the whole
    way: that was a quarter of a capture.
    """
    made: dict[tuple[int, int], tuple[Any, Any, Source]] = {}  # holds what it knows by id

    def clone(source: Any, transform: Callable[[Source], Source] | None = None) -> Source:
        key = id(source), id(transform)
        if key not in made:
            parts = {name: getattr(source, name) for name in _names(type(source))}
            sources = {name: part for name, part in parts.items() if isinstance(part, Source)}
            clones = {name: part.clone(transform) for name, part in sources.items()}
            same = all(clones[name] is part for name, part in sources.items())
            result = source if same else replace(source, **clones)
            made[key] = source, transform, transform(result) if transform else result
        return made[key][2]

    return clone


_names: Callable[[Any], list[str]] = cache(lambda kind: [each.name for each in fields(kind)])


def _same(given: Any) -> list[int]:
    """For each tensor given the place of the first that is the same."""
    nodes = [item.as_proxy().node for tag, item in given.flat_vts if tag in _IN_GRAPH]
    return list(map(nodes.index, nodes))


@contextmanager
def as_regions(alike: list[list[nn.Module]]) -> Iterator[None]:
    """Calls of the modules are regions inside; what is traced of one serves those that it is alike.

    Raises:
        NotAlikeError: inside, where one was traced that cannot be used for others.
    """
    most = sum(map(len, alike))
    reuse = _Reuse()
    with ExitStack() as stack:
        for name in ("mutation", "store_attr", "store_cell"):
            stack.enter_context(_replaced(SideEffects, name, reuse.counted(getattr(SideEffects, name))))
        stack.enter_context(_replaced(_regions, "is_reuse_eligible", reuse.is_eligible))
        stack.enter_context(_replaced(_regions, "is_reusable", reuse.is_reusable))
        stack.enter_context(_replaced(_operators, "are_same_graph_modules", lambda *_: False))  # their names differ
        for number, modules in enumerate(alike):
            forward = _region(type(modules[0]).forward, most, number)
            for module in modules:
                stack.callback(module.__dict__.pop, "forward", None)
                module.__dict__["forward"] = types.MethodType(forward, module)  # its class is what it may ask for
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _region(forward: Callable[..., Any], most: int, number: int) -> Callable[..., Any]:
    """The forward as a region; Dynamo takes all regions for one, so that their ``number`` is among the arguments.

    The region takes its arguments flat, and how they were nested as a word: Dynamo compares flat ones by itself, and
    else runs torch's pytree in its interpreter, for each layer. What surrounds the call it does not compare: that is a
    word too.
    """

    def inside(self: Any, state: str, layout: str, *flat: Any) -> Any:
        sizes, *names = layout.split()
        values: list[Any] = []
        at = 0
        for size in sizes.split(","):
            if size == "-":
                values.append(flat[at])
                at += 1
            else:
                values.append(flat[at : at + int(size)])
                at += int(size)
        first = len(values) - len(names)
        return forward(self, *values[:first], **dict(zip(names, values[first:])))  # noqa: B905  # Dynamo: slower

    region = torch.compiler.nested_compile_region(inside, max_reuse_entries=most)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        flat: list[Any] = []
        sizes: list[str] = []
        for value in (*args, *kwargs.values()):
            if type(value) is tuple:
                sizes.append(str(len(value)))
                flat.extend(value)
            else:
                sizes.append("-")
                flat.append(value)
        casts = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else ""
        return region(self, f"{number} {torch.is_grad_enabled()} {casts}", " ".join([",".join(sizes), *kwargs]), *flat)

    return called


def flatten(graph_module: fx.GraphModule) -> None:
    """Put a copy of its graph in the place of each call of a region.

    Raises:
        NotAlikeError: a region has something that cannot be copied.
    """
    first: dict[str, _Traced] = {}  # by name of the graph
    graph = graph_module.graph
    for call in [node for node in graph.nodes if node.op == "call_function" and node.target is _CALL]:
        name = str(call.args[0].target)
        if name not in first:
            _check_order(graph, call)
            first[name] = _Traced(_stack(call))
        results = _copy(graph, call, first[name], getattr(graph_module, name))
        for user in list(call.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(call)
    for node in graph.find_nodes(op="get_attr"):
        if node.target in first and not node.users:
            graph.erase_node(node)
    for name in first:
        delattr(graph_module, name)
    parts = [part for part in graph_module.modules() if isinstance(part, fx.GraphModule)]
    if any(node.target is _CALL for part in parts for node in part.graph.nodes):
        raise NotAlikeError("a layer is called in a graph of its own, such as a checkpoint's")
    for node in graph.nodes:
        if "nn_module_stack" in node.meta:
            node.meta["nn_module_stack"] = _stack(node)
    graph_module.recompile()


@dataclass
class _Traced:
    """The call that was traced: the modules that it was in, and the first copies of its nodes."""

    stack: _Stack
    copies: dict[fx.Node, fx.Node] = field(default_factory=dict)


def _check_order(graph: fx.Graph, call: fx.Node) -> None:
    """The weights of copied layers come in the order in which the copied nodes use them: so must the first's."""
    place = {node: i for i, node in enumerate(graph.find_nodes(op="placeholder"))}
    places = [place[argument] for argument in call.args[2:] if argument in place]
    if places != sorted(places):
        raise NotAlikeError("weights are looked up in another order than they are used in")


def _copy(graph: fx.Graph, call: fx.Node, traced: _Traced, body: fx.GraphModule) -> Any:
    """Copy a region's nodes before its call; its results."""
    copies = dict(zip(body.graph.find_nodes(op="placeholder"), call.args[2:], strict=True))
    for node in body.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            return fx.node.map_arg(node.args[0], copies.__getitem__)
        if node.op == "get_attr" or isinstance(node.target, torch._ops.HigherOrderOperator) or is_control(node):
            raise NotAlikeError(f"{node.name} has a graph of its own, or marks a region")
        with graph.inserting_before(call):
            copies[node] = made = graph.node_copy(node, copies.__getitem__)
        made.meta["nn_module_stack"] = _moved(_stack(node), traced.stack, _stack(call))
        original = traced.copies.setdefault(node, made)
        if original is not made:
            made.meta[COPIED] = (original, call.name)
    raise AssertionError("a graph without an output")  # every graph has one


def _moved(stack: _Stack, old: _Stack, new: _Stack) -> _Stack:
    """The modules that a node is in, with those of one call in the place of another's."""
    if not old or not new:
        raise NotAlikeError("a region is called outside every module")
    was, now = (str(next(reversed(outer.values()))[0]) for outer in (old, new))
    inner = list(itertools.islice(stack.items(), len(old), None))
    if not all(path.startswith(was) for _, (path, _) in inner):
        raise NotAlikeError(f"{was} calls a module that is not in it")
    return {**new, **{key: (now + path.removeprefix(was), cls) for key, (path, cls) in inner}}


def _stack(node: fx.Node) -> _Stack:
    """The modules that a node is in, by the paths that they have where forward is not an attribute of theirs."""
    stack: _Stack = node.meta.get("nn_module_stack") or {}
    return {key: (path.replace(_BOUND, ""), cls) for key, (path, cls) in stack.items()}
