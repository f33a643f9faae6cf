"""Layers that are alike are traced once: what Dynamo makes of the first is copied for the others.

torch 2.13 has regions for that (hierarchical compilation: torch.compiler.nested_compile_region). The first call of a
region is traced as a graph of its own; a later one is that graph on other weights, if Dynamo's guards on what the
first call read hold for it too. Here the calls are put back into one flat graph, as if every layer had been traced.

What is asked of the later layers is asked once, and not guarded: such a graph is good to plan from, not to be called.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.variables import invoke_subgraph

from autosplit.program import COPIED, is_control

_FEWEST = 4
"""Layers, from which on the calls of regions cost less than what they save."""

_CALL = torch.ops.higher_order.invoke_subgraph
_regions: Any = invoke_subgraph  # torch exports none of its names


_Stack = dict[str, tuple[str, Any]]
"""The modules that a node is in, outermost first: path and class by a key."""


class NotAlikeError(Exception):
    """Layers that look alike cannot be traced once for all."""


def repeated(model: nn.Module) -> list[nn.Module]:
    """The modules to trace once: siblings of one class with weights of the same forms, none inside another."""
    found: list[nn.Module] = []
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
                found.extend(children)
            else:
                for child in children:
                    visit(child)

    visit(model)
    return found


def _kind(module: nn.Module) -> Any:
    """Equal for modules that may be alike; None for one that is not worth a region, or cannot be one."""
    cls = type(module)
    plain = type(cls) is type and "forward" not in module.__dict__ and callable(getattr(cls, "forward", None))
    if not plain or isinstance(module, torch.jit.ScriptModule) or next(module.children(), None) is None:
        return None
    weights = [*module.named_parameters(), *module.named_buffers()]
    if not weights or any(torch.nn.parameter.is_lazy(weight) for _, weight in weights):
        return None
    return cls, tuple((name, weight.shape, weight.dtype, weight.requires_grad) for name, weight in weights)


@contextmanager
def as_regions(modules: list[nn.Module]) -> Iterator[None]:
    """Calls of ``modules`` are regions inside.

    Raises:
        NotAlikeError: inside, where one was traced that cannot be used for others.
    """
    classes: dict[type[nn.Module], type[nn.Module]] = {}
    before = [(module, type(module)) for module in modules]
    is_eligible = _regions.is_reuse_eligible

    def checked(*args: Any, **kwargs: Any) -> bool:
        if not is_eligible(*args, **kwargs):
            raise NotAlikeError("it takes or returns what is no tensor, or changes what is not its own")
        return True

    _regions.is_reuse_eligible = checked
    try:
        for module, cls in before:
            if cls not in classes:
                classes[cls] = _region(cls, len(modules))
            module.__class__ = classes[cls]
        yield
    finally:
        _regions.is_reuse_eligible = is_eligible
        for module, cls in before:
            module.__class__ = cls


def _region(cls: type[nn.Module], most: int) -> type[nn.Module]:
    """The class with a forward that is a region.

    The region takes its arguments flat, and how they were nested as a word: Dynamo compares flat ones by itself, and
    else runs torch's pytree in its interpreter, for each layer. What surrounds the call it does not compare: that is a
    word too.
    """
    forward: Callable[..., Any] = cls.forward

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
        return region(self, f"{torch.is_grad_enabled()} {casts}", " ".join([",".join(sizes), *kwargs]), *flat)

    names = {"forward": called, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), names)


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
    stack: _Stack = node.meta.get("nn_module_stack") or {}
    return stack
