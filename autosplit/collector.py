"""Python's garbage collector, while millions of objects are made of which few are garbage."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (20_000, 20, 20)


class _Collector:
    """How many asked, and the thresholds before the first of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = 0
        self.before = gc.get_threshold()

    def enter(self) -> None:
        with self.lock:
            if not self.asked:
                self.before = gc.get_threshold()
                if self.before[0]:  # 0 is off, and stays so
                    gc.set_threshold(*map(max, self.before, _THRESHOLDS))
            self.asked += 1

    def leave(self) -> None:
        with self.lock:
            self.asked -= 1
            if not self.asked:
                gc.set_threshold(*self.before)


_collector = _Collector()


@contextmanager
def fewer_collections() -> Iterator[None]:
    """The collector looks less often inside, in all threads, until the last that asked for it has left."""
    _collector.enter()
    try:
        yield
    finally:
        _collector.leave()
