"""What the vendors say of accelerators: memory, dense matrix rates by number format, bandwidths; with the sources.

A figure that no source states is None: unknown, never guessed. Rates are peaks; a real operator reaches less.
No torch here.
"""

from __future__ import annotations

import difflib
import re

from autosplit.catalogue.consumer import CONSUMER, CPU
from autosplit.catalogue.datacenter import DATACENTER
from autosplit.catalogue.records import ASSUMED_LAUNCH_NS, RESERVE_BYTES, Entry, Fabric, Rates

__all__ = ["ASSUMED_LAUNCH_NS", "CPU", "ENTRIES", "RESERVE_BYTES", "Entry", "Fabric", "Rates", "find", "near"]

ENTRIES: tuple[Entry, ...] = (*DATACENTER, *CONSUMER)
"""Every device that a spec can name."""

_NOISE = re.compile(r"nvidia|geforce|tesla|amd|instinct|[\s_-]+", re.IGNORECASE)


def find(name: str) -> Entry | None:
    """The entry that ``name`` means: "A100-80GB", "rtx 4090", "NVIDIA A100-SXM4-80GB"; None when there is none.

    Case, spaces, dashes and the vendor's words do not matter; everything else must match, so a slice of a device
    ("... MIG 1g.5gb") is not taken for the whole.

    >>> find("NVIDIA GeForce RTX 4090").name
    'RTX4090'
    """
    return _BY_KEY.get(_key(name))


def near(name: str, most: int = 4) -> list[str]:
    """Names in the catalogue that resemble ``name``, the nearest first.

    >>> near("A100")
    ['A100-40GB', 'A100-80GB', 'A100-40GB-PCIe', 'A100-80GB-PCIe']
    """
    key = _key(name)
    begin = sorted((entry.name for entry in ENTRIES if key and _key(entry.name).startswith(key)), key=len)
    alike = [_BY_KEY[match].name for match in difflib.get_close_matches(key, _BY_KEY, n=2 * most)]
    return list(dict.fromkeys([*begin, *alike]))[:most]


def _key(name: str) -> str:
    return _NOISE.sub("", name).lower()


_BY_KEY = {_key(name): entry for entry in ENTRIES for name in (entry.name, *entry.also)}
