"""How Dynamo is called: with code and globals of our own, under settings of our own, its errors in our words."""

from __future__ import annotations

import builtins
import dis
import itertools
import logging
import re
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import fx, nn
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._ordered_set import OrderedSet

from autosplit.errors import AutosplitError, CaptureError

_RECOMPILE_LIMIT = 64
_LOG_METHODS = ("debug", "info", "warning", "warning_once", "info_once", "warning_advice", "error", "exception")
_guards: Any = torch._dynamo.guards
_timed = _guards.profile_guard_manager
_LOUD = ("torch._subclasses.fake_tensor", "torch._dynamo.exc", "torch.fx.experimental.symbolic_shapes")
_RAISED = re.compile(r"got (\w+\(.*\))")  # how Dynamo quotes what an operator raised
_FRAME = re.compile(r'File "([^"]*)", line (\d+), in (\w+)')
_REFUSALS = (
    torch._dynamo.exc.TorchDynamoException,
    torch._dynamo.exc.FailOnRecompileLimitHit,
    GuardOnDataDependentSymNode,
)
_serial = itertools.count()

_READS = frozenset(("_modules", "_parameters", "_buffers"))
"""Names in compiled code that only reads the model."""
_GRAPH = "__compiled_fn_"
_OWN = (_GRAPH, "__import_")  # globals that Dynamo adds

MISSED = object()
"""Nothing was compiled for such a call."""


class Entry:
    """A compiled function that takes what ``_entry`` takes, and calls ``backend`` for the one graph of a call.

    Dynamo keeps its caches and its memory of dynamic sizes by code object, and what it compiled in the globals: each
    entry has code and globals of its own, and no other compiled function sees them. They go with ``owner``, by our
    hand: Dynamo maps what it compiled back to the code that it compiled from, and so keeps both for good.

    Args:
        backend: compiles a graph.
        owner: what the compiled code lives as long as.
        is_weight: whether a tensor stands for a weight. What Dynamo would look up of each at each call (its form) is
            left to the caller: two calls on weights of unlike form must differ in the first argument.

    Attributes:
        assigns: what ``again`` ran last may assign to attributes.
    """

    def __init__(self, backend: Callable[..., Any], owner: object, is_weight: Callable[[object], bool]) -> None:
        def compiled(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            _drop_forms(is_weight)
            run: Callable[..., Any] = backend(graph_module, inputs)
            return run

        self._code = _entry.__code__.replace(co_name=f"autosplit_entry_{next(_serial)}")
        self._globals = {"__name__": __name__, "__builtins__": builtins}
        entry = types.FunctionType(self._code, self._globals)
        self._compiled: Callable[..., Any] = torch.compile(entry, backend=compiled, fullgraph=True)
        self._known: list[_Known] = []
        self.assigns = False
        weakref.finalize(owner, reset_code, self._code).atexit = False

    def __call__(self, *values: Any) -> Any:
        """Call it, compiled anew where no guards hold."""
        result = self._compiled(*values)
        before = {id(known.guards): known for known in self._known}
        entries = [(entry.guard_manager, entry.code) for entry in _debug_get_cache_entry_list(self._code)]
        self._known = [before.get(id(guards)) or _Known(guards, code, self._globals) for guards, code in entries]
        return result

    @property
    def is_compiled(self) -> bool:
        """Whether ``again`` has anything to call."""
        return bool(self._known)

    def again(self, *values: Any) -> Any:
        """Call what was compiled before, without Dynamo; MISSED if no guards hold."""
        self.assigns = False
        if _is_traced():
            return MISSED
        local = dict(zip(_NAMES, values, strict=True))
        for i, known in enumerate(self._known):
            if known.guards.cache_entry is not None and known.guards.check(local):  # None: Dynamo dropped it
                if i:
                    self._known.insert(0, self._known.pop(i))
                self.assigns = known.assigns
                return known.run(*values)
        return MISSED


class _Known:
    """Something that Dynamo compiled: its guards, what they guard, and whether that may assign to attributes."""

    def __init__(self, guards: Any, code: types.CodeType, space: dict[str, Any]) -> None:
        self.guards = guards
        self.run = types.FunctionType(code, {name: _bare(name, value) for name, value in space.items()})
        stores = any(step.opname in ("STORE_ATTR", "STORE_SUBSCR") for step in dis.get_instructions(code))
        self.assigns = stores or any(name not in _READS and not name.startswith(_OWN) for name in code.co_names)


def _bare(name: str, value: Any) -> Any:
    """What runs a graph without what keeps Dynamo from looking at it: Dynamo is not there."""
    return getattr(value, "_torchdynamo_orig_callable", value) if name.startswith(_GRAPH) else value


def _drop_forms(is_weight: Callable[[object], bool]) -> None:
    """Drop what the graph being compiled guards of the forms of weights.

    Not by a ``guard_filter_fn``: with one, Dynamo builds all guards twice.
    """
    guards = torch._guards.TracingContext.get().guards_context.dynamo_guards
    guards.inner = OrderedSet(guard for guard in guards.inner if not _is_form_of_weight(guard, is_weight))


def _is_form_of_weight(guard: torch._guards.Guard, is_weight: Callable[[object], bool]) -> bool:
    if guard.create_fn_name() != "TENSOR_MATCH" or not guard.originating_source.name.startswith("L['self']"):
        return False
    held = getattr(guard.create_fn, "keywords", {}).get("value")
    return is_weight(held() if callable(held) else held)


def _is_traced() -> bool:
    """Whether somebody records or compiles what runs now: Dynamo knows what to do then."""
    return (
        torch._C._is_tracing()
        or torch._guards.TracingContext.try_get() is not None
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
    )


def _untimed(*_: object) -> float:
    """Stands for what times the guards of each compilation, and empties the processor's caches first (20 ms)."""
    return 0.0


@contextmanager
def dynamo_settings() -> Iterator[None]:
    """Dynamo's configuration while one of our captures or compiled calls runs."""
    logger = logging.Logger
    ignored = {getattr(logger, name) for name in _LOG_METHODS if hasattr(logger, name)}
    settings = torch._dynamo.config.patch(
        allow_rnn=True,
        allow_unspec_int_on_nn_module=True,
        side_effect_replay_policy="silent",  # else it formats a traceback for each
        skip_nnmodule_hook_guards=True,  # hooks.py watches
        specialize_float=True,
        recompile_limit=_RECOMPILE_LIMIT,
        optimize_ddp=False,  # else a capture within DistributedDataParallel is cut at its buckets
        record_runtime_overhead=False,  # two calls for a profiler, at every call
        ignore_logging_functions=ignored,
    )
    _guards.profile_guard_manager = _untimed
    try:
        with settings:
            yield
    finally:
        _guards.profile_guard_manager = _timed


def guard_empty_hooks() -> None:
    """Have the graph that is being compiled guard every dictionary of hooks. Within ``dynamo_settings``."""
    torch._dynamo.config.skip_nnmodule_hook_guards = False


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


def _entry(state: str, self: Any, forward: Any, args: Any, kwargs: Any) -> Any:
    if state:  # read, so that Dynamo captures again when it is another
        pass
    return forward(self, *args, **kwargs)


_NAMES = _entry.__code__.co_varnames


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
