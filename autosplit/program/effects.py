"""The facts about each node, from one run of the graph on fake tensors: no kernel runs, no memory is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from autosplit.errors import CaptureError
from autosplit.graph import Mode
from autosplit.program.accelerator import AcceleratorForms
from autosplit.program.autocast import accelerator_casts
from autosplit.program.copies import Copy, DifferentError, copies_of
from autosplit.program.dependent import call_on_fakes
from autosplit.program.facts import Facts, Input, Leaf, Spec, form_of, tensor_leaves
from autosplit.program.fakes import fake_mode
from autosplit.program.names import is_checkpoint, is_control, operator_name, source_line
from autosplit.program.recorded import RECORDED, Recorded
from autosplit.program.regions import bare, closed_on_error

_RUNNING_STATS = ("running_mean", "running_var")  # written by batch_norm and instance_norm; their schema hides it


class _Effects(TorchDispatchMode):
    """Notes, below autograd, which storages are written and allocated, and the arithmetic done."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.written: set[int] = set()
        self.allocated: dict[int, int] = {}
        self.flops = 0
        self.flops_dtype = "float32"
        self.moved_bytes = 0
        self.operators = 0
        self.alive: list[Any] = []  # a freed storage's address could come back as another's

    def clear(self) -> None:
        self.written, self.allocated, self.flops, self.moved_bytes, self.operators = set(), {}, 0, 0, 0
        self.flops_dtype = "float32"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = call_on_fakes(func, args, kwargs, self)
        outputs = tensor_leaves(result)
        self.alive += outputs
        if not hasattr(func, "_schema"):
            return result
        with torch._C.DisableTorchFunction():  # the forms of an accelerator are for what the graph calls
            inputs = tensor_leaves((args, kwargs))
            known = {_storage(t) for t in inputs}
            for tensor in outputs:
                if _storage(tensor) not in known:
                    self.allocated[_storage(tensor)] = _storage_bytes(tensor)
            self.written |= {_storage(t) for t in written_tensors(func, args, kwargs)}
            if outputs and not func.is_view:  # prim.device and its like ask, and move nothing
                self.operators += 1
                self.moved_bytes += sum(map(_size_bytes, inputs)) + sum(map(_size_bytes, outputs))
                formula = flop_registry.get(func.overloadpacket)
                if formula is not None:
                    self.flops += int(formula(*args, **kwargs, out_val=result))
                    self.flops_dtype = _number_format(func, inputs)
        return result


def _number_format(func: Any, factors: Sequence[torch.Tensor]) -> str:
    """The format that an accelerator multiplies ``factors`` in: their dtype's name, or "tf32" where that is allowed."""
    dtype = factors[0].dtype if factors else torch.float32
    backends: Any = torch.backends  # torch leaves cudnn.conv untyped
    backend = backends.cudnn.conv if "convolution" in func.__name__ else backends.cuda.matmul
    if dtype == torch.float32 and backend.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


def written_tensors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that a call of an operator writes in place."""
    for position, name in _written_arguments(func):
        yield from tensor_leaves(kwargs.get(name, args[position] if position < len(args) else None))


@cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Place and name of each argument that an operator writes."""
    schema = func._schema
    hidden = _RUNNING_STATS if "batch_norm" in schema.name or "instance_norm" in schema.name else ()
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in hidden
    )


class _Analysis(fx.Interpreter):
    """Runs the graph on fakes, one node at a time, and fills in Facts."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.extra_traceback = False  # an error says what it has to by itself
        self.facts: dict[fx.Node, Facts] = {}
        self.effects = _Effects()
        self.saved: dict[int, int] = {}
        self.ids: dict[int, int] = {}
        self.forms = AcceleratorForms()
        self.copies = copies_of(graph_module.graph)
        self.regimes: dict[fx.Node, Any] = {pairs[0][1]: None for pairs in self.copies.values()}

    def run_node(self, n: fx.Node) -> Any:
        if n in self.regimes:
            self.regimes[n] = _regime()
        if n in self.copies and self._is_copied(self.copies[n]):
            return self.env[n]
        self.effects.clear()
        self.saved = {}
        differentiable = [a for a in n.all_input_nodes if self._differentiable(a)]
        with self.effects, self._saved_tensors(n), self.forms:
            result = self._run(n)
            if is_checkpoint(n):
                self._keep(self.fetch_args_kwargs_from_env(n)[0])
        self.facts[n] = self._facts(result, frozenset(differentiable))
        if is_checkpoint(n):
            self.facts[n].operators = self.effects.operators
        return result

    def _is_copied(self, pairs: list[tuple[fx.Node, fx.Node]]) -> bool:
        """Whether what is known of the originals holds for these nodes: then it is noted, and none is run."""
        if self.regimes[pairs[0][1]] != _regime():
            return False
        inside = {node for node, _ in pairs}
        try:
            copy = Copy(pairs, self.env, lambda tensor: self._id(_storage(tensor)), self._fresh)
            facts = {node: copy.facts(self.facts[original]) for node, original in pairs}
            leaving = [pair for pair in pairs if any(user not in inside for user in pair[0].users)]
            results = {node: copy.result(original, self._note) for node, original in leaving}
        except DifferentError:
            return False
        self.facts.update(facts)
        self.env.update({node: results.get(node) for node in inside})
        return True

    def _note(self, tensor: torch.Tensor, storage: int) -> None:
        self.ids[_storage(tensor)] = storage
        self.effects.alive.append(tensor)

    def _fresh(self) -> int:
        """A number for a storage that no tensor has."""
        return self.ids.setdefault(-len(self.ids), len(self.ids))

    def _differentiable(self, node: fx.Node) -> bool:
        return any(bare(tensor).requires_grad for tensor in tensor_leaves(self.env[node]))

    def _saved_tensors(self, node: fx.Node) -> AbstractContextManager[Any]:
        banned = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is not None
        if banned or is_control(node) or not torch.is_grad_enabled():  # torch.func.grad bans hooks inside
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved)

    def _run(self, n: fx.Node) -> Any:
        """The node's result; where fakes cannot give the one that was recorded, the recorded one."""
        recorded = n.meta.get(RECORDED)
        try:
            result = super().run_node(n)
            if recorded is None or _sizes(result) == _sizes(recorded):
                return result
        except Exception as error:  # whatever the operator does with tensors that have no data
            if recorded is None:
                raise CaptureError(_cannot_plan(n, error)) from error
        self.effects.clear()
        self.saved = {}
        n.target, n.op = Recorded(n.target, recorded), "call_function"
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Dynamo's mark of a checkpoint keeps what the region saves; the real one, which is what runs, does not."""
        if target is torch.ops.higher_order.tag_activation_checkpoint:
            return checkpoint(*args, use_reentrant=False)
        return super().call_function(target, args, kwargs)

    def _keep(self, arguments: Any) -> None:
        for tensor in tensor_leaves(arguments) if torch.is_grad_enabled() else ():
            self._pack(tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.saved[_storage(tensor)] = _storage_bytes(tensor)
        self.effects.alive.append(tensor)
        return tensor.detach()  # an output that its own step of autograd saves would keep itself alive for good

    def _facts(self, result: Any, differentiable: frozenset[fx.Node]) -> Facts:
        effects = self.effects
        tensors = [bare(tensor) for tensor in tensor_leaves(result)]
        returned = {_storage(t) for t in tensors}
        hidden = {s: size for s, size in self.saved.items() if s in effects.allocated and s not in returned}
        gone = [size for s, size in effects.allocated.items() if s not in returned and s not in hidden]
        return Facts(
            leaves=tuple(self._leaf(t) for t in tensors),
            is_tensor=isinstance(result, torch.Tensor),
            differentiable=differentiable,
            writes=frozenset(map(self._id, effects.written)),
            saved=frozenset(map(self._id, self.saved)),
            hidden={self._id(s): size for s, size in hidden.items()},
            flops=effects.flops,
            flops_dtype=effects.flops_dtype,
            moved_bytes=effects.moved_bytes,
            workspace_bytes=sum(gone),
            form=form_of(result),
        )

    def _leaf(self, tensor: torch.Tensor) -> Leaf:
        return Leaf(self._id(_storage(tensor)), _size_bytes(tensor), _storage_bytes(tensor), tensor.requires_grad)

    def _id(self, storage: int) -> int:
        return self.ids.setdefault(storage, len(self.ids))


def analyse(graph_module: fx.GraphModule, inputs: Sequence[Input], mode: Mode) -> dict[fx.Node, Facts]:
    """Run the graph once on fake tensors on the logical CPU, gradients on in "train", and note what each node does."""
    analysis = _Analysis(graph_module)
    with closed_on_error(), fake_mode(), torch.set_grad_enabled(mode == "train"), accelerator_casts():
        try:
            analysis.run(*[source.spec.empty() if source.spec else source.value for source in inputs])
        finally:  # autograd holds the analysis by its hooks, out of the collector's sight
            analysis.env.clear()
            analysis.effects.alive.clear()
    return analysis.facts


def _regime() -> tuple[Any, ...]:
    """What of the surroundings an operator's result may depend on."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def _cannot_plan(node: fx.Node, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0]
    return (
        f"forward cannot be captured as one graph{source_line(node)}: "
        f"{operator_name(node)} cannot be planned without running it: {reason}"
    )


def _sizes(result: Any) -> list[tuple[int, ...]]:
    leaves = pytree.tree_leaves(result, is_leaf=lambda leaf: isinstance(leaf, Spec))
    return [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, (torch.Tensor, Spec))]


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _storage_bytes(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())


def _size_bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel()) * tensor.element_size()
