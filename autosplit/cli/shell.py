"""``autosplit completion`` and ``autosplit schema``: what shells and programs need to know of the commands."""

from __future__ import annotations

import re

import click
from click.shell_completion import CompletionItem

_COUNTED = re.compile(r"(?:.*,)?(?:\d+x)?", re.IGNORECASE)
_WORDS = ("auto", "cpu", "cuda", "cluster.toml")


def complete_devices(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names that a SPEC of devices may go on with, after a number ("4x") and after a comma too."""
    from autosplit.catalogue import ENTRIES

    counted = _COUNTED.match(incomplete)
    before = counted.group() if counted else ""
    names = [before + entry.name for entry in ENTRIES]
    return [CompletionItem(name) for name in (*_WORDS, *names) if name.lower().startswith(incomplete.lower())]


_SCHEMAS = ("plan", "cluster", "error", "diff", "check", "devices", "catalogue", "demo")  # as report.DOCUMENTS


@click.command(short_help="Print what makes a shell complete commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print what makes SHELL complete the words of autosplit.

    In ~/.bashrc:  eval "$(autosplit completion bash)"

    In ~/.zshrc:  eval "$(autosplit completion zsh)"

    For fish:  autosplit completion fish > ~/.config/fish/completions/autosplit.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"this version of click completes nothing in {shell}")
    found = made(click.get_current_context().find_root().command, {}, "autosplit", "_AUTOSPLIT_COMPLETE")
    made_of = found.source_template.replace("complete -o nosort -F", "complete -o nosort -o default -F")
    click.echo(made_of % found.source_vars())  # where bash is told nothing, it completes names of files


@click.command(short_help="Print the JSON schema of a --json document.")
@click.argument("name", type=click.Choice(_SCHEMAS))
def schema(*, name: str) -> None:
    """Print the JSON schema of what --json prints; "cluster" is a cluster.toml, "error" any command that fails."""
    from autosplit.report import schema as make

    click.echo(make(name))
