"""The judge: a placement's allocations, slot by slot, and its times. The rules are in ``autosplit.estimate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from autosplit.device import HOST, Cluster
from autosplit.estimate.makespan import makespan_ns
from autosplit.estimate.pieces import pieces_ns
from autosplit.graph import CostGraph, Tensor
from autosplit.placement import DIRECT, CostModel, Objective


class Item(NamedTuple):
    """A tensor compiled to numbers: nodes are positions in program order.

    ``base`` is the index of the tensor that this one is a view of, or -1; ``storage`` and ``bytes`` are its allocation.
    ``size`` is what a transfer moves, ``copy`` what a copy or a gradient of it takes.
    """

    producer: int
    readers: tuple[int, ...]
    size: int
    copy: int
    storage: int
    bytes: int
    base: int
    weight: bool
    input: bool
    output: bool
    savers: tuple[int, ...]
    grad: bool
    state: int
    step: int


class Move(NamedTuple):
    """A transfer as numbers: tensor index, devices by position in the cluster (the host is one past the last)."""

    tensor: int
    src: int
    dst: int
    slot: int


class Judge:
    """A graph and a cluster compiled to numbers, to score many placements of one problem.

    A placement is given as labels: for each node in program order the position of its device in the cluster.

    Args:
        graph: what runs.
        cluster: where.
        io_device: where inputs arrive and outputs return: a device of the cluster, or "host".
        model: what transfers cost, and micro-batches in flight.

    Raises:
        DeviceError: ``io_device`` is neither.
    """

    def __init__(self, graph: CostGraph, cluster: Cluster, io_device: str = HOST, model: CostModel = DIRECT) -> None:
        self.graph, self.cluster, self.model = graph, cluster, model
        self.train = graph.mode == "train"
        self.n, self.k = len(graph), len(cluster.devices)
        if io_device != HOST:
            cluster.device(io_device)
        self.io = cluster.names.index(io_device) if io_device != HOST else self.k
        kinds = dict.fromkeys(device.kind for device in cluster.devices)
        by_kind = {kind: [graph.node_ns(name, kind) for name in graph.nodes] for kind in kinds}
        self.node_ns = [by_kind[device.kind] for device in cluster.devices]
        forward = {kind: [graph.forward_ns(name, kind) for name in graph.nodes] for kind in kinds}
        self.forward_ns = [forward[device.kind] for device in cluster.devices]
        self.launch_ns = [device.launch_ns for device in cluster.devices]
        self.workspace = [node.workspace_bytes for node in graph.nodes.values()]
        self.fixed = [node.fixed_bytes for node in graph.nodes.values()]
        self.stash = [node.inflight_bytes for node in graph.nodes.values()]
        self.is_backward = [node.is_backward for node in graph.nodes.values()]
        self.names, self.items = _compile(graph)
        self.is_host = [*(device.kind == "cpu" for device in cluster.devices), True]
        self.end = 2 * self.n + 1 if self.train else self.n
        self._places = (*cluster.names, HOST)
        self._cost: dict[tuple[int, int, int], int] = {}
        self._mobile = [i for i, item in enumerate(self.items) if item.readers or item.input or item.output]

    def move_ns(self, item: Item, src: int, dst: int) -> int:
        """Nanoseconds to send the tensor, and in training its gradient back."""
        cost = self.one_way_ns(src, dst, item.size)
        return cost + self.one_way_ns(dst, src, item.size) if self.train and item.grad else cost

    def one_way_ns(self, src: int, dst: int, size: int) -> int:
        """Nanoseconds to send so many bytes from one device, by position, to another."""
        key = (src, dst, size)
        cost = self._cost.get(key)
        if cost is None:
            cost = self._cost[key] = self.cluster.transfer_ns(self._places[src], self._places[dst], size)
        return cost

    def moves(self, labels: Sequence[int]) -> list[Move]:
        """Every transfer of the forward pass, tensor by tensor. O(reads)."""
        moves: list[Move] = []
        for index in self._mobile:
            item = self.items[index]
            home = labels[item.producer]
            there = {home}
            if item.input and home != self.io:
                moves.append(Move(index, self.io, home, item.producer))
                there.add(self.io)
            for reader in item.readers:
                device = labels[reader]
                if device not in there:
                    there.add(device)
                    moves.append(Move(index, home, device, reader))
            if item.output and self.io not in there:
                moves.append(Move(index, home, self.io, self.n))
        return moves

    def busy(self, labels: Sequence[int]) -> list[int]:
        """Compute nanoseconds by device. O(nodes)."""
        busy = [0] * self.k
        for i, device in enumerate(labels):
            busy[device] += self.node_ns[device][i]
        return busy

    def transfer_ns(self, labels: Sequence[int]) -> int:
        """Nanoseconds of all transfers of one step, gradients too, as if none ran beside another. O(reads)."""
        return sum(self.move_ns(self.items[m.tensor], m.src, m.dst) for m in self.moves(labels))

    def step_ns(self, labels: Sequence[int]) -> int:
        """Nanoseconds of one step: its makespan (``autosplit.estimate.makespan``)."""
        return makespan_ns(self, labels)

    def load_ns(self, labels: Sequence[int]) -> list[int]:
        """Compute and transfer nanoseconds by device, in the cost model."""
        traffic = [0] * (self.k + 1)
        if self.model.transfers == "host":
            self._through_host(labels, traffic)
        else:
            for move in self.moves(labels):
                cost = self.move_ns(self.items[move.tensor], move.src, move.dst)
                traffic[move.dst] += cost
                if self.model.transfers == "direct":
                    traffic[move.src] += cost
        pairs = zip(self.busy(labels), traffic, strict=False)
        return [max(pair) if self.model.overlap else sum(pair) for pair in pairs]

    def _through_host(self, labels: Sequence[int], traffic: list[int]) -> None:
        """Add what each device sends to and gets from the host's memory: each tensor once."""
        last = -1
        for move in self.moves(labels):
            item = self.items[move.tensor]
            if not self.is_host[move.src] and move.tensor != last:
                traffic[move.src] += self.move_ns(item, move.src, self.k)
            if not self.is_host[move.dst]:
                traffic[move.dst] += self.move_ns(item, self.k, move.dst)
            last = move.tensor

    def peaks(self, labels: Sequence[int]) -> list[int]:
        """Most bytes held at once, by device. O(nodes + reads + devices * slots)."""
        replay = _Replay(self, labels)
        for index in range(len(self.items)):
            replay.run(index)
        peaks, saved = replay.peaks(), replay.saved()
        in_flight = self.in_flight(labels)
        for device, held in in_flight.items():
            peaks[device] += (held - 1) * saved[device]
        for i, device in enumerate(labels):
            peaks[device] += self.fixed[i] + in_flight[device] * self.stash[i]
        return peaks

    def in_flight(self, labels: Sequence[int]) -> dict[int, int]:
        """Micro-batches that each device in use holds.

        Stages are numbered so that nothing of the forward goes back, those with earlier first nodes first; by their
        first nodes alone when no such numbering exists. O(reads), with several micro-batches.
        """
        used = list(dict.fromkeys(labels))
        if self.model.microbatches > 1:
            used = self.numbered(labels, used)
        return {device: self.model.in_flight(len(used) - i) for i, device in enumerate(used)}

    def numbered(self, labels: Sequence[int], used: list[int]) -> list[int]:
        """The devices in use in the order of ``in_flight``."""
        waits: dict[int, set[int]] = {device: set() for device in used}
        for item in self.items:
            if not self.is_backward[item.producer]:
                for reader in item.readers:
                    if labels[reader] != labels[item.producer] and not self.is_backward[reader]:
                        waits[labels[reader]].add(labels[item.producer])
        numbered: list[int] = []
        while len(numbered) < len(used):
            free = next((d for d in used if d not in numbered and waits[d] <= set(numbered)), None)
            if free is None:
                return used
            numbered.append(free)
        return numbered

    def value(self, labels: Sequence[int], objective: Objective, peaks: Sequence[int]) -> int:
        """The objective; ``peaks`` are those of ``labels``."""
        if objective == "latency":
            return pieces_ns(self, labels) if self.model.transfers == "host" else self.step_ns(labels)
        return max(self.load_ns(labels)) if objective == "throughput" else max(peaks)


def _compile(graph: CostGraph) -> tuple[list[str], list[Item]]:
    """Tensor names and items, every tensor after the one that it is a view of."""
    order = graph.order
    tensors = sorted(graph.tensors.values(), key=lambda t: (order[t.producer], t.kind == "activation"))
    storages: dict[str, list[int]] = {}
    size: dict[str, int] = {}
    for i, tensor in enumerate(tensors):
        storages.setdefault(tensor.allocation, []).append(i)
        size[tensor.allocation] = max(size.get(tensor.allocation, 0), tensor.allocation_bytes * tensor.is_held)
    items = []
    for i, tensor in enumerate(tensors):
        mates = storages[tensor.allocation]
        items.append(
            Item(
                producer=order[tensor.producer],
                readers=tuple(order[reader] for reader in tensor.readers),
                size=tensor.size_bytes,
                copy=tensor.size_bytes * tensor.is_held,
                storage=mates[0],
                bytes=size[tensor.allocation],
                base=next((j for j in mates if j < i and _is_view_of(tensor, tensors[j])), -1),
                weight=tensor.is_weight,
                input=tensor.kind == "input",
                output=tensor.is_output,
                savers=tuple(order[saver] for saver in tensor.saved_by),
                grad=tensor.requires_grad,
                state=tensor.state_bytes,
                step=tensor.step_bytes,
            )
        )
    return [tensor.name for tensor in tensors], items


def _is_view_of(tensor: Tensor, base: Tensor) -> bool:
    """Whether the node that makes ``tensor`` reads ``base``, which has the same storage."""
    if tensor.kind != "activation":
        return False
    return tensor.producer in base.readers or (base.kind != "activation" and base.producer == tensor.producer)


class _Replay:
    """One placement's allocations. A holder is an allocation whose last slot is still growing."""

    def __init__(self, judge: Judge, labels: Sequence[int]) -> None:
        self.judge, self.labels = judge, labels
        self.delta = [[0] * (judge.end + 2) for _ in range(judge.k + 1)]
        self.instances: dict[tuple[int, int], int] = {}
        self.holders: list[list[int]] = []
        self.at: list[dict[int, int]] = []

    def hold(self, device: int, start: int, end: int, size: int) -> None:
        """An allocation from slot ``start`` to slot ``end``."""
        if start <= end:
            self.delta[device][start] += size
            self.delta[device][end + 1] -= size

    def run(self, index: int) -> None:
        """Everything that one tensor takes, wherever it is."""
        item = self.judge.items[index]
        home = self.labels[item.producer]
        reads: dict[int, list[int]] = {}
        for reader in item.readers:
            reads.setdefault(self.labels[reader], [reader, reader])[1] = reader
        at = {home: self._home(item, home)}
        self.at.append(at)
        if item.input and self.judge.io != home:
            at[self.judge.io] = self._holder(self.judge.io, 0, self.judge.end, item.bytes)
        for device, (first, last) in reads.items():
            if device in at:
                self._extend(at[device], last)
            else:
                at[device] = self._holder(device, first, last, item.copy)
                self._extend(at[home], first)
        if item.output:
            self._return(item, at, at[home])
        if self.judge.train:
            for saver in item.savers:
                self._extend(at.get(self.labels[saver], at[home]), 2 * self.judge.n - saver)
            self._learn(item, home, reads)

    def peaks(self) -> list[int]:
        """Most bytes by device."""
        for device, start, end, size in self.holders:
            self.hold(device, start, end, size)
        for i, size in enumerate(self.judge.workspace):
            if size:
                self.hold(self.labels[i], i, i, size)
                if self.judge.train:
                    self.hold(self.labels[i], 2 * self.judge.n - i, 2 * self.judge.n - i, size)
        return [max(accumulate(delta)) for delta in self.delta[: self.judge.k]]

    def saved(self) -> list[int]:
        """Bytes by device that the forward leaves for the backward, beside what lives for longer."""
        saved = [0] * (self.judge.k + 1)
        for device, start, end, size in self.holders:
            if start <= self.judge.n < end < self.judge.end:
                saved[device] += size
        return saved

    def _home(self, item: Item, home: int) -> int:
        if item.base >= 0:
            return self.at[item.base][home]
        forever = item.weight or (item.input and home == self.judge.io)
        start = 0 if forever else item.producer
        end = self.judge.end if forever else item.producer
        key = (item.storage, home)
        holder = self.instances.get(key)
        if holder is None:
            holder = self.instances[key] = self._holder(home, start, end, item.bytes)
        self.holders[holder][1] = min(self.holders[holder][1], start)
        self._extend(holder, end)
        return holder

    def _return(self, item: Item, at: dict[int, int], holder: int) -> None:
        self._extend(holder, self.judge.end)
        io = self.judge.io
        if io in at:
            self._extend(at[io], self.judge.end)
        else:
            at[io] = self._holder(io, self.judge.n, self.judge.end, item.copy)

    def _learn(self, item: Item, home: int, reads: Mapping[int, Sequence[int]]) -> None:
        """Gradients, and for a parameter the optimizer's bytes."""
        end = self.judge.end
        self.hold(home, 0, end, item.state)
        self.hold(home, end, end, item.step)
        if not item.grad:
            return
        middle, io = 2 * self.judge.n, self.judge.io
        produced = middle - item.producer
        stays = item.weight or (item.input and home == io)
        starts = [self.judge.n] * item.output + [produced] * (item.weight or item.input)
        for device, (first, last) in reads.items():
            if device == home:
                starts.append(middle - last)
            elif not (item.input and device == io):  # the caller's own tensor is not a copy
                starts.append(middle - first)
                self.hold(device, middle - last, middle - first, item.copy)
        if starts:
            self.hold(home, min(starts), end if stays else produced, item.copy)
        if item.input and home != io:
            self.hold(io, middle - reads[io][1] if io in reads else produced, end, item.copy)

    def _holder(self, device: int, start: int, end: int, size: int) -> int:
        self.holders.append([device, start, end, size])
        return len(self.holders) - 1

    def _extend(self, holder: int, slot: int) -> None:
        self.holders[holder][2] = max(self.holders[holder][2], slot)
