"""cluster.toml: a Cluster as a file. Reading is strict; what is written reads back as an equal Cluster.

The standard library reads TOML but does not write it; a Cluster needs four kinds of values, so writing is here.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from autosplit.catalogue import Rates
from autosplit.device.cluster import Cluster, Device, Link
from autosplit.errors import DeviceError
from autosplit.files import read

MAX_FILE_BYTES = 16 * 2**20

_TABLES: dict[type[msgspec.Struct], dict[str, type[msgspec.Struct]]] = {
    Cluster: {"devices": Device, "links": Link},
    Device: {"flops_per_s": Rates},
    Link: {},
    Rates: {},
}


def read_cluster(path: str | Path) -> Cluster:
    """The cluster in the TOML file ``path``.

    Raises:
        DeviceError: the file cannot be read, is too large, is not TOML, has an unknown key, or contradicts itself.
    """
    try:
        data = read(path, MAX_FILE_BYTES)
        if len(data) > MAX_FILE_BYTES:
            raise DeviceError(f"more than {MAX_FILE_BYTES} bytes")
        return from_data(tomllib.loads(data.decode()))
    except OSError as error:
        raise DeviceError(f"cluster file {str(path)!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, DeviceError) as error:
        raise DeviceError(f"cluster file {str(path)!r}: {error}") from error


def from_data(data: Mapping[str, Any]) -> Cluster:
    """The cluster that ``data`` says, in the form of a cluster.toml.

    Raises:
        DeviceError: an unknown key (with the one that was meant), a value of another type, or a contradiction.
    """
    for message in _unknown_keys(data, Cluster, ""):
        raise DeviceError(message)
    try:
        return msgspec.convert(dict(data), Cluster)
    except msgspec.ValidationError as error:
        raise DeviceError(str(error)) from error


def _unknown_keys(data: Any, table: type[msgspec.Struct], where: str) -> Iterator[str]:
    """What is wrong with the keys of a table and of those in it; values of another type are msgspec's to refuse."""
    if not isinstance(data, Mapping):
        return
    fields = table.__struct_fields__
    for key, value in data.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            meant = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(fields)}"
            yield f"unknown key {where + str(key)!r}: {meant}"
        elif key in _TABLES[table]:
            items = list(enumerate(value)) if isinstance(value, list | tuple) else [(None, value)]
            for i, item in items:
                inner = f"{where}{key}." if i is None else f"{where}{key}[{i}]."
                yield from _unknown_keys(item, _TABLES[table][key], inner)


def to_toml(cluster: Cluster) -> str:
    """``cluster`` as the text of a cluster.toml; ``read_cluster`` reads it back as an equal Cluster.

    >>> print(to_toml(Cluster(devices=(Device(name="a", kind="k", memory_bytes=2048),))).splitlines()[5])
    name = "a"
    """
    content: dict[str, Any] = msgspec.to_builtins(cluster)
    tables = {name: content.pop(name) for name in ("devices", "links")}
    lines = [_line(key, value) for key, value in content.items()]
    for name, items in tables.items():
        for item in items:
            lines += ["", f"[[{name}]]", *(_line(key, value) for key, value in item.items())]
    return "".join(f"{line}\n" for line in lines)


def _line(key: str, value: Any) -> str:
    return f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    """TOML for what a Cluster is made of: integers, strings, lists of strings, and one table of integers."""
    if isinstance(value, int):
        return f"{value:_}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(_line(key, item) for key, item in value.items()) + " }"
    return "[" + ", ".join(map(_value, value)) + "]"
