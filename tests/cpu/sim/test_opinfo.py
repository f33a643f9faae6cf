"""torch's own operator database: every operator's forward and backward on a sim device equals the CPU's bit for bit."""

import itertools
import sys
import types
import unittest
import warnings

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from autosplit import sim


def load_database():
    """The database imports expecttest only for a base class, and warns while importing."""
    stand_in = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    sys.modules.setdefault("expecttest", stand_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return op_db


def full_name(op):
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


OPS = {full_name(op): op for op in load_database()}

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
# LAPACK's answer depends on the alignment of the memory it is given.
CLOSE = {"linalg.lstsq": 1e-4, "linalg.lstsq.grad_oriented": 1e-4}


def dtype_of(op):
    usual = (torch.float32, torch.int64, torch.complex64, torch.bool)
    return next(dtype for dtype in (*usual, *op.dtypes) if dtype in op.dtypes)


def run(op, sample, device):
    """Outputs, then gradients of the sum of their squares, of one sample on ``device``."""

    def place(value):
        if isinstance(value, torch.device):
            return torch.device(device)
        if isinstance(value, torch.Tensor):
            return value.detach().to(device, copy=True).requires_grad_(value.requires_grad)
        return value

    args = tree_map(place, (sample.input, sample.args, sample.kwargs))
    if "device" in args[2] or op.is_factory_function:
        args[2]["device"] = device
    torch.manual_seed(0)
    outputs = [value for value in tree_leaves(op(args[0], *args[1], **args[2])) if isinstance(value, torch.Tensor)]
    roots = [value for value in outputs if value.requires_grad and value.is_floating_point()]
    leaves = [value for value in tree_leaves(args) if isinstance(value, torch.Tensor) and value.requires_grad]
    if not (roots and leaves):
        return outputs
    loss = sum((value * value).sum() for value in roots)
    return outputs + [g for g in torch.autograd.grad(loss, leaves, allow_unused=True) if g is not None]


def compare(name, sample, device):
    expected, found = run(OPS[name], sample, "cpu"), run(OPS[name], sample, device)
    assert {value.device for value in found} <= {device}
    for ours, theirs in zip(found, expected, strict=True):
        off = CLOSE.get(name, 0)
        torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=off, atol=off, equal_nan=True)


def compare_samples(name, count):
    op = OPS[name]
    dtype = dtype_of(op)
    samples = op.sample_inputs("cpu", dtype, requires_grad=op.supports_autograd and dtype.is_floating_point)
    with sim.cluster("2x4GiB") as cluster:
        for sample in itertools.islice(samples, count):
            compare(name, sample, cluster.devices[1])
        assert cluster.allocated_bytes("sim:1") == 0


# Deprecated and experimental operators say so on any device; that a result is resized would be our doing.
pytestmark = pytest.mark.filterwarnings("ignore", "error:An output with one or more elements was resized")
SUPPORTED = [name for name in OPS if name not in UNSUPPORTED]


@pytest.mark.parametrize("name", SUPPORTED)
def test_first_samples(name):
    compare_samples(name, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", SUPPORTED)
def test_all_samples(name):
    compare_samples(name, None)


def test_the_list_of_unsupported_operators_is_short_and_real():
    assert set(UNSUPPORTED) <= set(OPS)
    assert len(SUPPORTED) >= 680
