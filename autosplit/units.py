"""Bytes and nanoseconds to and from words. Quantities inside autosplit are integers."""

from __future__ import annotations

import re

from autosplit.errors import AutosplitError

_SCALE = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "EB": 10**18,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "PIB": 2**50,
    "EIB": 2**60,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*\Z")


def parse_bytes(text: str | int) -> int:
    """Bytes in ``text``: "24GiB", "24GB", "1.5 MiB" or a plain number of bytes.

    Raises:
        AutosplitError: "24Gb" (bits), an unknown unit, or a negative number.

    >>> parse_bytes("24GiB"), parse_bytes("24GB"), parse_bytes(512)
    (25769803776, 24000000000, 512)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise AutosplitError(f"memory size {text}: it must not be negative")
        return text
    match = _SIZE.match(str(text))
    if match is None:
        raise AutosplitError(f"memory size {text!r}: expected a number and a unit, as in '24GiB' or '24GB'")
    number, unit = match.groups()
    if unit.endswith("b"):
        raise AutosplitError(f"memory size {text!r}: '{unit}' means bits; write '{unit[:-1]}B' for bytes")
    scale = _SCALE.get(unit.upper() or "B")
    if scale is None:
        raise AutosplitError(f"memory size {text!r}: unknown unit '{unit}'; use B, KB, MB, GB, KiB, MiB or GiB")
    return int(float(number) * scale) if "." in number else int(number) * scale


def format_bytes(n: int) -> str:
    """``n`` bytes in the largest binary unit that leaves at least one digit before the point.

    >>> format_bytes(0), format_bytes(1536), format_bytes(25769803776)
    ('0 B', '1.5 KiB', '24.0 GiB')
    """
    if abs(n) >= 2**70:
        return "more than 1024 EiB" if n > 0 else "less than -1024 EiB"
    value = float(n)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} EiB"


def format_ns(n: int) -> str:
    """``n`` nanoseconds in the unit a person would say.

    >>> format_ns(950), format_ns(10_700_000), format_ns(7_900_000_000)
    ('950 ns', '10.7 ms', '7.9 s')
    """
    value = float(n)
    for unit in ("ns", "us", "ms"):
        if abs(value) < 1000:
            return f"{int(value)} ns" if unit == "ns" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} s"
