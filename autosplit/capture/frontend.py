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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from autosplit.capture.around import check_arguments, in_mode, refuse_iterators, snapshot, without_parts
from autosplit.capture.dynamo import (
    MISSED,
    Entry,
    as_capture_error,
    dynamo_settings,
    guard_empty_hooks,
    quiet,
)
from autosplit.capture.gate import Gate
from autosplit.capture.hooks import HookWatch
from autosplit.capture.repeats import as_regions, flatten, repeated
from autosplit.capture.slots import Reader
from autosplit.capture.standins import Arguments, StandIns, stand_in
from autosplit.collector import fewer_collections
from autosplit.errors import CaptureError
from autosplit.graph import Mode
from autosplit.holders import Exchange, to_device
from autosplit.program import Input, InputKind, Program, Spec

Run = Callable[[Sequence[Any], torch.device, int], Sequence[Any]]
"""Runs a program: takes real tensors in placeholder order, the device that the caller's tensors are on, and a number
that is equal for two calls if every weight has the device that it had."""

Compile = Callable[[Program], Run]

Forward = Callable[..., Any]
"""A module's forward as a function: it takes the module first."""

CAPTURE_LOCK = threading.RLock()  # Dynamo's configuration and caches belong to the process
_unlike: Any = WeakIdKeyDictionary()
"""By model the modes in which its layers were seen not to be alike: a plan captures at more than one size."""
_KEY = re.compile(r"\['([^']*)'\]|\[(\d+)\]|\.(\w+)")


class WeightsChanged(Exception):  # noqa: N818  # not an error: the call is captured anew
    """A captured graph was about to run on weights of another form than it was captured for."""


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
        serves: programs serve calls. If not, layers that are alike are traced once, where that can be.
    """

    def __init__(
        self,
        model: nn.Module,
        written: type[nn.Module],
        compile_program: Compile | None = None,
        *,
        prefix: str = "",
        names: Mapping[str, str] | None = None,
        serves: bool = True,
    ) -> None:
        self.compile_program = compile_program
        self.serves = serves
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
        self._readers: list[Reader] = []  # of each captured graph
        self._is_again = False  # without Dynamo
        self._lent = False  # the logical CPU autocasts as the caller's accelerator does
        self._kept: list[Any] = []  # outputs without data, while their ids are looked up
        self._device = torch.device("cpu")  # where the caller's tensors are
        self._stand_ins = StandIns(model, names)
        self._hooks = HookWatch(model)
        self._lock = threading.RLock()  # the swap is visible to every user of the module
        self._gate = Gate(model, written, self._lock)
        self._entry = Entry(_backend_of(self), self, _is_weight_of(self._stand_ins))

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
            result = self._again(args, kwargs)
            return self._anew(args, kwargs)[0] if result is MISSED else result

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
        unlike = _unlike.setdefault(self.model, set())
        alike = [] if self.serves or mode in unlike else repeated(self.model)
        if alike:
            with suppress(CaptureError), CAPTURE_LOCK, as_regions(alike):
                return self._capture(args, kwargs, mode)
        program = self._capture(args, kwargs, mode)
        if alike:
            unlike.add(mode)
        return program

    def _capture(self, args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode | None) -> Program:
        flags = nullcontext() if self.is_part or mode is None else in_mode(self.model, mode)
        with CAPTURE_LOCK, self._lock, flags, without_parts(self.model), quiet(), fewer_collections():
            before = snapshot(self.model, args, kwargs)
            self._capturing, self._captured = True, None
            try:
                with self._as_written():
                    result, changed = self._anew(args, kwargs)
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

    def _again(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a call that was captured before, MISSED for another: nothing is swapped but the inputs."""
        if not self._entry.is_compiled:
            return MISSED
        self._is_again = True
        self._stand_ins.leave_in_place()
        try:
            return self._call(self._entry.again, args, kwargs)[0]
        except WeightsChanged:
            return MISSED
        finally:
            self._is_again = False
            if self._entry.assigns:
                self._stand_ins.bring_home()
            self._stand_ins.real = {}

    def _anew(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, set[int]]:
        with (
            dynamo_settings(),
            as_capture_error(self.model, capturing=self._capturing),
            self._stand_ins.swapped(keep=not self._capturing),
        ):
            return self._call(self._entry, args, kwargs)

    def _call(self, entry: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, set[int]]:
        """The result, and the stand-ins that objects among the arguments no longer hold."""
        given = self._stand_ins.of_inputs(args, kwargs)
        self._device = given.device or torch.device("cpu")
        try:
            with self._autocast():
                result = entry(self._state(given), self.model, self._forward, given.args, given.kwargs)
        except BaseException:
            given.finish()
            given.disarm()
            self._stand_ins.disarm()
            raise
        if result is MISSED:
            given.finish()
            return MISSED, set()
        changed = given.changed() if self._capturing else set()
        self._objects = given.objects
        if not self._capturing and not self.is_part:
            result = to_device(result, self._device, stay=self._stand_ins.staying)
        return given.finish(result), changed

    def _state(self, given: Arguments) -> str:
        """Unlike for two calls that no one capture may serve, for reasons that Dynamo's guards do not see."""
        slots = self._stand_ins.slots
        among = ",".join(str(slots.index(weight)) for weight in given.weights)
        return f"{slots.form} {self._hooks.places()} {among}"

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
        self._gate.open()
        try:
            for module, _ in outside:
                del module.__dict__["forward"]
            yield
        finally:
            self._gate.close(current)
            for module, forward in outside:
                module.__dict__["forward"] = forward

    def _autocast(self) -> AbstractContextManager[Any]:
        """Traces under the caller's autocast: the operations that it casts decide dtypes that forward may ask for."""
        self._lent = False
        if not torch._C._is_any_autocast_enabled():
            return nullcontext()
        kinds = self._stand_ins.slots.device_types | {self._device.type}
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            kinds.add(accelerator.type)
        for kind in sorted(kinds - {"cpu", "meta"}):
            if torch.is_autocast_enabled(kind):
                self._lent = True
                return torch.autocast("cpu", dtype=torch.get_autocast_dtype(kind))
        return nullcontext()

    def compile(self, graph_module: fx.GraphModule) -> Callable[..., Any]:
        """What Dynamo calls for a graph that it captured. It outlives the model: so only a weak reference here."""
        mode: Mode = "train" if torch.is_grad_enabled() else "infer"
        if not self.serves:
            flatten(graph_module)
        if not self._hooks.sees_all(graph_module.graph):
            guard_empty_hooks()
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        self._examples = [_example(node) for node in placeholders]
        inputs = [self._input(node, example) for node, example in zip(placeholders, self._examples, strict=True)]
        program = Program(graph_module, inputs, mode, prefix=self.prefix, autocast=_cpu_autocast())
        ran: list[Run] = []
        number = len(self._readers)
        self._readers.append(Reader(self._stand_ins.slots, [i for i, known in enumerate(inputs) if known.is_weight]))
        frontend = weakref.ref(self)

        def call(*inputs: Any) -> Any:
            this = frontend()
            if this is None:
                raise AssertionError("a compiled forward outlived its frontend")  # nobody else can call it
            if this._capturing:
                return this._pretend(program, inputs)
            if not ran:
                ran.append(_compiler(this)(program))
            real = list(map(this._stand_ins.real.get, map(id, inputs), inputs))
            if this._is_again and not this._readers[number].is_same(real, look=this._entry.assigns):
                raise WeightsChanged
            with torch.autocast("cpu", enabled=False) if this._lent else nullcontext():
                return ran[0](real, this._device, this._stand_ins.slots.homes)

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


def part_names(model: nn.Module, part: nn.Module) -> dict[str, str]:
    """The first name in ``model`` of each weight of ``part``, by its name there: tied weights have one name."""
    first = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    return {name: first[id(tensor)] for name, tensor in (*part.named_parameters(), *part.named_buffers())}


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


def _is_weight_of(stand_ins: StandIns) -> Callable[[object], bool]:
    """As for the backend: only a weak reference."""
    known = weakref.ref(stand_ins)

    def is_weight(value: object) -> bool:
        this = known()
        return this is not None and id(value) in this.weights

    return is_weight


def _backend_of(frontend: Frontend) -> Callable[..., Any]:
    """Dynamo remembers every backend for good: this one does not keep the model alive."""
    known = weakref.ref(frontend)

    def backend(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        this = known()
        if this is None:
            raise AssertionError("a compiled forward outlived its frontend")  # nobody else can call it
        return this.compile(graph_module)

    return backend
