"""A placement's memory, by carrying its program out: blocks are opened when first needed and closed by their last user.

Written from the rules in ``autosplit.estimate`` and ``CostModel``, without their code: there the first and last moment
of an allocation are computed, here its users are counted, and it is freed when the last has run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

import networkx as nx

from autosplit.device import HOST
from autosplit.graph import CostGraph, Tensor
from autosplit.placement import CostModel


class _Block:
    """Bytes on one device. ``users`` counts who has yet to run; one that ``stays`` is never closed."""

    __slots__ = ("device", "is_open", "size", "stays", "users")

    def __init__(self, device: str, size: int, *, stays: bool = False) -> None:
        self.device, self.size, self.stays = device, size, stays
        self.users, self.is_open = 0, False


_Agenda = defaultdict[str, list[_Block]]
"""Blocks by node name."""


def in_order(graph: CostGraph) -> list[Tensor]:
    """Tensors in the order in which they come to be: by producer; what a node reads first, before what it makes."""
    return sorted(graph.tensors.values(), key=lambda t: (graph.order[t.producer], t.kind == "activation"))


def peak_bytes(
    graph: CostGraph, devices: Mapping[str, str], names: Iterable[str], io_device: str, model: CostModel
) -> dict[str, int]:
    """Most bytes held at once, by device.

    Args:
        graph: what runs.
        devices: device name by node name, for every node.
        names: of all devices.
        io_device: where inputs arrive and outputs return.
        model: tells how many micro-batches are in flight.

    Returns:
        By name of device. O(nodes + reads + devices), after sorting the tensors.
    """
    run = _Run(graph, devices, _Ledger(graph, devices, io_device))
    run.all()
    return _with_flight(run, in_flight(graph, devices, model), names)


def stage_bytes(
    graph: CostGraph, devices: Mapping[str, str], held: Mapping[str, int], recomputed: Collection[str]
) -> dict[str, int]:
    """Most bytes held at once on each device of ``held``, which holds so many micro-batches; io is the host's.

    ``recomputed`` are nodes that take what they then take in place of their own bytes.
    """
    run = _Run(graph, devices, _Ledger(graph, devices, HOST))
    run.all()
    return _with_flight(run, held, held, recomputed)


def _with_flight(
    run: _Run, held: Mapping[str, int], names: Iterable[str], recomputed: Collection[str] = ()
) -> dict[str, int]:
    graph, devices = run.graph, run.devices
    peaks = {name: run.peak[name] for name in names}
    for device, count in held.items():
        peaks[device] += (count - 1) * run.saved[device]
    for name, node in graph.nodes.items():
        costs = node.recomputed if node.recomputed and name in recomputed else node
        peaks[devices[name]] += costs.fixed_bytes + held[devices[name]] * costs.inflight_bytes
    return peaks


def in_flight(graph: CostGraph, devices: Mapping[str, str], model: CostModel) -> dict[str, int]:
    """Micro-batches that each device in use holds: all (GPipe), or as many as stages follow it, itself counted.

    Stages are numbered so that nothing of the forward goes back, earlier first nodes first, or by first nodes alone
    where it must go back; ``devices`` is in program order.
    """
    first = {device: i for i, device in enumerate(dict.fromkeys(devices.values()))}
    if model.schedule == "gpipe":
        return dict.fromkeys(first, model.microbatches)
    follows: nx.DiGraph[str] = nx.DiGraph()
    follows.add_nodes_from(first)
    for tensor in graph.tensors.values():
        ends = (tensor.producer, *tensor.readers)
        forward = [devices[name] for name in ends if not graph.nodes[name].is_backward]
        if not graph.nodes[tensor.producer].is_backward:
            follows.add_edges_from((forward[0], device) for device in forward[1:] if device != forward[0])
    try:
        stages = list(nx.lexicographical_topological_sort(follows, key=first.__getitem__))
    except nx.NetworkXUnfeasible:
        stages = list(first)
    return {device: min(model.microbatches, after) for after, device in enumerate(reversed(stages), 1)}


class _Ledger:
    """Who opens which block, and who are its users: filled tensor by tensor, before anything runs."""

    def __init__(self, graph: CostGraph, devices: Mapping[str, str], io_device: str) -> None:
        self.train, self.devices, self.io = graph.mode == "train", devices, io_device
        self.at_start: list[_Block] = []
        self.at_hand_over: list[_Block] = []
        self.opens: _Agenda = defaultdict(list)
        self.uses: _Agenda = defaultdict(list)
        self.opens_backward: _Agenda = defaultdict(list)
        self.uses_backward: _Agenda = defaultdict(list)
        self.state: dict[str, int] = defaultdict(int)
        self.step: dict[str, int] = defaultdict(int)
        self._whole: dict[tuple[str, str], _Block] = {}
        tensors = in_order(graph)
        sharers = Counter(tensor.allocation for tensor in tensors)
        self._seen_by: dict[str, dict[str, dict[str, _Block]]] = {
            storage: {} for storage, count in sharers.items() if count > 1
        }
        self._shared_bytes = dict.fromkeys(self._seen_by, 0)
        for tensor in tensors:
            if tensor.is_held and tensor.allocation in self._seen_by:
                known = self._shared_bytes[tensor.allocation]
                self._shared_bytes[tensor.allocation] = max(known, tensor.allocation_bytes)
        for tensor in tensors:
            self._enter(tensor)

    def _enter(self, tensor: Tensor) -> None:
        home = self.devices[tensor.producer]
        readers: dict[str, list[str]] = {}
        for reader in tensor.readers:
            readers.setdefault(self.devices[reader], []).append(reader)
        blocks = {home: self._at_home(tensor, home)}
        if tensor.allocation in self._seen_by:
            self._see(tensor, blocks)
        self._copies(tensor, home, blocks, readers)
        if tensor.is_output:
            self._output(tensor, blocks, blocks[home])
        if self.train:
            for saver in tensor.saved_by:
                self._add(self.uses_backward, saver, blocks.get(self.devices[saver], blocks[home]))
            self._learning(tensor, home, readers)

    def _add(self, agenda: _Agenda, node: str, block: _Block) -> None:
        block.users += 1
        agenda[node].append(block)

    def _at_home(self, tensor: Tensor, home: str) -> _Block:
        """A view is in the block where its maker found the tensor that it is of; else there is one for each storage."""
        seen = self._seen_by.get(tensor.allocation)
        if seen is None:
            block = _Block(home, self._whole_bytes(tensor))
        elif tensor.kind == "activation" and tensor.producer in seen:
            return seen[tensor.producer][home]
        else:
            block = self._whole.setdefault((tensor.allocation, home), _Block(home, self._whole_bytes(tensor)))
        if tensor.is_weight or (tensor.kind == "input" and home == self.io):
            block.stays = True
            self.at_start.append(block)
        else:
            self.opens[tensor.producer].append(block)
            self._add(self.uses, tensor.producer, block)
        return block

    def _whole_bytes(self, tensor: Tensor) -> int:
        own = tensor.allocation_bytes if tensor.is_held else 0
        return self._shared_bytes.get(tensor.allocation, own)

    def _see(self, tensor: Tensor, blocks: dict[str, _Block]) -> None:
        """Note for whoever may make a view of the tensor where it will find it; the first of several counts."""
        seen = self._seen_by[tensor.allocation]
        for reader in tensor.readers if tensor.kind == "activation" else (tensor.producer, *tensor.readers):
            seen.setdefault(reader, blocks)

    def _copies(self, tensor: Tensor, home: str, blocks: dict[str, _Block], readers: dict[str, list[str]]) -> None:
        if tensor.kind == "input" and self.io not in (home, HOST):
            blocks[self.io] = _Block(self.io, self._whole_bytes(tensor), stays=True)
            self.at_start.append(blocks[self.io])
        for device, nodes in readers.items():
            if device not in blocks:
                blocks[device] = _Block(device, tensor.size_bytes * tensor.is_held)
                self.opens[nodes[0]].append(blocks[device])
                self._add(self.uses, nodes[0], blocks[home])  # until it is sent
            for node in nodes:
                self._add(self.uses, node, blocks[device])

    def _output(self, tensor: Tensor, blocks: dict[str, _Block], at_home: _Block) -> None:
        at_home.stays = True
        if self.io == HOST:
            return
        if self.io not in blocks:
            blocks[self.io] = _Block(self.io, tensor.size_bytes * tensor.is_held)
            self.at_hand_over.append(blocks[self.io])
        blocks[self.io].stays = True

    def _learning(self, tensor: Tensor, home: str, readers: dict[str, list[str]]) -> None:
        """Gradients, and the optimizer's bytes."""
        self.state[home] += tensor.state_bytes
        self.step[home] += tensor.step_bytes
        if not tensor.requires_grad or not tensor.is_held:
            return
        leaf, caller = tensor.kind != "activation", tensor.kind == "input"
        gradient = _Block(home, tensor.size_bytes, stays=tensor.is_weight or (caller and home == self.io))
        for device, nodes in readers.items():
            if device == home:
                self.opens_backward[nodes[-1]].append(gradient)
            elif not (caller and device == self.io):  # there it is no copy, but the caller's own
                self.opens_backward[nodes[0]].append(gradient)
                copied = _Block(device, tensor.size_bytes)
                self.opens_backward[nodes[-1]].append(copied)
                self._add(self.uses_backward, nodes[0], copied)
        if tensor.is_output:
            self.at_hand_over.append(gradient)
        if leaf:
            self.opens_backward[tensor.producer].append(gradient)
        self._add(self.uses_backward, tensor.producer, gradient)
        if caller and self.io not in (home, HOST):
            last = readers[self.io][-1] if self.io in readers else tensor.producer
            self.opens_backward[last].append(_Block(self.io, tensor.size_bytes, stays=True))


class _Run:
    """The program, node by node: ``used`` bytes now, ``peak`` so far, ``saved`` by the forward for the backward."""

    def __init__(self, graph: CostGraph, devices: Mapping[str, str], ledger: _Ledger) -> None:
        self.graph, self.devices, self.ledger = graph, devices, ledger
        self.used: dict[str, int] = defaultdict(int)
        self.peak: dict[str, int] = defaultdict(int)
        self.saved: dict[str, int] = defaultdict(int)

    def all(self) -> None:
        """Forward, the hand-over of the outputs, and in training the backward and the optimizer's step."""
        ledger = self.ledger
        for device, size in ledger.state.items():
            self._take(device, size)
        self._open(ledger.at_start)
        for name in self.graph.nodes:
            self._node(name, ledger.opens, ledger.uses)
        for block in self._left():
            self.saved[block.device] += block.size
        self._open(ledger.at_hand_over)
        if ledger.train:
            for name in reversed(self.graph.nodes):
                self._node(name, ledger.opens_backward, ledger.uses_backward)
            for device, size in ledger.step.items():
                self._take(device, size)

    def _take(self, device: str, size: int) -> None:
        self.used[device] += size
        self.peak[device] = max(self.peak[device], self.used[device])

    def _open(self, blocks: Iterable[_Block]) -> None:
        for block in blocks:
            if not block.is_open:
                block.is_open = True
                self._take(block.device, block.size)

    def _node(self, name: str, opens: _Agenda, uses: _Agenda) -> None:
        device, workspace = self.devices[name], self.graph.nodes[name].workspace_bytes
        self._open(opens.get(name, ()))
        self._take(device, workspace)
        self.used[device] -= workspace
        for block in uses.get(name, ()):
            block.users -= 1
            if block.users == 0 and block.is_open and not block.stays:
                self.used[block.device] -= block.size

    def _left(self) -> Iterator[_Block]:
        """Blocks that the forward leaves and that the backward will close."""
        found = {id(b): b for blocks in self.ledger.uses_backward.values() for b in blocks if b.is_open and not b.stays}
        return iter(found.values())
