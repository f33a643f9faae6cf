"""CostGraph: what must run and what it costs. Nodes compute, tensors connect them. No torch here.

Program order (the order in which nodes are given) is the order of execution and is topological. Tensors are
first-class, because a transfer is paid once per tensor and destination, not once per edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

import msgspec
import networkx as nx

from autosplit.choices import Mode
from autosplit.errors import GraphError
from autosplit.graph import checks, digraphs
from autosplit.graph.checks import check_graph

__all__ = ["CostGraph", "Mode", "Node", "Recomputed", "Tensor", "TensorKind", "check_graph"]

TensorKind = Literal["activation", "parameter", "buffer", "input"]


class Recomputed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node takes, in place of its own figures, when it saves less and is computed again for the backward.

    Attributes:
        forward_ns: as of Node.
        backward_ns: as of Node, with the second forward.
        fixed_bytes: as of Node.
        inflight_bytes: as of Node.
    """

    forward_ns: dict[str, int] = {}
    backward_ns: dict[str, int] = {}
    fixed_bytes: int = 0
    inflight_bytes: int = 0


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One operator.

    Attributes:
        name: unique; stable over captures of the same model.
        op: the operator's name, for people.
        module: dotted path of the module it came from, for people and for grouping in reports.
        forward_ns: time of one run by device kind; the key "*" serves every other kind.
        backward_ns: time of its backward by device kind; read only when the graph's mode is "train".
        group: nodes with the same group stay on one device.
        devices: names or kinds of the devices that it may run on; empty: on any.
        is_backward: it computes a gradient, in a graph that has the backward pass as nodes of its own. A group ties it
            to its forward node. Contiguous stages are runs of the other nodes.
        workspace_bytes: memory taken on the device only while the node runs.
        fixed_bytes: memory taken on the device all the time, beside what the tensors say.
        inflight_bytes: likewise, for each micro-batch in flight.
        recomputed: what it takes when it is recomputed; None: it cannot be. It is never faster so.
    """

    name: str
    op: str = ""
    module: str = ""
    forward_ns: dict[str, int] = {}
    backward_ns: dict[str, int] = {}
    group: str | None = None
    devices: tuple[str, ...] = ()
    is_backward: bool = False
    workspace_bytes: int = 0
    fixed_bytes: int = 0
    inflight_bytes: int = 0
    recomputed: Recomputed | None = None


class Tensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value: made once, read by any number of nodes.

    Attributes:
        name: unique.
        producer: the node that computes it. A parameter, buffer or input is produced by nobody: there it is the
            first node that reads it, at whose device it lives (its home).
        readers: the nodes that read it, in program order, without the producer.
        size_bytes: what one transfer of it moves.
        kind: activation, parameter, buffer or input.
        storage: tensors with the same storage are views of one allocation, counted once on a device.
            Empty means the tensor has a storage of its own.
        storage_bytes: bytes of the whole allocation (0: same as size_bytes).
        saved_by: nodes (producer included) whose backward needs it: in training it stays until then.
        requires_grad: in training a transfer of it returns a gradient of the same size.
        is_output: the caller receives it.
        state_bytes: optimizer state of a parameter that lives from step to step.
        step_bytes: transient bytes that the optimizer's update of this parameter takes.
        is_held: False: its memory, and its copies' and gradient's, is counted in its nodes' fixed_bytes and
            inflight_bytes; here only its transfers, state_bytes and step_bytes.
    """

    name: str
    producer: str
    readers: tuple[str, ...] = ()
    size_bytes: int
    kind: TensorKind = "activation"
    storage: str = ""
    storage_bytes: int = 0
    saved_by: tuple[str, ...] = ()
    requires_grad: bool = False
    is_output: bool = False
    state_bytes: int = 0
    step_bytes: int = 0
    is_held: bool = True

    @property
    def allocation(self) -> str:
        """The name of the storage that holds this tensor."""
        return self.storage or self.name

    @property
    def allocation_bytes(self) -> int:
        """Bytes of that storage."""
        return self.storage_bytes or self.size_bytes

    @property
    def is_weight(self) -> bool:
        """Parameters and buffers: they live before and after the program."""
        return self.kind in ("parameter", "buffer")


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]
    mode: Mode = "infer"


class CostGraph:
    """Nodes in program order, the tensors between them, and the mode they are costed for.

    Args:
        nodes: in an order in which they can run.
        tensors: every producer and reader must be a node.
        mode: "infer" (forward only) or "train" (forward, backward, optimizer step).

    Quantities may be integers of numpy, too: they are kept as plain ones.

    Raises:
        GraphError: see check_graph.

    >>> graph = CostGraph(
    ...     [Node(name="a", forward_ns={"*": 5}), Node(name="b", forward_ns={"*": 7})],
    ...     [Tensor(name="x", producer="a", readers=("b",), size_bytes=16)],
    ... )
    >>> list(graph.digraph.edges)
    [('a', 'b')]
    """

    def __init__(self, nodes: Iterable[Node], tensors: Iterable[Tensor], mode: Mode = "infer") -> None:
        node_list = [checks.with_plain_integers(node, Node) for node in nodes]
        tensor_list = [checks.with_plain_integers(tensor, Tensor) for tensor in tensors]
        self.nodes: dict[str, Node] = {node.name: node for node in node_list}
        self.tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in tensor_list}
        self.mode: Mode = mode
        if len(self.nodes) != len(node_list):
            raise GraphError("two nodes have the same name: node names must be unique")
        if len(self.tensors) != len(tensor_list):
            raise GraphError("two tensors have the same name: tensor names must be unique")
        check_graph(self)

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def order(self) -> dict[str, int]:
        """Position of each node in program order."""
        return {name: i for i, name in enumerate(self.nodes)}

    @cached_property
    def digraph(self) -> nx.DiGraph[str]:
        """The networkx view: an edge producer -> reader with the names of its tensors in ``tensors``."""
        digraph: nx.DiGraph[str] = nx.DiGraph()
        for node in self.nodes.values():
            digraph.add_node(node.name, cost=node)
        for tensor in self.tensors.values():
            for reader in tensor.readers:
                if digraph.has_edge(tensor.producer, reader):
                    digraph.edges[tensor.producer, reader]["tensors"].append(tensor.name)
                else:
                    digraph.add_edge(tensor.producer, reader, tensors=[tensor.name])
        return digraph

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Nodes that stay together, by group name; only groups with two or more nodes."""
        members: dict[str, list[str]] = {}
        for node in self.nodes.values():
            if node.group is not None:
                members.setdefault(node.group, []).append(node.name)
        return {group: tuple(names) for group, names in members.items() if len(names) > 1}

    def node_ns(self, name: str, kind: str) -> int:
        """Nanoseconds of one run of the node on a device of ``kind``: forward, and backward in training."""
        return self._run_ns(self.nodes[name], kind)

    def forward_ns(self, name: str, kind: str) -> int:
        """Nanoseconds of one forward run of the node on a device of ``kind``."""
        return _of_kind(self.nodes[name].forward_ns, kind)

    def recomputed_ns(self, name: str, kind: str) -> int:
        """As node_ns, when the node is recomputed; the same where it cannot be."""
        node = self.nodes[name]
        return self._run_ns(node.recomputed or node, kind)

    def _run_ns(self, costs: Node | Recomputed, kind: str) -> int:
        total = _of_kind(costs.forward_ns, kind)
        return total + _of_kind(costs.backward_ns, kind) if self.mode == "train" else total

    @classmethod
    def from_networkx(cls, digraph: nx.DiGraph[Any], mode: Mode = "infer") -> CostGraph:
        """The graph that a networkx DiGraph or MultiDiGraph tells.

        Args:
            digraph: the key of a node is its name (any but a string is taken as ``str`` of it), its attributes are
                fields of Node. An edge has ``size_bytes`` and may have ``tensor``, a name: all edges from one node
                with the same, or all without one, are one tensor, that is sent once to each device. A tensor without
                a name has that of its producer. Edges may also have ``requires_grad`` and ``is_held``, as in Tensor.
            mode: as in CostGraph.

        Returns:
            Program order is the order of insertion, as far as edges let it be: of the nodes that may run next, the
            one inserted first does. O((nodes + edges) log nodes).

        Raises:
            GraphError: a cycle, whose nodes it names; an attribute that is unknown or of another type; edges that
                disagree on their tensor; or see check_graph.

        >>> digraph = nx.DiGraph()
        >>> digraph.add_node("b", forward_ns={"*": 7})
        >>> digraph.add_edge("a", "b", size_bytes=16)
        >>> CostGraph.from_networkx(digraph).tensors["a"].readers
        ('b',)
        """
        nodes, tensors = digraphs.read(digraph)
        return cls(
            [digraphs.record(f"node {name!r}", Node, {"name": name, **fields}) for name, fields in nodes.items()],
            [Tensor(name=name, **fields) for name, fields in tensors.items()],
            mode,
        )

    def to_json(self) -> bytes:
        """The graph as one JSON document.

        Raises:
            GraphError: a name cannot be written in UTF-8.
        """
        document = _Document(nodes=tuple(self.nodes.values()), tensors=tuple(self.tensors.values()), mode=self.mode)
        try:
            return msgspec.json.encode(document)
        except UnicodeEncodeError as error:
            raise GraphError(f"a name in the graph is not text: {error}") from error

    @classmethod
    def from_json(cls, data: bytes | str) -> CostGraph:
        """The graph that ``to_json`` wrote.

        Raises:
            GraphError: not such a document (unknown or repeated keys too), or not a well-formed graph.
        """
        try:
            document = msgspec.json.decode(data, type=_Document)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise GraphError(f"not a cost graph: {error}") from error
        checks.refuse_repeated_keys(data)
        return cls(document.nodes, document.tensors, document.mode)


def _of_kind(by_kind: Mapping[str, int], kind: str) -> int:
    return by_kind.get(kind, by_kind.get("*", 0))
