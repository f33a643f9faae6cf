"""Files whose content comes from anywhere: read with a limit, written whole or not at all, told without tricks."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

_MOST_SHOWN = 120  # characters of a name in an error message


def read(path: str | Path, most_bytes: int) -> bytes:
    """The content of a file; one byte more than ``most_bytes`` tells that there is more.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(most_bytes + 1)


def write(path: str | Path, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all: through a new file beside it, synced, then renamed.

    The new file's name cannot be foreseen, and a file or link of that name is refused, never followed. A link at
    ``path`` itself is replaced, not followed.

    Raises:
        OSError: it cannot be written; what was at ``path`` is still there.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(21, "is a directory", str(target))
    temporary = target.parent / f".autosplit-{secrets.token_hex(12)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:  # less the user's umask
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def repeated_key(document: bytes | str) -> str | None:
    """A key that an object of a JSON document has twice; None where there is none. O(bytes).

    Which of the two values counts is the parser's choice: two readers may see two documents. msgspec takes the last,
    and does not tell. Numbers are not converted here. Call it after a strict reader took the document: that bounds the
    depth.

    >>> repeated_key(b'{"a": {"b": 1, "b": 2}}')
    'b'
    """
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            keys = [key for key, _ in pairs]
            found.append(max(keys, key=Counter(keys).__getitem__))

    json.loads(document, object_pairs_hook=look, parse_int=str, parse_float=str)
    return found[0] if found else None


_BEGINS = {
    b"<!doctype html": "an HTML page, such as --html writes: open it in a browser",
    b"<html": "an HTML page: open it in a browser",
    b'{"traceEvents"': "a trace, as --trace writes it: open it in Perfetto",
    b'{"label"': "a graph, as --model-explorer writes it: open it in Model Explorer",
    b'{"error"': "what --json prints of an error",
    b"[[device": "a cluster file: give it to --devices",
    b"pk\x03\x04": "a zip archive, such as a .pt2 file or what torch.save writes",
    b"\x89png": "a picture",
    b"%pdf": "a PDF",
    b"\x1f\x8b": "compressed: unpack it first",
}
_LOOKED_AT = 4096  # bytes of a file that say what it is


def kind_of(content: bytes) -> str:
    """What a file that was taken for another kind is, in words, by how it begins; "" where that does not tell.

    >>> kind_of(b"<!DOCTYPE html><title>"), kind_of(b"{}"), kind_of(b"")
    ('an HTML page, such as --html writes: open it in a browser', '', 'empty')
    """
    head = content[:_LOOKED_AT].lstrip().lower()
    if not head:
        return "empty"
    known = next((words for begin, words in _BEGINS.items() if head.startswith(begin.lower())), "")
    return known or ("no text" if b"\0" in head else "")


def clean(text: str) -> str:
    """Without control characters and direction marks, which could rewrite what a terminal shows.

    >>> clean("a" + chr(27) + "[31m" + chr(0x202E) + "b") == "a" + chr(0xFFFD) + "[31m" + chr(0xFFFD) + "b"
    True
    """
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def quoted(name: object) -> str:
    """A name from a file for an error message: in quotes, escaped, cut where it is long.

    >>> quoted("fc1"), len(quoted("a" * 9999))
    ("'fc1'", 125)
    """
    text = str(name)
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")
