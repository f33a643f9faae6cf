"""How Dynamo is called: with code and globals of our own, under settings of our own, its errors in our words."""

from __future__ import annotations

import builtins
import gc
import itertools
import logging
import re
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._C._dynamo.eval_frame import reset_code
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from autosplit.errors import AutosplitError, CaptureError

_RECOMPILE_LIMIT = 64
_COLLECT = (20_000, 20, 20)
_LOG_METHODS = ("debug", "info", "warning", "warning_once", "info_once", "warning_advice", "error", "exception")
_LOUD = ("torch._subclasses.fake_tensor", "torch._dynamo.exc", "torch.fx.experimental.symbolic_shapes")
_RAISED = re.compile(r"got (\w+\(.*\))")  # how Dynamo quotes what an operator raised
_FRAME = re.compile(r'File "([^"]*)", line (\d+), in (\w+)')
_REFUSALS = (
    torch._dynamo.exc.TorchDynamoException,
    torch._dynamo.exc.FailOnRecompileLimitHit,
    GuardOnDataDependentSymNode,
)
_serial = itertools.count()


def compile_entry(backend: Callable[..., Any], owner: object) -> Callable[..., Any]:
    """A compiled function that calls ``backend`` for the one graph of a call; it takes what ``_entry`` takes.

    Dynamo keeps its caches and its memory of dynamic sizes by code object, and what it compiled in the globals: each
    entry has code and globals of its own, and no other compiled function sees them. They go with ``owner``, by our
    hand: Dynamo maps what it compiled back to the code that it compiled from, and so keeps both for good.
    """
    code = _entry.__code__.replace(co_name=f"autosplit_entry_{next(_serial)}")
    entry = types.FunctionType(code, {"__name__": __name__, "__builtins__": builtins})
    compiled: Callable[..., Any] = torch.compile(entry, backend=backend, fullgraph=True)
    weakref.finalize(owner, reset_code, code).atexit = False
    return compiled


def dynamo_settings() -> AbstractContextManager[Any]:
    """Dynamo's configuration while one of our captures or compiled calls runs."""
    logger = logging.Logger
    ignored = {getattr(logger, name) for name in _LOG_METHODS if hasattr(logger, name)}
    patch: AbstractContextManager[Any] = torch._dynamo.config.patch(
        allow_rnn=True,
        allow_unspec_int_on_nn_module=True,
        side_effect_replay_policy="silent",  # else it formats a traceback for each
        skip_nnmodule_hook_guards=True,  # hooks.py watches
        specialize_float=True,
        recompile_limit=_RECOMPILE_LIMIT,
        ignore_logging_functions=ignored,
    )
    return patch


def guard_empty_hooks() -> None:
    """Have the graph that is being compiled guard every dictionary of hooks. Within ``dynamo_settings``."""
    torch._dynamo.config.skip_nnmodule_hook_guards = False


@contextmanager
def fewer_collections() -> Iterator[None]:
    """The garbage collector looks less often: a capture makes millions of objects and drops few of them."""
    before = gc.get_threshold()
    if before[0]:  # 0 is off, and stays so
        gc.set_threshold(*map(max, before, _COLLECT))
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the tracebacks that torch logs for what we go on to explain, or to run another way."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


@contextmanager
def as_capture_error(model: nn.Module, *, capturing: bool) -> Iterator[None]:
    """Dynamo's errors inside become a CaptureError that names the line; while capturing, every error does."""
    try:
        yield
    except AutosplitError:
        raise
    except Exception as error:
        cause = getattr(error, "inner_exception", None)
        if isinstance(cause, AutosplitError):
            raise cause from None
        if capturing or isinstance(error, _REFUSALS):
            raise CaptureError(_explain(model, error)) from error
        raise


def _entry(hooks: str, self: Any, forward: Any, args: Any, kwargs: Any) -> Any:
    if hooks:  # read, so that Dynamo captures again when they are elsewhere
        pass
    return forward(self, *args, **kwargs)


def _explain(model: nn.Module, error: Exception) -> str:
    stack = getattr(error, "real_stack", None)
    lines = [(frame.filename, frame.lineno, frame.name) for frame in stack or ()] or _FRAME.findall(str(error))
    where = " at {}:{} in {}".format(*lines[-1]) if lines else ""
    if isinstance(error, torch._dynamo.exc.TorchRuntimeError):
        said = _RAISED.search(str(error))
        reason = said[1] if said is not None else str(error).strip().split("\n")[0]
        return f"{type(model).__name__}.forward raised while it was traced{where}: {reason}; check the inputs' shapes"
    reason = str(error).strip().split("\n")[0]
    return f"{type(model).__name__}.forward cannot be captured as one graph{where}: {reason}"
