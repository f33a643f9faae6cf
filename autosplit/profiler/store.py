"""What was measured before: one SQLite file for all devices, torch versions and processes. It is data, never code."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import torch

from autosplit.profiler.timing import Timing

_FILE = "timings-1.sqlite3"  # another layout of the table is another file
_WAIT_S = 5
_BROKEN = (sqlite3.Error, ValueError, OverflowError)  # a damaged file may have text that is none
_LAYOUT = (
    "CREATE TABLE IF NOT EXISTS timing (device TEXT, torch TEXT, operation TEXT, forward_ns INTEGER, "
    "backward_ns INTEGER, noise REAL, workspace_bytes INTEGER, PRIMARY KEY (device, torch, operation))"
)


class Store:
    """Timings by device name, torch version and operation.

    A folder that cannot be written, a file that is damaged or locked for long: the timings in it are not there, and
    what is measured now is not kept. It is never an error.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path = (folder or cache_folder()) / _FILE

    def read(self, device: str) -> dict[str, Timing]:
        """Everything known of a device under this torch, by operation."""
        query = (
            "SELECT operation, forward_ns, backward_ns, noise, workspace_bytes FROM timing WHERE device=? AND torch=?"
        )
        found: dict[str, Timing] = {}
        with self._open() as database:
            if database is not None:
                with suppress(*_BROKEN):
                    for row in database.execute(query, (device, torch.__version__)):
                        if _is_sound(row):
                            found[row[0]] = Timing(*row[1:])
        return found

    def devices(self) -> list[str]:
        """Names of the devices that something is known of under this torch."""
        with self._open() as database:
            if database is not None:
                with suppress(*_BROKEN):
                    query = "SELECT DISTINCT device FROM timing WHERE torch=? ORDER BY device"
                    return [str(row[0]) for row in database.execute(query, (torch.__version__,))]
        return []

    def write(self, device: str, timings: Mapping[str, Timing]) -> None:
        """Keep what was measured."""
        rows = [
            (device, torch.__version__, key, t.forward_ns, t.backward_ns, t.noise, t.workspace_bytes)
            for key, t in timings.items()
        ]
        with self._open() as database:
            if database is not None:
                with suppress(*_BROKEN), database:
                    database.executemany("INSERT OR REPLACE INTO timing VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """The file with its table; newly made where it is damaged; None where that cannot be, or it is locked."""
        database = None
        try:
            database = self._connect()
        except _BROKEN as error:
            if _is_damage(error):
                with suppress(OSError, *_BROKEN):
                    self._path.unlink(missing_ok=True)
                    database = self._connect()
        if database is None:
            yield None
            return
        with closing(database):
            yield database

    def _connect(self) -> sqlite3.Connection | None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        database = sqlite3.connect(self._path, timeout=_WAIT_S)
        try:
            database.execute(_LAYOUT)
            database.execute("SELECT operation, forward_ns, backward_ns, noise, workspace_bytes FROM timing LIMIT 1")
        except BaseException:
            database.close()
            raise
        return database


def cache_folder() -> Path:
    """Where measurements are kept: $AUTOSPLIT_CACHE, else autosplit in the user's folder for caches."""
    own = os.environ.get("AUTOSPLIT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "autosplit"


def _is_damage(error: BaseException) -> bool:
    """Not so a lock that another process holds, a full disk or a folder that is not ours to write in."""
    return not isinstance(error, sqlite3.OperationalError) or "no such column" in str(error)


def _is_sound(row: tuple[object, ...]) -> bool:
    key, forward_ns, backward_ns, noise, workspace = row
    times = all(isinstance(ns, int) and ns >= 0 for ns in (forward_ns, backward_ns))
    known = workspace is None or (isinstance(workspace, int) and workspace >= 0)
    return isinstance(key, str) and times and isinstance(noise, float) and known
