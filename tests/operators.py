"""torch's own databases of operators and modules, each sample as a model whose operator runs on another device."""

from __future__ import annotations

import copy
import re
import sys
import types
import unittest
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils import _pytree as pytree

import autosplit
from autosplit import sim
from autosplit.errors import AutosplitError, PlanError


def load_databases() -> tuple[list[Any], list[Any]]:
    """The databases import expecttest only for a base class, and warn while importing."""
    stand_in = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    sys.modules.setdefault("expecttest", stand_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_methods_invocations
        from torch.testing._internal.common_modules import module_db
    # Random operators are wrapped to save and restore the generator, which cannot be captured: `observe` seeds instead.
    common_methods_invocations.wrapper_set_seed = lambda function, *args, **kwargs: function(*args, **kwargs)
    return common_methods_invocations.op_db, module_db


def full_name(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


_OPS, _MODULES = load_databases()
OPS = {full_name(op): op for op in _OPS}
MODULES = {info.name: info for info in _MODULES}

UNDEFINED = "its values are undefined: nothing to compare"
SPARSE = "sparse tensors are not supported"
GPU_ONLY = "has no CPU kernel to run"
UNSUPPORTED = {
    "empty": UNDEFINED,
    "empty_like": UNDEFINED,
    "empty_permuted": UNDEFINED,
    "empty_strided": UNDEFINED,
    "new_empty": UNDEFINED,
    "new_empty_strided": UNDEFINED,
    "sparse.mm.reduce": SPARSE,
    "sparse.sampled_addmm": SPARSE,
    "to_sparse": SPARSE,
    "torch.ops.aten._efficient_attention_forward": GPU_ONLY,
    "torch.ops.aten._flash_attention_forward": GPU_ONLY,
    "nn.functional.batch_norm.without_cudnn": GPU_ONLY,
    "jiterator_unary": GPU_ONLY,
    "jiterator_binary": GPU_ONLY,
    "jiterator_4inputs_with_extra_args": GPU_ONLY,
    "jiterator_binary_return_by_ref": GPU_ONLY,
    "jiterator_2inputs_2outputs": GPU_ONLY,
    "to": "its samples pin memory, which has no meaning here",
    "tensor_split": "its samples split by a tensor, which must be on the CPU (on CUDA as well)",
    "as_strided.partial_views": "its samples are views into storages that a copy does not carry over",
}
"""Operators that a virtual device does not run, split or not."""

SUPPORTED = [name for name in OPS if name not in UNSUPPORTED]

SIZE = "its result's size depends on data in a way that Dynamo cannot bound"
BRANCH = "branches in Python on a value that depends on data"
MAY_FALL = {
    "addbmm": "the fake kernel refuses an input in place that the real one takes",
    "allclose": BRANCH,
    "combinations": SIZE,
    "corrcoef": BRANCH,
    "cov": BRANCH,
    "equal": BRANCH,
    "istft": BRANCH,
    "linalg.lstsq": SIZE,
    "linalg.lstsq.grad_oriented": SIZE,
    "narrow": SIZE,
    "nn.functional.ctc_loss": SIZE,
    "nn.functional.gaussian_nll_loss": BRANCH,
    "nn.functional.linear_cross_entropy.chunked": "calls a function that Dynamo does not trace",
    "nn.functional.linear_cross_entropy.chunked_none": "calls a function that Dynamo does not trace",
    "nn.functional.one_hot": SIZE,
    "resize_": "Dynamo refuses it",
    "resize_as_": "Dynamo refuses it",
    "torch._scaled_mm_v2": "Dynamo takes no enumerations as arguments",
    "nn.BatchNorm1d": BRANCH,
    "nn.BatchNorm2d": BRANCH,
    "nn.BatchNorm3d": BRANCH,
    "nn.CTCLoss": SIZE,
    "nn.GaussianNLLLoss": BRANCH,
    "nn.LinearCrossEntropyLoss": "calls a function that Dynamo does not trace",
    "nn.Transformer": BRANCH,
    "nn.TransformerEncoder": BRANCH,
}
"""Operators and modules of which a sample may be no one graph, and why; nothing else may."""

RAISES = {"masked_select": "Runtime assertion failed for expression"}
"""What torch raises in the split model: its captured graph asserts that no more is selected than the input has, which
is not so when the mask is larger than the input."""

CLOSE = 1e-5  # relative and absolute, where torch itself runs other operators under a compiler

_AROUND = {"before": "sim:0", "op": "sim:1", "after": "sim:0"}
_TOGETHER = {"before": "sim:1", "op": "sim:1", "after": "sim:0"}  # for what stays with its inputs: a write, a view


def in_place_names() -> list[str]:
    """Operators that have a form which writes into its first argument."""
    return [name for name in SUPPORTED if OPS[name].inplace_variant is not None]


def dtype_of(op: Any) -> torch.dtype:
    usual = (torch.float32, torch.int64, torch.complex64, torch.bool)
    return next(dtype for dtype in (*usual, *op.dtypes) if dtype in op.dtypes)


# ---------------------------------------------------------------- models


class Copies(nn.Module):
    """A copy of every tensor: an operation that is exact for every element type."""

    def forward(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in tensors]


class Call(nn.Module):
    """Calls a function, or a module, with tensors put between its other arguments."""

    def __init__(self, function: Callable[..., Any], arguments: Any) -> None:
        super().__init__()
        self.function = function
        leaves, self.form = pytree.tree_flatten(arguments)
        self.others = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def forward(self, tensors: Sequence[torch.Tensor]) -> Any:
        leaves = list(self.others)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.form)
        return self.function(*args, **kwargs)


class Around(nn.Module):
    """Copies of the tensors, what is tested, copies of its results; the first floating tensor is a parameter."""

    def __init__(self, op: Call, weight: torch.Tensor | None, place: int | None) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.ones(2))  # some samples have no tensor that could be a parameter
        self.weight = None if weight is None else nn.Parameter(weight.detach().clone(), weight.requires_grad)
        self.place = place
        self.before, self.op, self.after = Copies(), op, Copies()

    def forward(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Any:
        given = list(tensors)
        if self.weight is not None:
            given.insert(self.place, self.weight)
        out = self.op(self.before(given))
        leaves, form = pytree.tree_flatten(out)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        for place, copied in zip(places, self.after([leaves[i] for i in places]), strict=True):
            leaves[place] = copied
        return self.anchor * x, pytree.tree_unflatten(leaves, form)


@dataclass(frozen=True)
class Case:
    """One sample: a model and the tensors to call it with."""

    name: str
    model: nn.Module
    tensors: tuple[torch.Tensor, ...]


def case_of(name: str, function: Callable[..., Any], arguments: Any) -> Case:
    """A model of one call; ``arguments`` are (args, kwargs)."""
    call = Call(function, arguments)
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    place = next((i for i, tensor in enumerate(tensors) if tensor.is_floating_point()), None)
    weight = None if place is None else tensors.pop(place)
    return Case(name, Around(call, weight, place), tuple(tensors))


def operator_cases(name: str, in_place: bool = False, most: int | None = None) -> Iterator[Case]:
    """The samples of an operator, in the first of the usual element types that it has; ``most`` spread over them."""
    op, dtype = OPS[name], dtype_of(OPS[name])
    differentiable = op.supports_autograd and (dtype.is_floating_point or dtype.is_complex)
    function = op.inplace_variant if in_place else op.op
    for i, sample in _spread(op.sample_inputs("cpu", dtype, requires_grad=differentiable), most):
        arguments = ((sample.input, *sample.args), dict(sample.kwargs))
        yield case_of(f"{name}[{i}]", function, arguments)


def module_cases(name: str, training: bool, most: int | None = None) -> Iterator[Case]:
    """The samples of a module, in train or eval mode; ``most`` spread over them."""
    info, mode = MODULES[name], "train" if training else "eval"
    samples = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=True, training=training)
    for i, sample in _spread((sample for sample in samples if sample.forward_input is not None), most):
        made, called = sample.constructor_input, sample.forward_input
        torch.manual_seed(0)
        module = info.module_cls(*made.args, **made.kwargs).float().train(training)
        if isinstance(module, LazyModuleMixin):
            module(*called.args, **called.kwargs)  # makes its weights
        case = case_of(f"{name}[{i}, {mode}]", module, (called.args, called.kwargs))
        case.model.train(training)
        yield case


def _spread(samples: Iterable[Any], most: int | None) -> list[tuple[int, Any]]:
    """The samples with their numbers; ``most`` of them, evenly spaced, where there are more."""
    numbered = list(enumerate(samples))
    if most is None or len(numbered) <= most:
        return numbered
    return [numbered[(2 * k + 1) * len(numbered) // (2 * most)] for k in range(most)]


# ---------------------------------------------------------------- comparison


class Undefined(Exception):
    """The unsplit model raises: there is nothing to compare with."""


class Fall(Exception):
    """The model is not one graph, and ran equal all the same; the message is why."""


class Refusal(Exception):
    """autosplit refused; the message is the reason without names and numbers."""


def check(case: Case) -> str:
    """Split one sample and compare it with the unsplit model, forward and backward, bit for bit.

    torch runs other operators under Dynamo in places (``addcdiv`` becomes div, mul, add). There the split must equal,
    bit for bit, what ``torch.compile(backend="eager")`` makes of the unsplit model, and the unsplit model closely.

    Returns:
        "equal", or "close" where it equals only the compiled model bit for bit.

    Raises:
        Undefined: the unsplit model itself cannot run.
        Fall: the model is no one graph; it ran in several pieces, and equal.
        Refusal: autosplit refused the model.
        AssertionError: something differs, or nothing crossed between devices.
    """
    with sim.cluster("2x1GiB") as cluster:
        want = _unsplit(case)
        try:
            have, _ = _run_split(case, cluster, "graph")
        except autosplit.CaptureError as error:
            return _fallen(case, cluster, want, str(error))
        except AutosplitError as error:
            raise Refusal(f"{type(error).__name__}: {error}") from error
        crossed = [transfer for transfer in cluster.transfers if {transfer.src, transfer.dst} == {"sim:0", "sim:1"}]
        assert crossed or not _has_output(want), f"{case.name}: nothing crossed"
    return "equal" if _is_equal(case, want, have, [""]) else "close"


def _is_equal(case: Case, want: dict[str, Any], have: dict[str, Any], parts: Iterable[str]) -> bool:
    """Whether all is equal; else it is close, and equal where these parts of the unsplit model are compiled."""
    try:
        assert_same(want, have, case.name)
    except AssertionError as error:
        if "not equal" not in str(error):
            raise
        assert_same(want, have, case.name, CLOSE)
        compiled = copy.deepcopy(case.model)
        for path in parts:
            part = compiled.get_submodule(path)
            part.forward = torch.compile(part.forward, backend="eager", fullgraph=True)
        assert_same(observe(compiled, _given(case, "cpu")), have, f"{case.name} compiled")
        return False
    return True


def _run_split(case: Case, cluster: Any, capture: str) -> tuple[dict[str, Any], Sequence[str]]:
    """What is observed of the split model, and the parts of it that are graphs where the whole is none."""
    split, parts = _split(copy.deepcopy(case.model), _given(case, "sim:0"), capture)
    cluster.clear_transfers()
    return observe(split, _given(case, "sim:0")), parts


def _fallen(case: Case, cluster: Any, want: dict[str, Any], why: str) -> str:
    """What is not one graph runs in Python, where its weights and inputs are; that must be equal too."""
    try:
        have, parts = _run_split(case, cluster, "auto")
    except AutosplitError as error:
        raise Refusal(f"{type(error).__name__}: {error}") from error
    if case.name.startswith("linalg.lstsq"):  # LAPACK's last bits depend on where in memory its input is
        assert_same(want, have, case.name, CLOSE)
    elif not _is_equal(case, want, have, parts):
        why = f"close: {why}"
    raise Fall(why)


def _unsplit(case: Case) -> dict[str, Any]:
    try:
        return observe(copy.deepcopy(case.model).to("sim:0"), _given(case, "sim:0"))
    except Exception as error:
        raise Undefined(f"{type(error).__name__}: {error}") from error


def _given(case: Case, device: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    moved = [tensor.detach().to(device, copy=True).requires_grad_(tensor.requires_grad) for tensor in case.tensors]
    return torch.full((2,), 3.0, device=device), moved


def _split(model: nn.Module, args: tuple[Any, ...], capture: str) -> tuple[nn.Module, Sequence[str]]:
    """The operator on another device than its inputs; where it stays with them, its outputs go to another."""
    for placement in (_AROUND, _TOGETHER):
        plan = _plan(model, args, placement, capture)
        if plan.transfers:
            break
    return autosplit.partition(model, plan.cluster.names, plan=plan), plan.parts


def _plan(model: nn.Module, args: tuple[Any, ...], placement: dict[str, str], capture: str) -> autosplit.Plan:
    while True:
        try:
            return autosplit.plan(
                model, ["sim:0", "sim:1"], args, optimizer="sgd", placement=placement, capture=capture
            )
        except PlanError as error:
            idle = re.match("placement key '(.*?)'", str(error))  # no tensor goes in, or none comes out
            if idle is None:
                raise
            placement = {key: device for key, device in placement.items() if key != idle[1]}
            if not placement:
                raise Undefined("has no tensor in and none out") from error


def observe(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """The results with their structure, and in training the gradients that random ones give, by name."""
    torch.manual_seed(7)
    with torch.set_grad_enabled(model.training):
        out = model(*args)
    leaves, form = pytree.tree_flatten(out)
    seen: dict[str, Any] = {"structure": str(form)}
    seen |= {f"out {i}": leaf for i, leaf in enumerate(leaves)}
    roots = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    seen |= {"differentiable": [isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves]}
    if roots:
        torch.autograd.backward(roots, [_gradient(root) for root in roots])
    seen |= {f"grad {name}": weight.grad for name, weight in model.named_parameters()}
    seen |= {f"buffer {name}": buffer for name, buffer in model.named_buffers()}
    seen |= {f"in {i}": leaf for i, leaf in enumerate(args[1])}
    seen |= {f"grad in {i}": leaf.grad for i, leaf in enumerate(args[1])}
    return {name: _noted(value) for name, value in seen.items()}


def _gradient(root: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(root.numel())
    return torch.randn(root.shape, generator=generator, dtype=root.dtype).to(root.device)


def _noted(value: Any) -> Any:
    return (str(value.device), value.detach().cpu().clone()) if isinstance(value, torch.Tensor) else value


def assert_same(want: dict[str, Any], have: dict[str, Any], what: str, tolerance: float = 0.0) -> None:
    assert [name.replace("_orig_mod.", "") for name in want] == list(have), what
    for (name, expected), found in zip(want.items(), have.values(), strict=True):
        if not isinstance(expected, tuple):
            assert _same_value(expected, found), (what, name, expected, found)
            continue
        assert isinstance(found, tuple), (what, name, found)
        # Weights are at home; an output is where the inputs came from, also what a factory made on the host.
        assert not name.startswith(("out", "in")) or found[0] == "sim:0", (what, name, found[0])
        _assert_equal(expected[1], found[1], f"{what} {name}", tolerance)


def _assert_equal(expected: torch.Tensor, found: torch.Tensor, what: str, tolerance: float) -> None:
    """Bit for bit without a tolerance, but that every nan is equal to every other."""
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda said: f"{what}: {said}"
    )
    if not tolerance:
        assert torch.equal(_negative_zeros(expected), _negative_zeros(found)), f"{what}: signs of zeros"


def _same_value(expected: Any, found: Any) -> bool:
    return type(expected) is type(found) and (expected == found or (expected != expected and found != found))


def _negative_zeros(tensor: torch.Tensor) -> torch.Tensor:
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if not parts.is_floating_point():
        return torch.zeros(0)
    parts = parts.float() if parts.itemsize == 1 else parts  # float8 has few kernels
    return parts.signbit() & (parts == 0)


def _has_output(seen: dict[str, Any]) -> bool:
    """Whether the operator returned a tensor with elements; the first output is the anchor."""
    tensors = [value[1] for name, value in seen.items() if name.startswith("out") and isinstance(value, tuple)]
    return any(tensor.numel() for tensor in tensors[1:])


def outcomes(cases: Iterable[Case]) -> Iterator[tuple[str, str, str]]:
    """(case, "equal" | "close" | "fell" | "undefined" | "refused" | "different" | "raw error", reason) of each case."""
    for case in cases:
        try:
            yield case.name, check(case), ""
        except Undefined as error:
            yield case.name, "undefined", str(error)
        except Fall as error:
            yield case.name, "fell", str(error)
        except Refusal as error:
            yield case.name, "refused", str(error)
        except AssertionError as error:
            yield case.name, "different", str(error)
        except Exception as error:
            yield case.name, "raw error", f"{type(error).__name__}: {error}"
