"""Capture: an nn.Module's forward becomes one torch.fx graph, through Dynamo.

While the compiled forward is entered, parameters, buffers and inputs are swapped for stand-ins: same shape, stride,
dtype and requires_grad, on the logical CPU, with no memory of their own. Dynamo so traces a model that is whole and
on one device, wherever its tensors really are; the graph's callable finds the real tensors by identity.
"""

from __future__ import annotations

import builtins
import inspect
import itertools
import logging
import re
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import fx, nn
from torch.utils import _pytree as pytree

from autosplit.errors import AutosplitError, CaptureError
from autosplit.graph import Mode
from autosplit.program import Input, InputKind, Program, Spec, tensor_leaves

Compile = Callable[[Program], Callable[..., Any]]
"""Turns a program into the callable that runs it: it takes real tensors in placeholder order."""

Forward = Callable[..., Any]
"""A module's forward as a function: it takes the module first."""

_CAPTURE_LOCK = threading.RLock()  # Dynamo's configuration and caches belong to the process
_RECOMPILE_LIMIT = 64
_KEY = re.compile(r"\['([^']*)'\]|\[(\d+)\]")
_LOG_METHODS = ("debug", "info", "warning", "warning_once", "info_once", "warning_advice", "error", "exception")
_RAISED = re.compile(r"got (\w+\(.*\))")  # how Dynamo quotes what an operator raised
_serial = itertools.count()


class _Stop(BaseException):
    """Leaves the compiled frame once its program is known; never seen outside this file."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program


class StandIns:
    """Swaps the weights of one module, and the inputs of one call, for stand-ins, and back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._slots: list[tuple[dict[str, Any], str]] = []
        self._held: list[torch.Tensor] = []
        self._made: dict[int, torch.Tensor] = {}  # stand-in by id of the real weight
        self.weights: dict[int, Input] = {}  # by id of the stand-in
        self.real: dict[int, torch.Tensor] = {}  # by id of the stand-in, during a call

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Stand-ins are in place inside, the real weights outside, exception or not."""
        if not self._current():
            self._make()
        held, made = self._held, self._made
        self.real = {id(made[id(tensor)]): tensor for tensor in held}
        for (tensors, key), tensor in zip(self._slots, held, strict=True):
            tensors[key] = made[id(tensor)]
        try:
            yield
        finally:
            for (tensors, key), tensor in zip(self._slots, held, strict=True):
                now = self.real.get(id(tensors.get(key)), tensors.get(key))
                if now is not tensor and isinstance(now, torch.Tensor):
                    now = now.to(tensor.device)  # a buffer that forward assigned stays at home
                tensors[key] = now
            self.real = {}

    def of_inputs(self, tree: Any) -> Any:
        """The nested arguments with a stand-in for every tensor."""
        made: dict[int, torch.Tensor] = {id(real): self._made[id(real)] for real in self._held}

        def swap(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in made:
                made[id(tensor)] = stand_in = _stand_in(tensor)
                self.real[id(stand_in)] = tensor
            return made[id(tensor)]

        return pytree.tree_map_only(torch.Tensor, swap, tree)

    def back(self, tree: Any) -> Any:
        """The nested result, with the real tensor where the model returned an input or a weight as it is."""
        if not any(id(leaf) in self.real for leaf in tensor_leaves(tree)):
            return tree
        return pytree.tree_map_only(torch.Tensor, lambda t: self.real.get(id(t), t), tree)

    def _current(self) -> bool:
        """No slot got another tensor, and no requires_grad changed, since the stand-ins were made."""
        return bool(self._slots) and all(
            tensors.get(key) is tensor and _same_form(self._made[id(tensor)], tensor)
            for (tensors, key), tensor in zip(self._slots, self._held, strict=True)
        )

    def _make(self) -> None:
        self._slots = [
            (tensors, key)
            for module in self._model.modules()
            for tensors in (module._parameters, module._buffers)
            for key, tensor in tensors.items()
            if tensor is not None
        ]
        self._held = [tensors[key] for tensors, key in self._slots]
        self._made = {}
        for tensor in self._held:
            if id(tensor) not in self._made:
                self._made[id(tensor)] = _stand_in(tensor)
        self.weights = {}
        for name, tensor in self._model.named_parameters():
            self.weights[id(self._made[id(tensor)])] = Input("parameter", name, Spec.of(tensor))
        for name, tensor in self._model.named_buffers():
            self.weights[id(self._made[id(tensor)])] = Input("buffer", name, Spec.of(tensor))


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of the same form whose storage is empty; a Parameter for a Parameter."""
    with torch.inference_mode(False):
        stand_in = torch.empty_strided(tuple(tensor.shape), tuple(tensor.stride()), dtype=tensor.dtype, device="cpu")
        if tensor.dim():
            stand_in.untyped_storage().resize_(0)
        else:
            stand_in.zero_()  # Dynamo looks at the value of a number
        if isinstance(tensor, nn.Parameter):
            stand_in = nn.Parameter(stand_in, requires_grad=tensor.requires_grad)
            stand_in.__dict__.update(tensor.__dict__)  # what users hang on a parameter
            return stand_in
        return stand_in.requires_grad_() if tensor.requires_grad else stand_in


def _same_form(stand_in: torch.Tensor, tensor: torch.Tensor) -> bool:
    return (
        stand_in.requires_grad == tensor.requires_grad
        and stand_in.dtype == tensor.dtype
        and stand_in.shape == tensor.shape
    )


class Frontend:
    """A model's forward, captured at its first call and again whenever Dynamo's guards say that it changed.

    ``capture`` gives the program of a call without running it; a call runs what ``compile_program`` makes of each
    program. A program captured for planning serves the calls after it too.

    Args:
        model: during a call its weights are swapped and its class is ``written``; nothing else is changed.
        written: the class that the user wrote.
        compile_program: turns a program into what runs it; may be set later, before the first call.
    """

    def __init__(self, model: nn.Module, written: type[nn.Module], compile_program: Compile | None = None) -> None:
        self.compile_program = compile_program
        self.model = model
        self._written = written
        self._forward: Forward = written.forward
        self._capturing = False
        self._stand_ins = StandIns(model)
        self._lock = threading.RLock()  # the swap is visible to every user of the module
        self._compiled = torch.compile(_fresh_entry(), backend=_backend_of(self), fullgraph=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Raises:
            CaptureError: forward cannot be captured as one graph; names the reason and the line.
        """
        with self._lock, self._as_written(), _dynamo_settings(), _as_capture_error(self.model):
            args, kwargs = self._stand_ins.of_inputs((args, kwargs))
            given = pytree.tree_leaves((args, kwargs))
            result = self._stand_ins.back(self._compiled(self.model, self._forward, args, kwargs))
            if list(map(id, pytree.tree_leaves((args, kwargs)))) != list(map(id, given)):
                raise CaptureError(
                    f"{type(self.model).__name__}.forward writes into a list or dict that it was given: "
                    "the caller's would not change; return the value instead"
                )
            return result

    def capture(self, args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode) -> Program:
        """The program of one call, without running it or moving anything.

        Args:
            args: positional inputs of forward; only their form is read, so meta tensors will do.
            kwargs: keyword inputs of forward.
            mode: "train" captures with train() and gradients on, "infer" with eval() and gradients off.

        Raises:
            CaptureError: the arguments do not match forward's signature, or it cannot be captured as one graph.
        """
        _check_arguments(self.model, self._forward, args, kwargs)
        with _CAPTURE_LOCK, self._lock, _in_mode(self.model, mode):
            self._capturing = True
            try:
                self(*args, **kwargs)
            except _Stop as stop:
                return stop.program
            finally:
                self._capturing = False
        raise CaptureError(f"{type(self.model).__name__}.forward runs no tensor operation: there is nothing to place")

    @contextmanager
    def _as_written(self) -> Iterator[None]:
        """The model as the user wrote it and whole, so that what was captured once holds before and after a split."""
        current = type(self.model)
        self.model.__class__ = self._written
        try:
            with self._stand_ins.swapped():
                yield
        finally:
            self.model.__class__ = current

    def compile(self, graph_module: fx.GraphModule) -> Callable[..., Any]:
        """What Dynamo calls for a graph that it captured. It outlives the model: so only a weak reference here."""
        mode: Mode = "train" if torch.is_grad_enabled() else "infer"
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        program = Program(graph_module, [self._input(node) for node in placeholders], mode)
        compiled: list[Callable[..., Any]] = []
        frontend = weakref.ref(self)

        def call(*inputs: Any) -> Any:
            this = frontend()
            if this is None or this._capturing or this.compile_program is None:
                raise _Stop(program)
            if not compiled:
                compiled.append(this.compile_program(program))
            real = this._stand_ins.real
            return compiled[0](*[real.get(id(value), value) for value in inputs])

        return call

    def _input(self, node: fx.Node) -> Input:
        grapharg = node.meta.get("grapharg")
        example = grapharg.example if grapharg is not None else node.meta.get("example_value")
        if id(example) in self._stand_ins.weights:
            return self._stand_ins.weights[id(example)]
        if isinstance(example, torch.Tensor):
            kind: InputKind = "input" if id(example) in self._stand_ins.real else "constant"
            return Input(kind, self._input_name(node), Spec.of(example))
        value = node.meta.get("example_value", example)
        return Input("size", node.name, value=getattr(getattr(value, "node", None), "hint", value))

    def _input_name(self, node: fx.Node) -> str:
        """The parameter of forward that the tensor came in by, with its place inside: "batch.mask"."""
        grapharg = node.meta.get("grapharg")
        keys = [text or number for text, number in _KEY.findall(grapharg.source.name if grapharg is not None else "")]
        if len(keys) < 2 or keys[0] not in ("args", "kwargs"):
            return node.name
        if keys[0] == "args":
            parameters = list(inspect.signature(types.MethodType(self._forward, self.model)).parameters)
            keys[1] = parameters[int(keys[1])] if int(keys[1]) < len(parameters) else f"args.{keys[1]}"
        return ".".join(keys[1:])


def _check_arguments(model: nn.Module, forward: Forward, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    signature = inspect.signature(types.MethodType(forward, model))
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            f"the arguments do not match {type(model).__name__}.forward{signature}: {error}; "
            "pass args=(...) and kwargs={...} as you would call the model"
        ) from error
    if not tensor_leaves((list(args), kwargs)):
        found = (
            ", ".join(sorted({type(leaf).__name__ for leaf in pytree.tree_leaves((list(args), kwargs))})) or "nothing"
        )
        raise CaptureError(
            f"{type(model).__name__} was called without a tensor (found {found}): "
            "pass example inputs as torch tensors, on any device (meta will do)"
        )


def _entry(self: Any, forward: Any, args: Any, kwargs: Any) -> Any:
    return forward(self, *args, **kwargs)


def _fresh_entry() -> Callable[..., Any]:
    """Dynamo keeps its caches and its memory of dynamic sizes by code object, and what it compiled in the globals.

    Each frontend has code and globals of its own, which go with it.
    """
    code = _entry.__code__.replace(co_name=f"autosplit_entry_{next(_serial)}")
    return types.FunctionType(code, {"__name__": __name__, "__builtins__": builtins})


def _backend_of(frontend: Frontend) -> Callable[..., Any]:
    """Dynamo remembers every backend for good: this one does not keep the model alive."""
    known = weakref.ref(frontend)

    def backend(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        this = known()
        if this is None:
            raise AssertionError("a compiled forward outlived its frontend")  # nobody else can call it
        return this.compile(graph_module)

    return backend


def _dynamo_settings() -> AbstractContextManager[Any]:
    logger = logging.Logger
    ignored = {getattr(logger, name) for name in _LOG_METHODS if hasattr(logger, name)}
    patch: AbstractContextManager[Any] = torch._dynamo.config.patch(
        allow_rnn=True,
        allow_unspec_int_on_nn_module=True,
        skip_nnmodule_hook_guards=False,
        specialize_float=True,
        recompile_limit=_RECOMPILE_LIMIT,
        ignore_logging_functions=ignored,
    )
    return patch


@contextmanager
def _in_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """train() or eval(), and gradients on or off, with every module's own flag restored after."""
    flags = [(module, module.training) for module in model.modules()]
    if model.training != (mode == "train"):
        model.train(mode == "train")
    try:
        with torch.set_grad_enabled(mode == "train"):
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _as_capture_error(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
        cause = getattr(error, "inner_exception", None)
        if isinstance(cause, (AutosplitError, _Stop)):
            raise cause from None
        raise CaptureError(_explain(model, error)) from error


def _explain(model: nn.Module, error: Exception) -> str:
    stack = getattr(error, "real_stack", None)
    where = f" at {stack[-1].filename}:{stack[-1].lineno} in {stack[-1].name}" if stack else ""
    if isinstance(error, torch._dynamo.exc.TorchRuntimeError):
        said = _RAISED.search(str(error))
        reason = said[1] if said is not None else str(error).strip().split("\n")[0]
        return f"{type(model).__name__}.forward raised while it was traced{where}: {reason}; check the inputs' shapes"
    reason = str(error).strip().split("\n")[0]
    return (
        f"{type(model).__name__}.forward cannot be captured as one graph{where}: {reason}; "
        "rewrite that line without data-dependent Python, or split the model around it by hand"
    )
