"""What ``autosplit run`` starts on each rank: the user's script, with its own error kept for the summary."""

from __future__ import annotations

import argparse
import faulthandler
import os
import runpy
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from torch.distributed import distributed_c10d
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from autosplit import faults
from autosplit.launch.summary import files_of


def main() -> None:
    """Run the script that sys.argv names as if python had been given it."""
    asked = _asked()
    handler = get_error_handler()
    handler.initialize()
    _keep_where(asked.folder)
    _limit_waits(asked.timeout)
    if asked.check_loss:
        faults.watch_loss()
    try:
        _run(asked.script, asked.arguments, is_module=asked.module)
    except SystemExit as leaving:
        if not isinstance(leaving.code, str):
            raise
        _keep_or_say(leaving)
        sys.exit(1)
    except Exception as error:
        _keep_or_say(error)
        sys.exit(1)


def _keep_or_say(error: BaseException) -> None:
    """Keep the error for the summary, which has it once; say it here where a restart leaves it out of that."""
    error.__traceback__ = _of_the_script(error.__traceback__)
    get_error_handler().record_exception(error)
    if int(os.environ["TORCHELASTIC_RESTART_COUNT"]) < int(os.environ["TORCHELASTIC_MAX_RESTARTS"]):
        sys.excepthook(type(error), error, error.__traceback__)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--check-loss", action="store_true")
    parser.add_argument("-m", dest="module", action="store_true")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser.parse_args()


def _run(script: str, arguments: list[str], *, is_module: bool) -> None:
    sys.argv[:] = [script, *arguments]
    if is_module:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
        return
    if not sys.flags.safe_path:
        sys.path[0] = str(Path(script).resolve().parent)  # python -m put the working directory there
    runpy.run_path(script, run_name="__main__")


def _keep_where(folder: Path) -> None:
    """Write passes to a file, and, when torchrun stops this rank for another's failure, the Python stack."""
    passes, stack = files_of(folder, int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"]))
    faults.record_passes(passes)
    kept = stack.open("w")  # open as long as the process: the handler must not open files
    faulthandler.register(signal.SIGTERM, file=kept, all_threads=False, chain=True)


def _limit_waits(timeout_s: float) -> None:
    """Make ``timeout_s`` the default of process groups; a script that passes ``timeout=`` has its own.

    torch has no setting for it: init_process_group and new_group read these two names.
    """
    if timeout_s > 0:
        for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
            setattr(distributed_c10d, name, timedelta(seconds=timeout_s))


def _of_the_script(trace: TracebackType | None) -> TracebackType | None:
    """Without the frames of this file and of runpy, as python itself shows it."""
    ours = (__file__, runpy.__file__, "<frozen runpy>")
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename in ours:
        trace = trace.tb_next
    return trace


if __name__ == "__main__":
    main()
