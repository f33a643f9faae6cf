"""What the commands print: results on stdout, all else on stderr."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_SPEAK_UP_AFTER_S = 1.0


def show(renderable: RenderableType, *, err: bool = False) -> None:
    """Print through rich; NO_COLOR turns every escape sequence off, bold too. Messages on stderr stay in one line."""
    console = _console(err)
    if err or console.is_terminal:
        console.print(renderable, soft_wrap=err)
        return
    with console.capture() as captured:
        console.print(renderable)
    for line in captured.get().splitlines():  # rich fills cells up to the margin, which a file has no use for
        click.echo(line.rstrip())


@contextlib.contextmanager
def progress(doing: str) -> Iterator[None]:
    """Say on stderr what takes more than a second: a spinner on a terminal, else one line."""
    console = _console(err=True)
    if console.is_terminal:
        with console.status(f"{doing} ..."):
            yield
        return
    timer = threading.Timer(_SPEAK_UP_AFTER_S, click.echo, (f"{doing} ...",), {"err": True})
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _console(err: bool) -> Console:
    from rich.console import Console

    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=err, highlight=False, markup=False, color_system=colours)
