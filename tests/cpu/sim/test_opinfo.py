"""torch's own operator database: every operator's forward and backward on a sim device equals the CPU's bit for bit."""

import itertools

import pytest
import torch
from operators import OPS, SUPPORTED, UNSUPPORTED, dtype_of
from torch.utils._pytree import tree_leaves, tree_map

from autosplit import sim

# LAPACK's answer depends on the alignment of the memory it is given.
CLOSE = {"linalg.lstsq": 1e-4, "linalg.lstsq.grad_oriented": 1e-4}


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
