"""Slow, separate simulators of a placement's memory and time.

They share no code with autosplit.estimate. For memory that one computes first and last slots; this one runs every step,
and asks of every allocation whether the future still needs it. For time that one turns clocks; this one writes down
every task, and takes for its start the latest end of all that it waits for.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from autosplit.device import HOST, Cluster
from autosplit.graph import CostGraph, Tensor


@dataclass(eq=False)
class Allocation:
    device: str
    size: int
    forever: bool = False
    tensors: list[Tensor] = field(default_factory=list)


class Simulator:
    def __init__(self, graph: CostGraph, placement: dict[str, str], io_device: str) -> None:
        self.graph, self.place, self.io = graph, placement, io_device
        self.names = list(graph.nodes)
        self.live: list[Allocation] = []
        self.where: dict[tuple[str, str], Allocation] = {}
        self.own: dict[tuple[str, str], Allocation] = {}
        self.grads: dict[tuple[str, str], int] = {}
        self.peak: dict[str, int] = defaultdict(int)
        self.done_forward: set[str] = set()
        self.done_backward: set[str] = set()
        self.phase = "forward"
        self.storage_bytes: dict[str, int] = defaultdict(int)
        for t in graph.tensors.values():
            self.storage_bytes[t.allocation] = max(self.storage_bytes[t.allocation], t.allocation_bytes)
        self.in_order = sorted(
            graph.tensors.values(), key=lambda t: (self.names.index(t.producer), t.kind == "activation")
        )
        self.state = defaultdict(int)

    # -- what the future needs

    def home(self, t: Tensor) -> str:
        return self.place[t.producer]

    def readers_on(self, t: Tensor, device: str) -> list[str]:
        return [r for r in t.readers if self.place[r] == device]

    def needed(self, allocation: Allocation) -> bool:
        return allocation.forever or any(self.needs(t, allocation.device) for t in allocation.tensors)

    def needs(self, t: Tensor, device: str) -> bool:
        if t.is_output and device in (self.home(t), self.io):
            return True
        if any(r not in self.done_forward for r in self.readers_on(t, device)):
            return True
        if device == self.home(t):
            for other in {self.place[r] for r in t.readers} - {device}:
                if t.kind == "input" and other == self.io:
                    continue  # it is there already
                if not any(r in self.done_forward for r in self.readers_on(t, other)):
                    return True
        if self.graph.mode == "infer":
            return False
        for saver in t.saved_by:
            holds = self.place[saver] if (t.name, self.place[saver]) in self.where else self.home(t)
            if holds == device and saver not in self.done_backward:
                return True
        return False

    # -- steps

    def measure(self, node: str = "") -> None:
        used: dict[str, int] = defaultdict(int, self.state)
        for allocation in self.live:
            used[allocation.device] += allocation.size
        for (_, device), size in self.grads.items():
            used[device] += size
        if node:
            used[self.place[node]] += self.graph.nodes[node].workspace_bytes
        for device, size in used.items():
            self.peak[device] = max(self.peak[device], size)

    def allocate(self, t: Tensor, device: str, size: int, forever: bool = False) -> Allocation:
        allocation = Allocation(device, size, forever, [t])
        self.live.append(allocation)
        self.where[t.name, device] = allocation
        return allocation

    def drop(self) -> None:
        self.live = [allocation for allocation in self.live if self.needed(allocation)]

    def start(self) -> None:
        for t in self.in_order:
            if t.is_weight:
                known = self.own.get((t.allocation, self.home(t)))
                if known is None:
                    self.own[t.allocation, self.home(t)] = self.allocate(
                        t, self.home(t), self.storage_bytes[t.allocation], forever=True
                    )
                else:
                    known.tensors.append(t)
                    self.where[t.name, self.home(t)] = known
                if self.graph.mode == "train":
                    self.state[self.home(t)] += t.state_bytes
            elif t.kind == "input" and self.io != HOST:
                allocation = self.allocate(t, self.io, self.storage_bytes[t.allocation], forever=True)
                if self.home(t) == self.io:
                    self.own[t.allocation, self.io] = allocation

    def forward(self, node: str) -> None:
        here = self.place[node]
        for t in self.in_order:
            if t.producer == node and (t.name, here) not in self.where:
                self.make(t, here)
        for t in self.in_order:
            if node in t.readers and (t.name, here) not in self.where:
                self.allocate(t, here, t.size_bytes)
        self.measure(node)
        self.done_forward.add(node)
        self.drop()

    def make(self, t: Tensor, here: str) -> None:
        bases = [
            b
            for b in self.in_order
            if t.kind == "activation"
            and b.allocation == t.allocation
            and (t.producer in b.readers or (b.kind != "activation" and b.producer == t.producer))
        ]
        if bases and (bases[0].name, here) not in self.where:
            self.allocate(bases[0], here, bases[0].size_bytes)
        shared = self.where[bases[0].name, here] if bases else self.own.get((t.allocation, here))
        if shared is None:
            self.own[t.allocation, here] = self.allocate(t, here, self.storage_bytes[t.allocation])
            return
        shared.tensors.append(t)
        self.where[t.name, here] = shared
        if shared not in self.live:
            self.live.append(shared)

    def hand_over(self) -> None:
        self.done_forward = set(self.names)
        for t in self.in_order:
            if t.is_output and self.io != HOST and (t.name, self.io) not in self.where:
                self.allocate(t, self.io, t.size_bytes)
            if t.is_output and t.requires_grad and self.graph.mode == "train":
                self.grads[t.name, self.home(t)] = t.size_bytes
        self.measure()

    def backward(self, node: str) -> None:
        here = self.place[node]
        for t in self.in_order:
            if not t.requires_grad:
                continue
            leaf = t.kind != "activation"
            if node in t.readers or (leaf and node == t.producer):
                self.grads[t.name, here] = t.size_bytes
                remote = here != self.home(t) and not (t.kind == "input" and here == self.io)
                if remote and node == self.readers_on(t, here)[0]:
                    self.grads[t.name, self.home(t)] = t.size_bytes
            if t.kind == "input" and node == t.producer and self.io != HOST:
                self.grads[t.name, self.io] = t.size_bytes
        self.measure(node)
        self.done_backward.add(node)
        self.drop()
        self.drop_gradients(node)

    def drop_gradients(self, node: str) -> None:
        for t in self.in_order:
            for device in {self.place[r] for r in t.readers} - {self.home(t)}:
                gone = node == self.readers_on(t, device)[0] and not (t.kind == "input" and device == self.io)
                if gone:
                    self.grads.pop((t.name, device), None)
            stays = t.is_weight or (t.kind == "input" and self.home(t) == self.io)
            if node == t.producer and not stays:
                self.grads.pop((t.name, self.home(t)), None)

    def run(self) -> dict[str, int]:
        self.start()
        self.measure()
        for node in self.names:
            self.forward(node)
        self.hand_over()
        if self.graph.mode == "train":
            self.drop()
            for node in reversed(self.names):
                self.backward(node)
            for t in self.in_order:
                self.state[self.home(t)] += t.step_bytes
            self.measure()
        return self.peak


def reference_peaks(graph: CostGraph, placement: dict[str, str], devices: tuple[str, ...], io: str) -> dict[str, int]:
    peak = Simulator(graph, placement, io).run()
    return {name: peak[name] for name in devices}


@dataclass(eq=False)
class Task:
    """Something that the host issues: it occupies ``places`` for ``ns``, and the host at least for ``launch`` ns."""

    ns: int
    places: frozenset[str]
    launch: int


class TaskList:
    """The program as a list of tasks, in the order in which one thread issues them."""

    def __init__(self, graph: CostGraph, placement: dict[str, str], cluster: Cluster, io: str) -> None:
        self.graph, self.place, self.cluster, self.io = graph, placement, cluster, io
        self.names = list(graph.nodes)
        self.tasks: list[Task] = []
        self.copies: list[tuple[Tensor, str, str, int]] = []
        self.in_order = sorted(
            graph.tensors.values(), key=lambda t: (self.names.index(t.producer), t.kind == "activation")
        )

    def place_of(self, device: str) -> str:
        return HOST if device == HOST or device.split(":", maxsplit=1)[0] in ("cpu", "sim") else device

    def add(self, ns: int, *devices: str) -> None:
        launch = 0 if devices[0] == HOST else self.cluster.device(devices[0]).launch_ns
        self.tasks.append(Task(ns, frozenset(map(self.place_of, devices)), min(ns, launch)))

    def compute(self, node: str, times: dict[str, int]) -> None:
        device = self.cluster.device(self.place[node])
        self.add(times.get(device.kind, times.get("*", 0)), device.name)

    def copy(self, t: Tensor, src: str, dst: str, when: int) -> None:
        self.copies.append((t, src, dst, when))
        self.add(self.cluster.transfer_ns(src, dst, t.size_bytes), src, dst)

    def fetch(self, t: Tensor, when: int, node: str) -> None:
        """What has to be sent so that ``node`` finds ``t``."""
        here, home = self.place[node], self.place[t.producer]
        if t.kind == "input" and node == t.producer and self.io != here:
            self.copy(t, self.io, here, when)
        there = {home} | {dst for sent, _, dst, _ in self.copies if sent is t}
        if t.kind == "input":
            there.add(self.io)
        if node in t.readers and here not in there:
            self.copy(t, home, here, when)

    def run(self) -> int:
        for i, node in enumerate(self.names):
            for t in self.in_order:
                self.fetch(t, i, node)
            self.compute(node, self.graph.nodes[node].forward_ns)
        for t in self.in_order:
            there = {self.place[t.producer]} | {dst for sent, _, dst, _ in self.copies if sent is t}
            at_caller = t.kind == "input"
            if t.is_output and not at_caller and self.io not in there:
                self.copy(t, self.place[t.producer], self.io, len(self.names))
        if self.graph.mode == "train":
            self.backward()
        return self.longest()

    def backward(self) -> None:
        for i in range(len(self.names), -1, -1):
            if i < len(self.names):
                self.compute(self.names[i], self.graph.nodes[self.names[i]].backward_ns)
            for t, src, dst, when in reversed(self.copies):
                if when == i and t.requires_grad:
                    self.add(self.cluster.transfer_ns(dst, src, t.size_bytes), dst, src)

    def longest(self) -> int:
        """A task waits for the last one on each of its places, and for the host to have started all before it."""
        end: list[int] = []
        for i, task in enumerate(self.tasks):
            issued = 0
            for j in range(i):  # the host: through the last task that it waited for, then launch by launch
                earlier = self.tasks[j]
                issued = end[j] if HOST in earlier.places else issued + earlier.launch
            behind = [end[j] for j in range(i) if self.tasks[j].places & task.places]
            end.append(max([issued, *behind]) + task.ns)
        return max(end, default=0)


def reference_makespan(graph: CostGraph, placement: dict[str, str], cluster: Cluster, io: str) -> int:
    return TaskList(graph, placement, cluster, io).run()
