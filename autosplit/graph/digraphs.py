"""A networkx DiGraph as nodes and tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import networkx as nx

from autosplit.errors import GraphError
from autosplit.graph.checks import find_cycle, plain_integers

Fields = dict[str, Any]
Record = TypeVar("Record", bound=msgspec.Struct)


class _Edge(msgspec.Struct, forbid_unknown_fields=True):
    size_bytes: int
    tensor: str | None = None
    requires_grad: bool = False
    is_held: bool = True

    @property
    def of_tensor(self) -> Fields:
        """The fields that all edges of a tensor must agree on."""
        return {name: getattr(self, name) for name in ("size_bytes", "requires_grad", "is_held")}


def read(digraph: nx.DiGraph[Any]) -> tuple[dict[str, Fields], dict[str, Fields]]:
    """Nodes in program order and tensors: the fields of each, by its name. See ``CostGraph.from_networkx``."""
    if not isinstance(digraph, nx.Graph) or not digraph.is_directed():
        raise GraphError(f"expected a networkx.DiGraph or MultiDiGraph, got {type(digraph).__name__}")
    order = _program_order(digraph)
    names = {key: str(key) for key in order}
    if len(set(names.values())) < len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise GraphError(f"two nodes have the name {twice!r}: a key that is no string is taken as str() of it")
    position = {key: i for i, key in enumerate(order)}
    tensors: dict[str, Fields] = {}
    for key in order:
        ends = sorted(digraph.out_edges(key, data=True), key=lambda edge: position[edge[1]])
        for name, fields in _outputs(names[key], [(names[dst], data) for _, dst, data in ends]).items():
            if name in tensors:
                first = tensors[name]["producer"]
                raise GraphError(
                    f"nodes {first!r} and {names[key]!r} both make tensor {name!r}: tensor names are unique"
                )
            tensors[name] = fields
    return {names[key]: dict(digraph.nodes[key]) for key in order}, tensors


def record(where: str, kind: type[Record], fields: Mapping[str, Any]) -> Record:
    """A record with these fields; integers of numpy are taken as plain ones.

    Raises:
        GraphError: a field is unknown, missing or of another type.
    """
    try:
        return msgspec.convert({key: plain_integers(value) for key, value in fields.items()}, kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise GraphError(f"{where}: {error}; the attributes are {known}") from error


def _program_order(digraph: nx.DiGraph[Any]) -> list[Any]:
    """The topological order nearest to the order of insertion."""
    position = {key: i for i, key in enumerate(digraph)}
    try:
        return list(nx.lexicographical_topological_sort(digraph, key=position.__getitem__))
    except nx.NetworkXUnfeasible as error:
        raise GraphError(f"nodes {find_cycle(digraph.edges())} are a cycle: break it") from error


def _outputs(producer: str, ends: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Fields]:
    """The tensors that a node makes, by name, from its edges in the order of their readers."""
    found: dict[str, tuple[Fields, list[str]]] = {}
    for reader, edge in _edges(producer, ends):
        name = producer if edge.tensor is None else edge.tensor
        fields, readers = found.setdefault(name, (edge.of_tensor, []))
        for field, value in edge.of_tensor.items():
            if fields[field] != value:
                raise GraphError(
                    f"edge {producer!r} -> {reader!r}: tensor {name!r} has {field} {value} here and {fields[field]} on "
                    f"the edge to {readers[0]!r}: let them agree, or give the edges tensors of their own"
                )
        if reader not in readers[-1:]:
            readers.append(reader)
    return {
        name: {"producer": producer, "readers": tuple(readers), **fields} for name, (fields, readers) in found.items()
    }


def _edges(producer: str, ends: list[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, _Edge]]:
    for reader, data in ends:
        yield reader, record(f"edge {producer!r} -> {reader!r}", _Edge, data)
