"""Sphinx's settings, and the directive that prints the help of every command.

sphinx-build -W -b html docs build/docs
"""

from __future__ import annotations

from collections.abc import Iterator

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from autosplit import __version__
from autosplit.cli import autosplit

project = "autosplit"
copyright = "the authors of autosplit, Apache-2.0"  # the name is Sphinx's
release = version = __version__
html_theme = "furo"
html_title = f"autosplit {release}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3  # links to headings as on GitHub
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature's types are long, and Args says them
python_maximum_signature_line_length = 88
exclude_patterns = ["llama-70b"]
WIDTH = 88  # what a block of the theme shows whole


class CommandHelp(SphinxDirective):
    """``--help`` of every command, each under a heading of its own."""

    def run(self) -> list[nodes.Node]:
        """A heading and a block of text for each command."""
        text = "\n\n".join(f"## {name}\n\n```text\n{help_text.strip()}\n```" for name, help_text in helps(autosplit))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def helps(
    command: click.Command, path: str = "autosplit", parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """The words that call a command, and its help; a group before its commands."""
    name = path.rpartition(" ")[2]
    context = click.Context(
        command, parent, name, terminal_width=WIDTH, max_content_width=WIDTH, **command.context_settings
    )
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from helps(command.commands[name], f"{path} {name}", context)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
