"""A table without lines, that is told row by row where the terminal is too narrow for its columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_LEAST_WRAPPED = 12  # columns that a cell which may wrap should at least have


class Grid:
    """Rows under headers. A narrow terminal gets a line for each cell instead: nothing is cut.

    Args:
        headers: a header that begins with ">" is of a column of figures.
        wraps: which cells may wrap: those of the "last" column, or of each column of "text" but the first.
    """

    def __init__(self, *headers: str, wraps: Literal["last", "text"] = "last") -> None:
        self._headers = [header.removeprefix(">") for header in headers]
        self._figures = [header.startswith(">") for header in headers]
        last = len(headers) - 1
        self._wraps = [i == last if wraps == "last" else i > 0 and not self._figures[i] for i in range(len(headers))]
        self._rows: list[list[Text]] = []

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def add_row(self, *cells: str | Text) -> None:
        """Add a row of as many cells as there are headers."""
        self._rows.append([cell if isinstance(cell, Text) else Text(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, or its rows one below the other."""
        yield from [self._table()] if self._least_columns() <= options.max_width else self._stacked()

    def _least_columns(self) -> int:
        """Columns of a terminal that it takes to cut nothing."""
        total = len(self._headers) - 1  # one between two columns
        for i, header in enumerate(self._headers):
            widest = max([len(header), *(row[i].cell_len for row in self._rows)])
            total += min(widest, max(_LEAST_WRAPPED, len(header))) if self._wraps[i] else widest
        return total

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header, figures, wraps in zip(self._headers, self._figures, self._wraps, strict=True):
            justify: Literal["left", "right"] = "right" if figures else "left"
            table.add_column(header, justify=justify, overflow="fold", no_wrap=not wraps)
        for row in self._rows:
            table.add_row(*row)
        return table

    def _stacked(self) -> Iterator[RenderableType]:
        for name, *cells in self._rows:
            yield Text.assemble((name.plain, "bold"), overflow="fold")
            for header, cell in zip(self._headers[1:], cells, strict=True):
                if cell.plain:
                    yield Padding(Text.assemble((f"{header}: ", "dim"), cell, overflow="fold"), (0, 0, 0, 2))
