"""What the command line prints under --json, as records: their JSON schemas are made from them."""

from __future__ import annotations

from typing import Any

import msgspec

from autosplit.device import Cluster
from autosplit.errors import WayOut
from autosplit.placement import StoredPlan
from autosplit.report.compare import DiffDocument


class ErrorContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is wrong. The fields from ``needs_bytes`` on are of a model that does not fit: bytes by device name."""

    kind: str
    message: str
    exit_code: int
    needs_bytes: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    has_bytes: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    short_bytes: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    proved: bool | msgspec.UnsetType = msgspec.UNSET
    ways_out: tuple[WayOut, ...] | msgspec.UnsetType = msgspec.UNSET
    not_tried: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What any command prints in place of its result."""

    error: ErrorContent


class CheckDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``autosplit check`` prints of a plan that holds: what was checked, in words."""

    strategy: str
    nodes: int
    needs_bytes: dict[str, int]
    has_bytes: dict[str, int]
    is_edited: bool
    checked: tuple[str, ...]
    not_checked: tuple[str, ...]


class DevicesDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``autosplit devices`` prints: the cluster as in a plan; by device name bytes in all, and whose figures."""

    cluster: Cluster
    total_bytes: dict[str, int]
    figures: dict[str, str]


class CatalogueDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``autosplit devices --catalogue`` prints: every device with its sources, and bytes kept in reserve."""

    catalogue: tuple[dict[str, Any], ...]
    reserve_bytes: int


class DemoDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``autosplit demo`` prints."""

    identical: bool


DOCUMENTS: dict[str, type[msgspec.Struct]] = {
    "plan": StoredPlan,
    "cluster": Cluster,
    "error": ErrorDocument,
    "diff": DiffDocument,
    "check": CheckDocument,
    "devices": DevicesDocument,
    "catalogue": CatalogueDocument,
    "demo": DemoDocument,
}
"""By name, what is printed; "cluster" is the content of a cluster.toml."""


def schema(name: str) -> str:
    """The JSON schema (2020-12) of a document of ``DOCUMENTS``, as one JSON document."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(DOCUMENTS[name])}
    return msgspec.json.format(msgspec.json.encode(made), indent=1).decode()


def encoded(record: msgspec.Struct) -> str:
    """A record as one line of JSON."""
    return msgspec.json.encode(record).decode()
