"""Capture: an nn.Module's forward becomes one torch.fx graph, through Dynamo.

While the compiled forward is entered, parameters, buffers and inputs are swapped for stand-ins: same shape, stride,
dtype and requires_grad, on the logical CPU, with no memory of their own. Dynamo so traces a model that is whole and
on one device, wherever its tensors really are; the graph's callable finds the real tensors by identity.
"""

from __future__ import annotations

import inspect
import re
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autosplit.capture.dynamo import (
    as_capture_error,
    compile_entry,
    dynamo_settings,
    fewer_collections,
    guard_empty_hooks,
    quiet,
)
from autosplit.capture.hooks import HookWatch
from autosplit.capture.standins import StandIns, stand_in
from autosplit.errors import CaptureError
from autosplit.graph import Mode
from autosplit.holders import Exchange, Snapshot, to_device
from autosplit.program import Input, InputKind, Program, Spec, tensor_leaves

Run = Callable[[Sequence[Any], torch.device], Sequence[Any]]
"""Runs a program: takes real tensors in placeholder order and the device that the caller's tensors are on."""

Compile = Callable[[Program], Run]

Forward = Callable[..., Any]
"""A module's forward as a function: it takes the module first."""

CAPTURE_LOCK = threading.RLock()  # Dynamo's configuration and caches belong to the process
_KEY = re.compile(r"\['([^']*)'\]|\[(\d+)\]|\.(\w+)")


class Frontend:
    """A model's forward, captured at its first call and again whenever Dynamo's guards say that it changed.

    ``capture`` gives the program of a call without running it; a call runs what ``compile_program`` makes of each
    program. A program captured for planning serves the calls after it too.

    Args:
        model: during a call its weights are swapped and its class is ``written``; nothing else is changed.
        written: the class that the user wrote.
        compile_program: turns a program into what runs it; may be set later, before the first call.
        prefix: path of ``model`` in the model that it is a part of, "" for the whole.
        names: the weights' names in the whole model by their names in ``model``, where it is a part.
    """

    def __init__(
        self,
        model: nn.Module,
        written: type[nn.Module],
        compile_program: Compile | None = None,
        *,
        prefix: str = "",
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.compile_program = compile_program
        self.model = model
        self.prefix = prefix
        self.written = written
        self._forward: Forward = written.forward
        self.inner: list[tuple[nn.Module, Any]] = []  # submodules with a forward of ours for calls from outside
        self._capturing = False
        self._captured: Program | None = None
        self._examples: list[Any] = []  # of the program captured last
        self._ghosts: dict[int, int] = {}  # place among the captured graph's outputs, by id of what stands for it
        self._objects: set[int] = set()  # stand-ins that an object among the arguments holds
        self._lent = False  # the logical CPU autocasts as the caller's accelerator does
        self._kept: list[Any] = []  # outputs without data, while their ids are looked up
        self._device = torch.device("cpu")  # where the caller's tensors are
        self._stand_ins = StandIns(model, names)
        self._hooks = HookWatch(model)
        self._lock = threading.RLock()  # the swap is visible to every user of the module
        self._compiled = compile_entry(_backend_of(self), owner=self)

    @property
    def is_part(self) -> bool:
        """It serves a part of a model: what it returns stays where it was computed."""
        return bool(self.prefix)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Raises:
            CaptureError: forward cannot be captured as one graph; names the reason and the line.
        """
        with self._lock, self._as_written():
            return self._call(args, kwargs)[0]

    def capture(self, args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode | None) -> Program:
        """The program of one call, without running it, moving anything or leaving a trace in any object.

        Args:
            args: positional inputs of forward; only their form is read, so meta tensors will do.
            kwargs: keyword inputs of forward.
            mode: "train" captures with train() and gradients on, "infer" with eval() and gradients off; None captures
                as it is, as for a part.

        Raises:
            CaptureError: the arguments do not match forward's signature, or it cannot be captured as one graph.
        """
        check_arguments(self.model, self._forward, args, kwargs)
        flags = nullcontext() if self.is_part or mode is None else in_mode(self.model, mode)
        with CAPTURE_LOCK, self._lock, flags, without_parts(self.model), quiet(), fewer_collections():
            before = snapshot(self.model, args, kwargs)
            self._capturing, self._captured = True, None
            try:
                with self._as_written():
                    result, changed = self._call(args, kwargs)
            finally:
                self._capturing = False
                before.restore()
        refuse_iterators(self.model, result)
        program: Program | None = self._captured
        if program is None:
            raise CaptureError(
                f"{type(self.model).__name__}.forward runs no tensor operation: there is nothing to place"
            )
        return self._complete(program, result, changed)

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, set[int]]:
        """The result, and the stand-ins that objects among the arguments no longer hold."""
        with dynamo_settings(), as_capture_error(self.model, capturing=self._capturing):
            given = self._stand_ins.of_inputs(args, kwargs)
            self._device = given.device or torch.device("cpu")
            try:
                with self._autocast():
                    result = self._compiled(self._hooks.places(), self.model, self._forward, given.args, given.kwargs)
            except BaseException:
                given.finish()
                given.disarm()
                self._stand_ins.disarm()
                raise
            changed = given.changed() if self._capturing else set()
            self._objects = given.objects
            if not self._capturing and not self.is_part:
                result = to_device(result, self._device, stay=self._stand_ins.real)
            return given.finish(result), changed

    def _complete(self, program: Program, result: Any, changed: set[int]) -> Program:
        """Note what only the end of the call shows: which outputs the caller gets, and which inputs are state."""
        returned: set[int] = set()

        def visit(tensor: torch.Tensor, plain: bool) -> torch.Tensor:
            if plain and id(tensor) in self._ghosts:
                returned.add(self._ghosts[id(tensor)])
            return tensor

        Exchange(visit, copies=False)(result)
        program.returned = frozenset() if self.is_part else frozenset(returned)
        held = {i for i, example in enumerate(self._examples) if id(example) in self._objects}
        state = {i for i in held if id(self._examples[i]) in changed} | (held & program.written_inputs)
        program.mark_state(state)
        self._examples, self._ghosts, self._kept = [], {}, []
        return program

    @contextmanager
    def _as_written(self) -> Iterator[None]:
        """The model as the user wrote it and whole, so that what was captured once holds before and after a split."""
        current = type(self.model)
        outside = [(module, forward) for module, forward in self.inner if "forward" in module.__dict__]
        try:
            self.model.__class__ = self.written
            for module, _ in outside:
                del module.__dict__["forward"]
            with self._stand_ins.swapped(keep=not self._capturing):
                yield
        finally:
            self.model.__class__ = current
            for module, forward in outside:
                module.__dict__["forward"] = forward

    def _autocast(self) -> AbstractContextManager[Any]:
        """Traces under the caller's autocast: the operations that it casts decide dtypes that forward may ask for."""
        kinds = {tensor.device.type for tensor in self._stand_ins.real.values()}
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            kinds.add(accelerator.type)
        for kind in sorted(kinds - {"cpu", "meta"}):
            if torch.is_autocast_enabled(kind):
                self._lent = True
                return torch.autocast("cpu", dtype=torch.get_autocast_dtype(kind))
        self._lent = False
        return nullcontext()

    def compile(self, graph_module: fx.GraphModule) -> Callable[..., Any]:
        """What Dynamo calls for a graph that it captured. It outlives the model: so only a weak reference here."""
        mode: Mode = "train" if torch.is_grad_enabled() else "infer"
        if not self._hooks.sees_all(graph_module.graph):
            guard_empty_hooks()
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        self._examples = [_example(node) for node in placeholders]
        inputs = [self._input(node, example) for node, example in zip(placeholders, self._examples, strict=True)]
        program = Program(graph_module, inputs, mode, prefix=self.prefix, autocast=_cpu_autocast())
        ran: list[Run] = []
        frontend = weakref.ref(self)

        def call(*inputs: Any) -> Any:
            this = frontend()
            if this is None:
                raise AssertionError("a compiled forward outlived its frontend")  # nobody else can call it
            if this._capturing:
                return this._pretend(program, inputs)
            if not ran:
                ran.append(_compiler(this)(program))
            real = this._stand_ins.real
            with torch.autocast("cpu", enabled=False) if this._lent else nullcontext():
                return ran[0]([real.get(id(value), value) for value in inputs], this._device)

        return call

    def _pretend(self, program: Program, inputs: Sequence[Any]) -> list[Any]:
        """Outputs without data, so that the rest of the call shows what becomes of them."""
        self._captured, self._examples = program, list(inputs)
        outputs = [_ghost(value) for value in program.output.args[0]]  # type: ignore[union-attr]
        self._ghosts = {id(output): i for i, output in enumerate(outputs) if isinstance(output, torch.Tensor)}
        self._kept = outputs
        return outputs

    def _input(self, node: fx.Node, example: Any) -> Input:
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
        source = grapharg.source.name if grapharg is not None else ""
        keys = [next(filter(None, found), "") for found in _KEY.findall(source)]
        if len(keys) < 2 or keys[0] not in ("args", "kwargs"):
            return node.name
        if keys[0] == "args":
            parameters = list(inspect.signature(types.MethodType(self._forward, self.model)).parameters)
            keys[1] = parameters[int(keys[1])] if int(keys[1]) < len(parameters) else f"args.{keys[1]}"
        return ".".join(keys[1:])


def snapshot(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Snapshot:
    """Everything in Python that a call of ``model`` may change: arguments, attributes, and the globals of its code."""
    codes = {type(module).forward for module in model.modules() if hasattr(type(module).forward, "__globals__")}
    spaces = {id(code.__globals__): code.__globals__ for code in codes}
    kept = [value for space in spaces.values() for value in space.values() if type(value) in (list, dict, set, deque)]
    return Snapshot([*args, *kwargs.values(), *(vars(module) for module in model.modules())], kept, spaces.values())


def refuse_iterators(model: nn.Module, result: Any) -> None:
    """A generator runs its body after the call, out of reach.

    Raises:
        CaptureError: ``result`` is one.
    """
    if isinstance(result, Iterator):
        raise CaptureError(
            f"{type(model).__name__}.forward returns a generator, which would compute after the call: "
            "return a list or a tuple"
        )


@contextmanager
def without_parts(model: nn.Module) -> Iterator[None]:
    """The submodules of a model that is split already, with the forwards of their classes."""
    ours: list[tuple[nn.Module, Any]] = []
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if type(forward).__module__.startswith("autosplit."):
            ours.append((module, module.__dict__.pop("forward")))
    try:
        yield
    finally:
        for module, forward in ours:
            module.__dict__["forward"] = forward


def part_names(model: nn.Module, part: nn.Module) -> dict[str, str]:
    """The first name in ``model`` of each weight of ``part``, by its name there: tied weights have one name."""
    first = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    return {name: first[id(tensor)] for name, tensor in (*part.named_parameters(), *part.named_buffers())}


@contextmanager
def in_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """train() or eval(), and gradients on or off, with every module's own flag restored after."""
    flags = [(module, module.training) for module in model.modules()]
    if model.training != (mode == "train"):
        with suppress(NotImplementedError):  # an exported program keeps the mode that it was exported in
            model.train(mode == "train")
    try:
        with torch.set_grad_enabled(mode == "train"):
            yield
    finally:
        for module, training in flags:
            module.training = training


def check_arguments(model: nn.Module, forward: Forward, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check the arguments of a call before anything is tried with them.

    Raises:
        CaptureError: they do not match the signature, or no tensor is among them.
    """
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


def _example(node: fx.Node) -> Any:
    grapharg = node.meta.get("grapharg")
    return grapharg.example if grapharg is not None else node.meta.get("example_value")


def _ghost(value: Any) -> Any:
    """Something of the form of a graph's output."""
    known = value.meta.get("example_value") if isinstance(value, fx.Node) else value
    if isinstance(known, torch.Tensor):
        return stand_in(Spec.of(known).empty("meta"))
    return getattr(getattr(known, "node", None), "hint", known)


def _compiler(frontend: Frontend) -> Compile:
    if frontend.compile_program is None:
        raise AssertionError("the model is called, but nothing says how to run it")  # set before the first call
    return frontend.compile_program


def _cpu_autocast() -> torch.dtype | None:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def _backend_of(frontend: Frontend) -> Callable[..., Any]:
    """Dynamo remembers every backend for good: this one does not keep the model alive."""
    known = weakref.ref(frontend)

    def backend(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        this = known()
        if this is None:
            raise AssertionError("a compiled forward outlived its frontend")  # nobody else can call it
        return this.compile(graph_module)

    return backend
