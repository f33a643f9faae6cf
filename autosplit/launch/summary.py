"""What to say when ranks failed: which one first, with what error, and where the others were."""

from __future__ import annotations

import json
import re
import signal
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from autosplit import faults

_SHOWN = 8
_FRAME = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)')


@dataclass(frozen=True)
class Ended:
    """A rank that did not end well.

    Attributes:
        rank: its number in the world.
        exit_code: of the process; minus the signal's number where one ended it.
        error: the traceback of its own error with the notes, or "" where it had none.
        doing: the pass of a pipeline that it was in or had last done, in words, or "".
        stack: the place in the user's code where it was when torchrun stopped it, or "".
        order: what it is sorted by: the first to fail is least.
    """

    rank: int
    exit_code: int
    error: str
    doing: str
    stack: str
    order: tuple[int, int]


def files_of(folder: Path, attempt: int, rank: int) -> tuple[Path, Path]:
    """The files of one rank: its passes, and its stack when it was stopped."""
    return folder / f"{attempt}.{rank}.pass", folder / f"{attempt}.{rank}.stack"


def ended(failures: Mapping[int, ProcessFailure], folder: Path) -> list[Ended]:
    """The ranks that did not end well in the last attempt, the first to fail at the head.

    torch orders them by whole seconds, and so may name a rank that only lost its peer. Here a rank that a signal ended
    comes first, as its peers fail because of it; then those with an error of their own by when they wrote it; then
    those that torchrun stopped.
    """
    attempt = max((int(path.name.partition(".")[0]) for path in folder.glob("*.pass")), default=0)
    return sorted((_ended(rank, failures[rank], folder, attempt) for rank in failures), key=lambda one: one.order)


def summary(script: str, found: list[Ended]) -> str:
    """A few lines for people; ends with a newline."""
    first, *others = found
    lines = [f"error[run]: {script}: rank {first.rank} {_outcome(first)}"]
    lines += ["  It waited for another rank: see below where that was."] * ("imed out waiting" in first.error)
    lines += [f"  {first.doing}"] * bool(first.doing)
    lines += [f"  {line}" for line in first.error.splitlines()]
    for other in others[:_SHOWN]:
        lines.append(f"rank {other.rank} {_outcome(other)}{_last_words(other)}")
    if len(others) > _SHOWN:
        lines.append(f"and {len(others) - _SHOWN} more ranks")
    return "\n".join(lines) + "\n"


def _ended(rank: int, failure: ProcessFailure, folder: Path, attempt: int) -> Ended:
    passes, stack = files_of(folder, attempt, rank)
    where = faults.last_pass(passes)
    stopped_at = stack.read_text() if stack.is_file() else ""
    error, written_ns = _own_error(Path(failure.error_file))
    is_stopped = bool(stopped_at) or failure.exitcode == -signal.SIGTERM
    if failure.exitcode < 0 and not is_stopped and failure.exitcode != -signal.SIGABRT:
        order = (0, failure.timestamp)
    elif error or not is_stopped:  # also of SIGABRT: so NCCL's watchdog ends a rank that waited for another
        order = (1, written_ns or failure.timestamp * 10**9)
    else:
        order = (2, rank)
    return Ended(
        rank,
        1 if error and failure.exitcode == -signal.SIGTERM else failure.exitcode,  # it was leaving when it was stopped
        error,
        _doing(where),
        _users_frame(stopped_at),
        order,
    )


def _doing(where: faults.Where | None) -> str:
    if where is None:
        return ""
    return f"{'in' if where.inside else 'after'} {where.place}"


def _own_error(file: Path) -> tuple[str, int]:
    """The traceback that a rank wrote, and when (ns)."""
    if not file.is_file():
        return "", 0
    message = json.loads(file.read_text())["message"]
    text = message if isinstance(message, str) else message["extraInfo"]["py_callstack"]
    return text.rstrip(), file.stat().st_mtime_ns


def _users_frame(stack: str) -> str:
    """The innermost frame outside of what is installed, and the innermost of all where that is another."""
    frames = [found.groupdict() for found in _FRAME.finditer(stack)]
    paths = sysconfig.get_paths()
    installed = (paths["stdlib"], paths["purelib"], paths["platlib"], str(Path(__file__).parent), "<")
    own = [frame for frame in frames if not frame["file"].startswith(installed)]
    shown = [*own[:1], *frames[:1]] if own[:1] != frames[:1] else own[:1]
    return ", in ".join(f"{frame['file']}:{frame['line']} {frame['function']}" for frame in shown)


def _outcome(one: Ended) -> str:
    if one.order[0] == 2:
        return "was stopped by torchrun"
    if one.error:
        return "raised an error"
    if one.exit_code >= 0:
        return f"ended with exit code {one.exit_code}"
    name = next((known.name for known in signal.Signals if known == -one.exit_code), f"signal {-one.exit_code}")
    return f"was killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


def _last_words(one: Ended) -> str:
    """What is known of a rank that failed after the first, in one line."""
    said = [one.doing] * bool(one.doing) + [f"at {one.stack}"] * bool(one.stack)
    raised = one.error.rpartition("Traceback (most recent call last):\n")[2]  # the last of a chain
    said += [line for line in raised.splitlines() if line and not line.startswith(" ")][:1]
    return ": " + "; ".join(said) if said else ""
