"""Ways out of a misfit, for people and for programs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autosplit.errors import CapacityError, WayOut
from autosplit.report.words import clean
from autosplit.units import format_bytes

_OPTIONS = ("batch", "optimizer")  # kinds that an option of `autosplit plan` asks for
_ASSIGNED = re.compile(r"(\w+)='?(\w+)'?")
_MOST_DEVICES = 4  # named one by one


@dataclass(frozen=True)
class WaysTable:
    """The ways out of a misfit as something that a rich console prints; they are looked for when it is printed.

    ``is_command``: written as options of the command line, where there are such, not as Python.
    """

    error: CapacityError
    is_command: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A row for each way, or that there is none."""
        ways = self.error.ways_out()
        if ways:
            yield "Ways out, cheapest first (each planned again; time of the same work, against memory without end):"
            grid = Table(box=None, pad_edge=False, show_header=False)
            grid.add_column(overflow="fold")
            grid.add_column(justify="right", no_wrap=True)
            grid.add_column(overflow="fold")
            for way in ways:
                tells = Text(f"{_memory(way)}: {clean(way.how)}")
                grid.add_row(Text(clean(self._write(way))), f"{way.relative_time:.2f}x", tells)
            yield grid
        elif not self.error.was_looked_into:
            yield "Ways out were not looked for: they are planned for a call as a whole, with strategy auto or split."
        elif not self.error.not_tried:
            yield "No way out was found: what was looked at does not fit either."
        if self.error.not_tried:
            yield f"Not tried, for lack of time: {', '.join(self.error.not_tried)}."

    def _write(self, way: WayOut) -> str:
        if not self.is_command or way.kind not in _OPTIONS:
            return way.write
        return " ".join(f"--{name} {value}" for name, value in _ASSIGNED.findall(way.write))


def _memory(way: WayOut) -> str:
    """What the allocator takes on each device; of many the most."""
    used = {name: size for name, size in way.reserved_bytes.items() if size}
    if len(used) > _MOST_DEVICES:
        return f"at most {format_bytes(max(used.values()))} on each of {len(used)}"
    return ", ".join(f"{clean(name)} {format_bytes(size)}" for name, size in used.items())
