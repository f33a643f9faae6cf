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

PassKind = Literal["forward", "backward"]

_RECORD = struct.Struct("<?iiiq16s80s")  # is inside, rank, stage, micro-batch, since (ns), kind, devices


class _Watched:
    """What this process records and checks; nothing until it is asked to."""

    record: mmap.mmap | None = None
    loss = False


class Where(NamedTuple):
    """The last pass of a rank.

    Attributes:
        inside: whether the pass had begun and not ended.
        place: stage, rank, devices, micro-batch and kind in words.
        since_ns: when it began or ended (``time.time_ns``).
    """

    inside: bool
    place: str
    since_ns: int


class _Passing:
    """See ``passing``."""

    __slots__ = ("devices", "kind", "microbatch", "rank", "stage")

    def __init__(self, rank: int, stage: int, microbatch: int, kind: PassKind, devices: str) -> None:
        self.rank, self.stage, self.microbatch, self.kind, self.devices = rank, stage, microbatch, kind, devices

    def __enter__(self) -> None:
        if _Watched.record is not None:
            self._write(_Watched.record, inside=True)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is not None:
            error.add_note("in " + _place(self.rank, self.stage, self.microbatch, self.kind, self.devices))
        elif _Watched.record is not None:
            self._write(_Watched.record, inside=False)

    def _write(self, record: mmap.mmap, *, inside: bool) -> None:
        kind, devices = self.kind.encode(), self.devices.encode()  # struct cuts what is too long
        _RECORD.pack_into(record, 0, inside, self.rank, self.stage, self.microbatch, time.time_ns(), kind, devices)


def passing(stage: int, microbatch: int, kind: PassKind, devices: str = "", *, rank: int = -1) -> _Passing:
    """Name the stage and micro-batch in whatever leaves the ``with`` block, which is one pass of one micro-batch.

    The exception is otherwise the same. It costs about a microsecond. An accelerator runs behind the host: what it
    reports late is noted at the pass that heard of it.

    Args:
        stage: number of the stage, from 0.
        microbatch: number of the micro-batch, from 0.
        kind: what is done.
        devices: names of the stage's devices.
        rank: this process in its group; -1 where there is none.
    """
    return _Passing(rank, stage, microbatch, kind, devices)


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
    inside, rank, stage, microbatch, since_ns, kind, devices = _RECORD.unpack(data)
    if since_ns == 0:
        return None
    words = [text.rstrip(b"\0").decode(errors="ignore") for text in (kind, devices)]
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


def _place(rank: int, stage: int, microbatch: int, kind: str, devices: str) -> str:
    whose = f" of rank {rank}" if rank >= 0 else ""
    where = f" on {devices}" if devices else ""
    return f"stage {stage}{whose}{where}, micro-batch {microbatch}, {kind}"
