"""The rewrite: a new graph with our own names, a ``.to()`` for each crossing value, and devices in the arguments."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from autosplit.emit.assign import Assignment
from autosplit.emit.function import FUNCTION, apply_function
from autosplit.program import (
    AcceleratorForms,
    Program,
    Value,
    is_checkpoint,
    is_control,
    is_move,
    literal,
    operator_name,
)

_FACTORY_NAMES = (
    "arange bartlett_window blackman_window empty empty_strided eye full hamming_window hann_window kaiser_window "
    "linspace logspace ones rand randint randn randperm scalar_tensor tensor tril_indices triu_indices zeros"
)
_FACTORIES = frozenset(getattr(torch, name) for name in _FACTORY_NAMES.split())


@dataclass(frozen=True)
class Move:
    """One emitted ``.to()``: the value it copies, and from where to where (device names)."""

    value: str
    src: str
    dst: str


@dataclass
class Emitted:
    """The rewritten graph: takes real tensors in placeholder order, returns the graph's flat outputs.

    ``location`` gives the device name of every node of the new graph that holds a tensor.
    """

    graph_module: fx.GraphModule
    moves: list[Move] = field(default_factory=list)
    location: dict[fx.Node, str] = field(default_factory=dict)


def rewrite(
    program: Program,
    assignment: Assignment,
    devices: Mapping[str, torch.device],
    io_device: str,
    arrivals: Mapping[int, str] | None = None,
) -> Emitted:
    """Rewrite ``program`` so that each node runs on its device.

    Args:
        program: a captured program; it is not changed.
        assignment: device name by node.
        devices: the torch device for each name, "host" included.
        io_device: name of the device that inputs arrive on and outputs return to.
        arrivals: device name of the placeholders, by place, that arrive elsewhere; state arrives where it is read.
    """
    return Rewriter(program, assignment.devices, devices, io_device, arrivals or {}).run()


class Rewriter:
    """Emits a program node by node."""

    def __init__(
        self,
        program: Program,
        assigned: Mapping[fx.Node, str],
        devices: Mapping[str, torch.device],
        io_device: str,
        arrivals: Mapping[int, str],
    ) -> None:
        self.program = program
        self.assigned = assigned
        self.devices = devices
        self.io_device = io_device
        self.arrivals = {node: arrivals[i] for i, node in enumerate(program.inputs) if i in arrivals}
        self.index = {name: i for i, name in enumerate(devices)}
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.env: dict[fx.Node, fx.Node] = {}
        self.inside = {inner for region in program.regions.values() for inner in region}
        self.copies: dict[tuple[str, str], fx.Node] = {}
        self.emitted = Emitted(fx.GraphModule(self.root, self.graph))

    def run(self) -> Emitted:
        """The whole program."""
        for number, node in enumerate(self.program.graph_module.graph.nodes):
            if node.op == "output":
                self.write_back()
                self.graph.output(tuple(self.result(node, i, value) for i, value in enumerate(node.args[0])))
            else:
                self.bring_along(node)
                self.env[node] = new = self.emit(number, node)
                new.meta["value_name"] = self.program.names[node]
        return self.finish("Split")

    def finish(self, class_name: str) -> Emitted:
        """The graph made into what runs."""
        self.emitted.graph_module = fx.GraphModule(self.root, self.graph, class_name=class_name)
        self.graph.lint()
        return self.emitted

    def bring_along(self, node: fx.Node) -> None:
        """Copy what a functorch region reads before ``node`` opens it: inside, the copy would be wrapped as well."""
        for reader in self.program.regions.get(node, ()):
            for argument in reader.all_input_nodes if reader in self.assigned else ():
                if argument in self.env:
                    self.read(reader, argument, self.assigned[reader])

    def emit(self, number: int, node: fx.Node) -> fx.Node:
        """One node as it runs on its device."""
        if node.op == "placeholder":
            new = self.graph.placeholder(f"in{number}")
            number_only = self.program.inputs[node].kind == "size"  # a number is on no device
            return new if number_only else self.at(new, self.arrival(node))
        if node.op == "get_attr":
            return self.constant(number, node)
        if node in self.assigned:
            return self.compute(number, node, self.assigned[node])
        # Region marks and numbers: they have no device of their own, and what they look at is not moved.
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.env.__getitem__)
        if is_control(node) and "autocast" in operator_name(node):
            args = tuple(self.device_type() if arg == "cpu" else arg for arg in args)
        return self.graph.create_node(node.op, node.target, args, kwargs, name=f"n{number}")

    def compute(self, number: int, node: fx.Node, name: str) -> fx.Node:
        """One placed node on its device."""
        args, kwargs = self.localise(node, (node.args, node.kwargs), name)
        target, args, kwargs = _relocate(node, args, dict(kwargs), self.devices[name])
        if target is FUNCTION and node not in self.inside:
            target = apply_function
        new = self.graph.create_node(node.op, target, args, kwargs, name=f"s{self.index[name]}_n{number}")
        return self.at(new, name)

    def arrival(self, node: fx.Node) -> str:
        """Where a placeholder's tensor is when the program starts."""
        if node in self.arrivals:
            return self.arrivals[node]
        stays = self.program.inputs[node].kind in ("parameter", "buffer", "state")
        return self.assigned.get(node, self.io_device) if stays else self.io_device

    def constant(self, number: int, node: fx.Node) -> fx.Node:
        """A tensor or a graph that the capture holds by itself, under a name of ours."""
        held: Any = self.program.graph_module
        for part in str(node.target).split("."):
            held = getattr(held, part)
        name = f"c{number}"
        if isinstance(held, fx.GraphModule):
            reader = next((user for user in node.users if user in self.assigned), None)
            held = _relocate_inner(held, self.devices[self.assigned[reader]]) if reader is not None else held
            self.root.add_module(name, held)
            return self.graph.create_node("get_attr", name)
        home = self.assigned.get(node, self.io_device)
        self.root.register_buffer(name, held.to(self.devices[home]) if not _is_fake(held) else held)
        return self.at(self.graph.create_node("get_attr", name), home)

    def result(self, output: fx.Node, place: int, value: Any) -> Any:
        """One output: with the caller's tensors if the caller receives it, else where it was computed."""
        if self.program.returns(place) or not isinstance(value, fx.Node):
            return self.localise(output, value, self.io_device)
        return self.env[value]

    def localise(self, reader: fx.Node, arguments: Any, name: str) -> Any:
        """The arguments with every tensor as the reader on device ``name`` sees it: itself, or its copy there."""
        return fx.map_arg(arguments, lambda argument: self.read(reader, argument, name))

    def read(self, reader: fx.Node, argument: fx.Node, name: str) -> fx.Node:
        """The argument as the reader on device ``name`` sees it."""
        value = self.program.reads[reader].get(argument)
        if value is None or not self.program.facts[argument].is_tensor:
            return self.env[argument]
        if value.name == self.program.names[argument] and self.emitted.location[self.env[argument]] == name:
            return self.env[argument]  # an input that is read where it arrives
        new = self.at_home(argument)
        src = self.emitted.location[new]
        return new if src == name else self.copy(value, new, src, name)

    def at_home(self, argument: fx.Node) -> fx.Node:
        """The tensor where it lives: an input or constant goes there once, before anything else is done with it."""
        new = self.env[argument]
        src = self.emitted.location[new]
        home = self.assigned.get(argument, src)
        if src == home:
            return new
        return self.copy(Value(self.program.names[argument], argument, None), new, src, home)

    def write_back(self) -> None:
        """Give the caller's own tensor what the model wrote into it, where its home is another device."""
        written = frozenset().union(*(facts.writes for facts in self.program.facts.values()))
        for node in self.program.sources:
            storages = {leaf.storage for leaf in self.program.facts[node].leaves}
            if storages & written and self.at_home(node) is not self.env[node]:
                self.graph.call_method("copy_", (self.env[node], self.at_home(node)))

    def copy(self, value: Value, new: fx.Node, src: str, dst: str) -> fx.Node:
        """The value's one copy on ``dst``."""
        key = (value.name, dst)
        if key not in self.copies:
            name = f"to{self.index[dst]}_{new.name}"
            copied = self.graph.create_node("call_method", "to", (new, self.devices[dst]), {}, name=name)
            copied.meta["value_name"] = value.name
            self.copies[key] = self.at(copied, dst)
            self.emitted.moves.append(Move(value.name, src, dst))
        return self.copies[key]

    def at(self, new: fx.Node, name: str) -> fx.Node:
        """Note where a new node is."""
        self.emitted.location[new] = name
        return new

    def device_type(self) -> str:
        """What kind of devices there are."""
        return next(iter(self.devices.values())).type


def _relocate(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The call with the logical device in its arguments replaced by the device it runs on."""
    target: Any = node.target
    if is_checkpoint(node):
        # Dynamo's mark recomputes only under a compiler; the real checkpoint also keeps the RNG state.
        return _checkpoint, args, {}
    if is_move(node) and target != "to":
        return "to", (args[0], device), {}
    if is_move(node) and len(args) > 1 and isinstance(args[1], str):
        args = (args[0], device, *args[2:])
    if isinstance(kwargs.get("device"), (str, int)):
        kwargs["device"] = device
    args, kwargs = pytree.tree_map_only(torch.device, lambda _: device, (args, kwargs))
    if node.op == "call_function" and target in _FACTORIES and kwargs.get("device") is None:
        kwargs["device"] = device
    return literal if target is torch.tensor else target, args, kwargs


def _checkpoint(function: Any, *args: Any) -> Any:
    return checkpoint(AcceleratorForms.kept(function), *args, use_reentrant=False, preserve_rng_state=True)


def _relocate_inner(graph_module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """A copy of a higher-order operator's inner graph with its device constants replaced."""
    inner = copy.deepcopy(graph_module)
    for module in inner.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if node.op in ("call_function", "call_method") and not is_control(node):
                    node.target, node.args, node.kwargs = _relocate(node, node.args, dict(node.kwargs), device)
            module.recompile()
    return inner


def _is_fake(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)
