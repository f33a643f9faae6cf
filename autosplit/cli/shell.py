"""``autosplit completion`` and ``autosplit schema``: what shells and programs need to know of the commands."""

from __future__ import annotations

import click

_SCHEMAS = ("plan", "cluster", "error", "diff", "check", "devices", "catalogue", "demo")  # as report.DOCUMENTS


@click.command()
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
    click.echo(found.source_template % found.source_vars())


@click.command()
@click.argument("name", type=click.Choice(_SCHEMAS))
def schema(*, name: str) -> None:
    """Print the JSON schema of what --json prints; "cluster" is a cluster.toml, "error" any command that fails."""
    from autosplit.report import schema as make

    click.echo(make(name))
