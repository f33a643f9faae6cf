"""The options that write a plan as pictures: an HTML page, a trace, a graph for Model Explorer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from autosplit.placement import Plan

_Command = TypeVar("_Command", bound=Callable[..., Any])


def pictures(command: _Command) -> _Command:
    """Add ``--html``, ``--trace`` and ``--model-explorer``, each with a file to write."""
    kind = click.Path(dir_okay=False, path_type=Path)
    for option, what in (
        ("--model-explorer", "Write the modules and copies for Model Explorer."),
        ("--trace", "Write the schedule for chrome://tracing or Perfetto."),
        ("--html", "Write a report with pictures: one file that needs no network."),
    ):
        command = click.option(option, type=kind, metavar="FILE", help=what)(command)
    return command


def draw(
    plan: Plan, *, html: Path | None = None, trace: Path | None = None, model_explorer: Path | None = None
) -> None:
    """Write the pictures that were asked for, and say so on stderr.

    Raises:
        click.BadParameter: a file cannot be written.
    """
    if html is not None:
        from autosplit.report.html import page

        _write("--html", html, page(plan))
    if trace is not None:
        from autosplit.report.trace import trace as trace_of

        _write("--trace", trace, trace_of(plan))
    if model_explorer is not None:
        from autosplit.report.explorer import explorer

        _write("--model-explorer", model_explorer, explorer(plan))


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(f"cannot write {str(path)!r}: {error.strerror}", param_hint=option) from error
    click.echo(f"{option.removeprefix('--')} saved: {path}", err=True)
