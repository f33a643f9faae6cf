"""Where a rank is in its work, so that a rank that fails, dies or hangs can be named with its stage and micro-batch.

A pass that raises adds a note to the exception. A rank that is killed or hangs cannot say anything any more: under
``autosplit run`` each pass is also written to a small file that outlives the process.
"""

from __future__ import annotations

import math
import mmap
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, SupportsFloat

from autosplit.errors import LossError

PassKind = Literal["forward", "backward", "optimizer", "send", "receive"]

_RECORD = struct.Struct("<?iiiq16s80s")  # is inside, rank, stage, micro-batch, since (ns), kind, what


class _Watched:
    """What this process records and checks; nothing until it is asked to."""

    record: mmap.mmap | None = None
    loss = False


class Where(NamedTuple):
    """The last pass of a rank.

    Attributes:
        inside: whether the pass had begun and not ended.
        place: rank, stage, micro-batch and kind in words.
        since_ns: when it began or ended (``time.time_ns``).
    """

    inside: bool
    place: str
    since_ns: int


class _Passing:
    """See ``passing``."""

    __slots__ = ("kind", "microbatch", "rank", "stage", "what")

    def __init__(self, rank: int, stage: int, microbatch: int, kind: PassKind, what: str) -> None:
        self.rank, self.stage, self.microbatch, self.kind, self.what = rank, stage, microbatch, kind, what

    def __enter__(self) -> None:
        if _Watched.record is not None:
            self._write(_Watched.record, inside=True)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is not None:
            error.add_note(_place(self.rank, self.stage, self.microbatch, self.kind, self.what))
        elif _Watched.record is not None:
            self._write(_Watched.record, inside=False)

    def _write(self, record: mmap.mmap, *, inside: bool) -> None:
        kind, what = self.kind.encode(), self.what.encode()  # struct cuts what is too long
        _RECORD.pack_into(record, 0, inside, self.rank, self.stage, self.microbatch, time.time_ns(), kind, what)


def passing(rank: int, stage: int, microbatch: int, kind: PassKind, what: str = "") -> _Passing:
    """Name the stage and micro-batch in whatever leaves the ``with`` block, which is one pass of one micro-batch.

    An exception that leaves it carries a note with the place, and is otherwise the same. It costs about a microsecond.
    An accelerator runs behind the host: what it reports late is noted at the pass that heard of it.

    Args:
        rank: this process in its group; -1 where there is none.
        stage: number of the stage, from 0.
        microbatch: number of the micro-batch, from 0.
        kind: what is done.
        what: what the stage is, in words ("layers 4-7 on cuda:1").
    """
    return _Passing(rank, stage, microbatch, kind, what)


def record_passes(path: Path) -> None:
    """From now on write each pass of this process to ``path``, a file of some 100 bytes that outlives it."""
    path.write_bytes(bytes(_RECORD.size))
    with path.open("r+b") as file:
        _Watched.record = mmap.mmap(file.fileno(), _RECORD.size)


def last_pass(path: Path) -> Where | None:
    """The pass that ``record_passes`` wrote last to ``path``; None where there was none."""
    data = path.read_bytes() if path.is_file() else b""
    if len(data) != _RECORD.size:
        return None
    inside, rank, stage, microbatch, since_ns, kind, what = _RECORD.unpack(data)
    if since_ns == 0:
        return None
    words = [text.rstrip(b"\0").decode(errors="ignore") for text in (kind, what)]
    return Where(inside, _place(rank, stage, microbatch, *words), since_ns)


def watch_loss() -> None:
    """From now on replicas and pipelines stop at a loss that is not finite: see ``check_loss``."""
    _Watched.loss = True


def is_loss_watched() -> bool:
    """Whether ``watch_loss`` was called: then ``check_loss`` reads the loss."""
    return _Watched.loss


def check_loss(loss: SupportsFloat) -> None:
    """Raise if ``watch_loss`` was called and ``loss`` is not finite.

    It reads the value, so the host waits for the device: that is why it has to be asked for.

    Args:
        loss: a scalar, such as a tensor of one element.

    Raises:
        LossError: the loss is nan or infinite.
    """
    if _Watched.loss and not math.isfinite(value := float(loss)):
        raise LossError(
            f"the loss is {value}, expected a finite number: look at this batch and the learning rate; "
            "torch.autograd.set_detect_anomaly(True) names the first operation whose gradient is nan"
        )


def _place(rank: int, stage: int, microbatch: int, kind: str, what: str) -> str:
    whose = f"rank {rank}, " if rank >= 0 else ""
    return f"{whose}stage {stage}, micro-batch {microbatch}, {kind}" + (f" of {what}" if what else "")
