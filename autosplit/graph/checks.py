"""What a cost graph must be: checked when one is made, whatever it is made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import networkx as nx

from autosplit.errors import GraphError
from autosplit.files import quoted, repeated_key

if TYPE_CHECKING:
    from autosplit.graph import CostGraph, Node, Tensor

MOST = 2**60
"""Of all times together, in ns, and of all bytes: a few times as much still fits 64 bits."""

_MODES = ("infer", "train")
_KINDS = ("activation", "parameter", "buffer", "input")
_TIMES = ("forward_ns", "backward_ns")
_NODE_BYTES = ("workspace_bytes", "fixed_bytes", "inflight_bytes")
_AGAIN_BYTES = ("fixed_bytes", "inflight_bytes")
_TENSOR_BYTES = ("size_bytes", "storage_bytes", "state_bytes", "step_bytes")
_COSTS = frozenset((*_TIMES, *_NODE_BYTES, *_TENSOR_BYTES))
_MOST_NAMED = 8

Record = TypeVar("Record", bound=msgspec.Struct)


def check_graph(graph: CostGraph) -> None:
    """Check a cost graph at hand-over. O(nodes + reads).

    Raises:
        GraphError: an unknown producer or reader, a reader that runs before its producer (program order must be
            topological; of a cycle the nodes are named), a cost that is negative or no integer, costs whose sum is
            above ``MOST``, names that are no strings, an unknown kind or mode, a node that is faster when it is
            recomputed; the message names the node or tensor.
    """
    if graph.mode not in _MODES:
        raise GraphError(f"mode {graph.mode!r}: expected one of {', '.join(_MODES)}")
    total_ns = total_bytes = 0
    for node in graph.nodes.values():
        where = f"node {node.name!r}"
        _check_names(where, (node.name, node.group or "", *node.forward_ns, *node.backward_ns))
        _check_names(f"{where}: devices", node.devices)
        total_ns += _sum(where, node, _TIMES)
        total_bytes += _sum(where, node, _NODE_BYTES)
        if node.recomputed is not None:
            _check_recomputed(graph, where, node)
            total_ns += _sum(where, node.recomputed, _TIMES)
            total_bytes += _sum(where, node.recomputed, _AGAIN_BYTES)
        _check_totals(where, total_ns, total_bytes)
    position = {name: i for i, name in enumerate(graph.nodes)}
    for tensor in graph.tensors.values():
        where = f"tensor {tensor.name!r}"
        _check_names(where, (tensor.name, tensor.storage))
        total_bytes += _sum(where, tensor, _TENSOR_BYTES)
        _check_totals(where, total_ns, total_bytes)
        if tensor.kind not in _KINDS:
            raise GraphError(f"{where}: kind {tensor.kind!r}: expected one of {', '.join(_KINDS)}")
        _check_ends(graph, tensor, position)


def _check_names(where: str, names: Iterable[str]) -> None:
    if isinstance(names, str):
        raise GraphError(f"{where}: {names!r} is one string: give a tuple of them")
    for name in names:
        if not isinstance(name, str):
            raise GraphError(f"{where}: {name!r} is no string")


def _check_recomputed(graph: CostGraph, where: str, node: Node) -> None:
    from autosplit.graph import Recomputed

    again = node.recomputed
    if not isinstance(again, Recomputed):
        raise GraphError(f"{where}: recomputed {again!r}: expected a Recomputed")
    _check_names(where, (*again.forward_ns, *again.backward_ns))
    _sum(where, again, _TIMES)
    for kind in sorted({"*", *node.forward_ns, *node.backward_ns, *again.forward_ns, *again.backward_ns}):
        plain, slower = graph.node_ns(node.name, kind), graph.recomputed_ns(node.name, kind)
        if slower < plain:
            raise GraphError(
                f"{where}: recomputed it takes {slower} ns on {kind!r}, less than {plain} ns as it is; "
                "give the faster figures as the node's own"
            )


def _sum(where: str, record: msgspec.Struct, fields: Iterable[str]) -> int:
    """The sum of what these fields hold; of times by kind the largest."""
    total = 0
    for field in fields:
        value = getattr(record, field)
        if isinstance(value, dict):
            total += max([_quantity(where, field, item) for item in value.values()], default=0)
        else:
            total += _quantity(where, field, value)
    return total


def _quantity(where: str, field: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise GraphError(f"{where}: cost {_short(value)} must be a non-negative integer: {field}")
    return value


def _check_totals(where: str, total_ns: int, total_bytes: int) -> None:
    if total_ns > MOST or total_bytes > MOST:
        unit = "ns" if total_ns > MOST else "bytes"
        raise GraphError(f"{where}: with it the graph has more than 2**60 {unit} in all; is the unit right?")


def _short(value: object) -> str:
    """A value for people, of an integer only the beginning when it is long."""
    if isinstance(value, int) and abs(value) > MOST:
        return f"{'-' if value < 0 else ''}of {value.bit_length()} bits"
    return repr(value)


def _check_ends(graph: CostGraph, tensor: Tensor, position: Mapping[str, int]) -> None:
    where = f"tensor {tensor.name!r}"
    if tensor.producer not in position:
        raise GraphError(f"{where}: its producer {tensor.producer!r} is not a node")
    for field, readers in (("readers", tensor.readers), ("saved_by", tensor.saved_by)):
        _check_names(f"{where}: {field}", readers)
        for reader in readers:
            if reader not in position:
                raise GraphError(f"{where}: its reader {reader!r} is not a node")
    last = position[tensor.producer]
    for reader in tensor.readers:
        if position[reader] <= last:
            cycle = find_cycle((t.producer, r) for t in graph.tensors.values() for r in t.readers)
            raise GraphError(
                f"{where}: node {reader!r} reads it but does not run after {tensor.producer!r} and the readers before "
                f"it; {f'the cycle {cycle} must be broken' if cycle else 'give nodes and readers in program order'}, "
                "without repeats"
            )
        last = position[reader]


def find_cycle(edges: Iterable[tuple[str, str]]) -> str:
    """The nodes of one cycle, in words; "" when there is none."""
    digraph: nx.DiGraph[str] = nx.DiGraph(list(edges))
    if nx.is_directed_acyclic_graph(digraph):
        return ""
    names = [repr(src) for src, _ in nx.find_cycle(digraph)]
    some = names if len(names) <= _MOST_NAMED else [*names[: _MOST_NAMED - 1], f"{len(names) - _MOST_NAMED + 1} more"]
    return " -> ".join([*some, names[0]])


def with_plain_integers(record: Record, expected: type[Record]) -> Record:
    """The record itself, or, if it has integers of another type, such as numpy's, a copy with ints.

    Raises:
        GraphError: it is not such a record.
    """
    if type(record) is not expected:
        raise GraphError(f"expected a {expected.__name__}, got {record!r}")
    changed: dict[str, Any] = {}
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if isinstance(value, msgspec.Struct):
            changed[field] = with_plain_integers(value, type(value))
        elif field in _COSTS and type(value) is not int:
            plain = plain_integers(value)
            if plain is not value:
                changed[field] = plain
    return msgspec.structs.replace(record, **changed) if changed else record


def plain_integers(value: Any) -> Any:
    """An int for an integer of another type; likewise for the values of a dict; anything else as it is."""
    if isinstance(value, dict):
        if all(type(item) is int for item in value.values()):
            return value
        return {key: plain_integers(item) for key, item in value.items()}
    return value if isinstance(value, int) or not isinstance(value, Integral) else int(value)


def refuse_repeated_keys(data: bytes | str) -> None:
    """Refuse a JSON document in which an object has a key twice: of the two values one would be lost.

    Raises:
        GraphError: names the key.
    """
    key = repeated_key(data)
    if key is not None:
        raise GraphError(f"not a cost graph: key {quoted(key)} is there twice")
