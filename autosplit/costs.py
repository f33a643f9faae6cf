"""Program -> CostGraph: what each node costs, and which tensors pass between nodes.

Times are measured where a profile has them. Else they are a roofline estimate (Williams et al. 2009): launch +
max(flops / rate, bytes / bandwidth), the backward taken as twice the forward; where other operations of that kind of
device were measured, times what these took over their own estimates, by operator.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import fx

from autosplit.device import Device
from autosplit.graph import CostGraph, Node, Tensor, TensorKind
from autosplit.program import Facts, Input, Program, Value, is_checkpoint, module_path, operator_name

BACKWARD_FORWARD_RATIO = 2


@dataclass(frozen=True)
class Measured:
    """What was measured of one node on one kind of device; ``workspace_bytes`` is None where it was not."""

    forward_ns: int
    backward_ns: int
    workspace_bytes: int | None = None


Times = Mapping[str, Measured]
"""By node name."""


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes that an optimizer keeps (state), and takes while it steps (step), for each byte of parameters."""

    state_ratio: float
    step_ratio: float


class Lender(NamedTuple):
    """Where operators were measured: how they miss their estimates there, they are taken to miss them elsewhere."""

    device: Device
    program: Program
    times: Times


@dataclass
class _Flow:
    """A tensor while its readers are being collected."""

    value: Value
    producer: str
    readers: list[str] = field(default_factory=list)
    saved_by: list[str] = field(default_factory=list)
    is_output: bool = False


def build_graph(
    program: Program,
    devices: Iterable[Device],
    optimizer: OptimizerCost | None = None,
    times: Mapping[str, Times] | None = None,
    lent: Mapping[str, Lender] | None = None,
) -> CostGraph:
    """The cost graph of ``program`` for the kinds of ``devices``.

    Args:
        program: a captured program.
        devices: one time is found for each distinct kind.
        optimizer: what training keeps for each parameter; None costs a step without one.
        times: what was measured, by kind of device.
        lent: for kinds that this program was not measured on, what its estimates follow.
    """
    groups = _group_names(program)
    measured, borrowed = times or {}, lent or {}
    clocks = {d.kind: _Clock(program, d, measured.get(d.kind, {}), borrowed.get(d.kind)) for d in devices}
    nodes = [_node(program, node, clocks, groups.get(node)) for node in program.nodes]
    flows = _collect(program)
    useful = _useful(program)
    tensors = [_tensor(program, flow, useful, optimizer) for flow in flows.values()]
    return CostGraph(nodes, tensors + _hidden(program), program.mode)


class _Clock:
    """Forward and backward ns of each node on one kind of device."""

    def __init__(self, program: Program, device: Device, times: Times, lent: Lender | None = None) -> None:
        self._program, self._device, self._times = program, device, times
        self._factors = _by_operator(lent or Lender(device, program, times))

    def __call__(self, node: fx.Node) -> tuple[int, int]:
        measured = self._times.get(self._program.names[node])
        if measured is not None:
            return measured.forward_ns, measured.backward_ns
        estimate = _roofline_ns(self._program.facts[node], self._device)
        factors = self._factors.get(operator_name(node)) or self._factors.get("")
        if factors is None:  # a checkpoint computes its forward again first
            return estimate, estimate * (BACKWARD_FORWARD_RATIO + is_checkpoint(node))
        return round(estimate * factors[0]), round(estimate * factors[1])

    def workspace_bytes(self, node: fx.Node) -> int:
        """What the node takes and gives back; what the fakes show is not all that a kernel takes."""
        measured = self._times.get(self._program.names[node])
        return measured.workspace_bytes or 0 if measured is not None else 0


def _by_operator(lender: Lender) -> dict[str, tuple[float, float]]:
    """Median of measured forward and backward over the estimate, by operator, and of all as ""."""
    program, ratios = lender.program, dict[str, list[tuple[float, float]]]()
    for node in program.nodes if lender.times else ():
        measured, estimate = lender.times.get(program.names[node]), _roofline_ns(program.facts[node], lender.device)
        if measured is not None and estimate:
            for key in ("", operator_name(node)):
                ratios.setdefault(key, []).append((measured.forward_ns / estimate, measured.backward_ns / estimate))
    return {
        key: (statistics.median(forward for forward, _ in found), statistics.median(backward for _, backward in found))
        for key, found in ratios.items()
    }


def _node(program: Program, node: fx.Node, clocks: Mapping[str, _Clock], group: str | None) -> Node:
    facts = program.facts[node]
    times = {kind: clock(node) for kind, clock in clocks.items()}
    return Node(
        name=program.names[node],
        op=operator_name(node),
        module=module_path(node),
        forward_ns={kind: forward for kind, (forward, _) in times.items()},
        backward_ns={kind: backward for kind, (_, backward) in times.items()},
        group=group,
        workspace_bytes=max([facts.workspace_bytes, *(clock.workspace_bytes(node) for clock in clocks.values())]),
    )


def _roofline_ns(facts: Facts, device: Device) -> int:
    if not facts.flops and not facts.moved_bytes:
        return 0  # a view
    compute_ns = facts.flops * 10**9 // device.rate(facts.flops_dtype)
    memory_ns = facts.moved_bytes * 10**9 // device.bandwidth_bytes_per_s
    return facts.operators * device.launch_ns + max(compute_ns, memory_ns)


def _group_names(program: Program) -> dict[fx.Node, str]:
    """Group by node; a source stands for the node that reads it first."""
    names: dict[fx.Node, str] = {}
    for index, group in enumerate(program.groups):
        for member in group:
            node = program.sources.get(member, member)
            if node is not None:
                names[node] = f"together-{index}"
    return names


def _collect(program: Program) -> dict[str, _Flow]:
    """Every value that is made or read, with its readers in program order."""
    flows: dict[str, _Flow] = {}
    placed = set(program.nodes)
    returned = {value for i, value in enumerate(program.results) if program.returns(i)}
    for node in program.graph_module.graph.nodes:
        for value in program.reads[node].values():
            if node in placed and program.facts[value.node].is_tensor:
                _read(program, flows, value, node)
            elif node is program.output and value.node in returned and (value.producer or program.sources[value.node]):
                flows.setdefault(value.name, _Flow(value, _home(program, flows, value))).is_output = True
        if node in placed and program.facts[node].is_tensor:
            value = Value(program.names[node], node, node, program.facts[node].leaves[0].requires_grad)
            flow = flows.setdefault(value.name, _Flow(value, program.names[node]))
            if _saves(program, node, node):
                flow.saved_by.append(program.names[node])
    return flows


def _read(program: Program, flows: dict[str, _Flow], value: Value, reader: fx.Node) -> None:
    name = program.names[reader]
    flow = flows.setdefault(value.name, _Flow(value, _home(program, flows, value)))
    if flow.producer != name:
        flow.readers.append(name)
    if _saves(program, reader, value.node):
        flow.saved_by.append(name)


def _home(program: Program, flows: dict[str, _Flow], value: Value) -> str:
    """The node at whose device the value is: its producer, or the first reader of the source that it is."""
    if value.producer is not None:
        return program.names[value.producer]
    first = program.sources[value.node]
    if first is None:
        raise AssertionError(f"{value.name} is read, but its source has no reader")  # sources are computed from reads
    arrival = Value(program.names[value.node], value.node, None, program.facts[value.node].leaves[0].requires_grad)
    flows.setdefault(arrival.name, _Flow(arrival, program.names[first]))
    return program.names[first]


def _saves(program: Program, node: fx.Node, tensor: fx.Node) -> bool:
    return any(leaf.storage in program.facts[node].saved for leaf in program.facts[tensor].leaves)


def _useful(program: Program) -> set[fx.Node]:
    """Nodes that an output depends on, by value or through a storage: gradients flow to these alone."""
    group_of = {member: group for group in program.groups for member in group}
    useful: set[fx.Node] = set()
    pending = [program.output]
    while pending:
        node = pending.pop()
        if node not in useful:
            useful.add(node)
            pending += [*node.all_input_nodes, *group_of.get(node, [])]
    return useful


def _tensor(program: Program, flow: _Flow, useful: set[fx.Node], optimizer: OptimizerCost | None) -> Tensor:
    arrives = flow.value.name == program.names[flow.value.node]
    source = program.inputs.get(flow.value.node) if arrives else None
    leaf = program.facts[flow.value.node].leaves[0]
    trained = source is not None and source.kind == "parameter" and leaf.requires_grad and optimizer is not None
    return Tensor(
        name=flow.value.name,
        producer=flow.producer,
        readers=tuple(flow.readers),
        size_bytes=leaf.size_bytes,
        kind=_kind(flow.value.node, source) if arrives else "activation",
        storage=f"storage-{leaf.storage}",
        storage_bytes=leaf.storage_bytes,
        saved_by=tuple(flow.saved_by),
        requires_grad=flow.value.requires_grad and flow.value.node in useful,
        is_output=flow.is_output,
        state_bytes=round(leaf.size_bytes * optimizer.state_ratio) if trained and optimizer else 0,
        step_bytes=round(leaf.size_bytes * optimizer.step_ratio) if trained and optimizer else 0,
    )


def _kind(node: fx.Node, source: Input | None) -> TensorKind:
    if source is not None and source.is_weight:
        return "parameter" if source.kind == "parameter" else "buffer"
    if source is not None and source.kind == "state":
        return "buffer"  # it lives on its reader's device before and after
    return "input" if node.op in ("placeholder", "get_attr") else "activation"


def _hidden(program: Program) -> list[Tensor]:
    """Storages that only a node's backward reads, such as a dropout mask."""
    return [
        Tensor(
            name=f"{program.names[node]}~{storage}",
            producer=program.names[node],
            size_bytes=size_bytes,
            saved_by=(program.names[node],),
        )
        for node in program.nodes
        for storage, size_bytes in program.facts[node].hidden.items()
    ]
