"""Ways out of a misfit, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autosplit.errors import CapacityError, WayOut
from autosplit.report.words import clean
from autosplit.units import format_bytes

_MOST_DEVICES = 4  # named one by one


@dataclass(frozen=True)
class WaysTable:
    """The ways out of a misfit as something that a rich console prints; they are looked for when it is printed."""

    error: CapacityError

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A row for each way, or that there is none."""
        looked = self.error.find_ways_out is not None
        ways = self.error.ways_out()
        if ways:
            yield "Ways out, cheapest first (each planned again; time of the same work, against memory without end):"
            grid = Table(box=None, pad_edge=False, show_header=False)
            grid.add_column(overflow="fold")
            grid.add_column(justify="right", no_wrap=True)
            grid.add_column(overflow="fold")
            for way in ways:
                grid.add_row(
                    Text(clean(way.write)), f"{way.relative_time:.2f}x", Text(f"{_memory(way)}: {clean(way.how)}")
                )
            yield grid
        elif not looked:
            yield "Ways out were not looked for: they are planned for a call as a whole, with strategy auto or split."
        elif not self.error.not_tried:
            yield "No way out was found: what was looked at does not fit either."
        if self.error.not_tried:
            yield f"Not tried, for lack of time: {', '.join(self.error.not_tried)}."


def _memory(way: WayOut) -> str:
    """What the allocator takes on each device; of many the most."""
    used = {name: size for name, size in way.reserved_bytes.items() if size}
    if len(used) > _MOST_DEVICES:
        return f"at most {format_bytes(max(used.values()))} on each of {len(used)}"
    return ", ".join(f"{clean(name)} {format_bytes(size)}" for name, size in used.items())
