"""Recording: one run of a model in plain Python, written down as a graph, for what Dynamo cannot capture as one.

The record is what a plan is made from: the operators of one run, which module each belongs to, and the call that each
submodule got. It runs on fake tensors, and on the real ones only where the model looks at the data.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from autosplit.capture.around import snapshot
from autosplit.capture.recorder import Call, Recorder, input_names
from autosplit.capture.standins import StandIns, fake_stand_in
from autosplit.errors import CaptureError
from autosplit.graph import Mode
from autosplit.program import Program, tensor_leaves, written_tensors


@dataclass(frozen=True)
class Record:
    """What one run showed.

    Attributes:
        program: the operators that ran, with the values that Python saw as constants.
        calls: the first call of each submodule by path.
        on_data: the run needed the real weights, as forward looks at the data.
    """

    program: Program
    calls: dict[str, Call]
    on_data: bool


def record(
    model: nn.Module, written: type[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode
) -> Record:
    """Run ``model`` once and write it down. Its flags, buffers, random numbers and objects are as before after.

    Args:
        model: in the mode that it is to be recorded in.
        written: the class whose forward is called.
        args: positional inputs; on fakes only their form is read.
        kwargs: keyword inputs.
        mode: "train" records with gradients on.

    Raises:
        CaptureError: forward looks at data and there is none (weights or inputs on the meta device), or it raised.
    """
    with _same_random_numbers():
        return _record(model, written, args, kwargs, mode)


def _record(
    model: nn.Module, written: type[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode
) -> Record:
    before = snapshot(model, args, kwargs)
    try:
        return _on_fakes(model, written, args, kwargs, mode)
    except Exception as error:
        before.restore()
        why = error
    finally:
        before.restore()
    try:
        return _on_data(model, written, args, kwargs, mode, why)
    finally:
        before.restore()


def _on_fakes(
    model: nn.Module, written: type[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode
) -> Record:
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    stand_ins = StandIns(model, make=lambda tensor: fake_stand_in(fakes, tensor))
    recorder = _run(model, written, args, kwargs, stand_ins, fakes)
    return Record(recorder.program(mode), recorder.calls, on_data=False)


def _on_data(
    model: nn.Module,
    written: type[nn.Module],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    mode: Mode,
    why: Exception,
) -> Record:
    """As on fakes, but on data, where the weights are; parameters are copied only if forward writes to one."""
    home = _home(model, why)
    with torch.random.fork_rng(devices=[home] if home.type == "cuda" else []):
        try:
            recorder = _run(model, written, args, kwargs, _on_home(model, home, why, copies=False), _ReadOnly(model))
        except _WriteError:
            recorder = _run(model, written, args, kwargs, _on_home(model, home, why, copies=True), nullcontext())
        except CaptureError:
            raise
        except Exception as error:
            raise ForwardError(
                f"{type(model).__name__}.forward raised {type(error).__name__}: {_first_line(error)}{_place(error)}; "
                "call the unsplit model with these inputs until it runs"
            ) from error
    return Record(recorder.program(mode), recorder.calls, on_data=True)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """What is drawn inside from Python's and NumPy's generators is drawn again after."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _run(
    model: nn.Module,
    written: type[nn.Module],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    stand_ins: StandIns,
    mode: AbstractContextManager[Any],
) -> Recorder:
    """Record one run of ``model`` on stand-ins."""
    with stand_ins.swapped(keep=False), mode:
        given = stand_ins.of_inputs(args, kwargs)
        try:
            recorder = Recorder(model, stand_ins.weights, input_names(model, written, given.args, given.kwargs))
            with recorder.watching():
                recorder.ran(written.forward(model, *given.args, **given.kwargs))
        finally:
            given.finish()
    return recorder


def _home(model: nn.Module, why: Exception) -> torch.device:
    """The one device of the weights, which must hold data."""
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(homes) != 1 or next(iter(homes)).type == "meta":
        raise CaptureError(
            f"{type(model).__name__}.forward does not run without data ({_first_line(why)}), and its weights are on "
            f"{', '.join(sorted(map(str, homes)))}: load them on one device that holds data, such as the CPU"
        ) from why
    return homes.pop()


def _on_home(model: nn.Module, home: torch.device, why: Exception, *, copies: bool) -> StandIns:
    """Stand-ins with data: inputs and buffers are copies, which forward may write; parameters are where asked."""

    def make(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta:
            raise CaptureError(
                f"{type(model).__name__}.forward does not run without data ({_first_line(why)}), and an input is on "
                "the meta device: pass real example inputs"
            ) from why
        if isinstance(tensor, nn.Parameter) and tensor.device == home:
            return nn.Parameter(tensor.detach().clone(), tensor.requires_grad) if copies else tensor
        return tensor.detach().to(home, copy=True).requires_grad_(tensor.requires_grad)

    return StandIns(model, make=make)


class ForwardError(CaptureError):
    """The model itself raised when it was run, as it would unsplit."""


class _WriteError(Exception):
    """Forward is about to write to a parameter."""


class _ReadOnly(TorchDispatchMode):
    """Stops an operator that would write to a parameter of ``model``, and undoes what is written to other tensors.

    Those are tensors that were there before the run: a counter kept on an attribute, say.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._storages = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._born: set[int] = set()  # storages made inside, or written before; none that was there can take their ids
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in written_tensors(func, args, kwargs) if hasattr(func, "_schema") else ():
            storage = tensor.untyped_storage()._cdata
            if storage in self._storages:
                raise _WriteError
            if storage not in self._born:
                self._born.add(storage)
                self._before.append((tensor, tensor.detach().clone()))
        result = func(*args, **kwargs)
        self._born |= {tensor.untyped_storage()._cdata for tensor in tensor_leaves(result)}
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        with torch.no_grad():
            for tensor, was in self._before:
                tensor.copy_(was)


def _place(error: BaseException) -> str:
    """The last line of the model's own source that the error came through: " at FILE:LINE in FUNCTION"."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours_or_torchs(frame.filename)]
    return f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def _is_ours_or_torchs(filename: str) -> bool:
    return filename.startswith((str(Path(torch.__file__).parent), str(Path(__file__).parents[1])))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().split("\n")), "") or type(error).__name__
