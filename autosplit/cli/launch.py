"""``autosplit run``: a script on several processes."""

from __future__ import annotations

import click

from autosplit.cli import output


@click.command(
    short_help="Run a script on several processes.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--devices",
    metavar="SPEC",
    help="A number of processes, or one for each of cuda:0,cuda:2.  [default: each accelerator; 1 without one]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Longest wait of a rank for another before the run ends; 0: as long as torch waits.  [default: 300]",
)
@click.option("--check-loss", is_flag=True, help="Stop at a loss that is not finite; costs a wait for the device.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, required=True, metavar="[TORCHRUN OPTIONS] SCRIPT [ARGS]...")
def run(*, devices: str | None, timeout_s: float | None, check_loss: bool, words: tuple[str, ...]) -> int:
    """Run SCRIPT on several processes with torchrun, one for each device.

    Every option of torchrun is taken (`torchrun --help`): --nnodes, --rdzv-endpoint, --max-restarts, -m, ... The exit
    code is that of the rank that failed first, 128 + the signal where one killed it.
    """
    with output.progress("loading torch"):
        from autosplit.launch import launch

    try:
        return launch(words, devices, timeout_s, check_loss=check_loss)
    except (ValueError, AssertionError) as error:  # how torchrun says that an option is wrong
        raise click.UsageError(str(error)) from error
