"""Fakes that remember return what torch's own fake tensors do: forms, and which tensors share memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operators import OPS, UNSUPPORTED
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from autosplit import sim
from autosplit.program import accelerator_casts, fake_mode, tensor_leaves
from autosplit.program.fakes import _known

OPERATORS = {name: op for name, op in OPS.items() if torch.float32 in op.supported_dtypes("cpu")}
GROUPS = 12
MADE_INSIDE = ("ldexp", "mvlgamma", "linalg.pinv", "pinverse")
"""Made of listed operators below autocast: in a kernel they are cast too, on fakes there is no kernel."""


def form(tensor: torch.Tensor) -> Any:
    device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype, device, tensor.is_neg()


def described(result: Any, given: list[torch.Tensor]) -> Any:
    """Forms of the results, and for each which tensor before it has its memory, and which is it."""
    tensors = [*given, *tensor_leaves(result)]
    first: dict[int, int] = {}
    shares = [first.setdefault(tensor.untyped_storage()._cdata, i) for i, tensor in enumerate(tensors)]
    same = [next(i for i, other in enumerate(tensors) if other is tensor) for tensor in tensors]
    return [form(tensor) for tensor in tensor_leaves(result)], shares, same


def called(mode: FakeTensorMode, function: Any, sample: Any) -> Any:
    with mode:
        fakes: dict[int, Any] = {}

        def fake(tensor: torch.Tensor) -> Any:
            if id(tensor) not in fakes:
                fakes[id(tensor)] = mode.from_tensor(tensor)
            return fakes[id(tensor)]

        args, kwargs = pytree.tree_map_only(torch.Tensor, fake, ((sample.input, *sample.args), sample.kwargs))
        try:
            result = function(*args, **kwargs)
        except Exception as error:  # the same operators raise on both
            return type(error)
        return described(result, tensor_leaves((args, kwargs)))


@pytest.mark.parametrize("group", range(GROUPS))
@pytest.mark.filterwarnings("ignore")
def test_same_as_torch(group: int) -> None:
    compared = 0
    for name in sorted(OPERATORS)[group::GROUPS]:
        op = OPERATORS[name]
        for function in filter(None, (op.op, op.get_inplace())):
            if name in UNSUPPORTED:  # sparse tensors among them, which have no storage
                continue
            sample = next(iter(op.sample_inputs("cpu", torch.float32, requires_grad=False)), None)
            if sample is None:
                continue
            want = called(FakeTensorMode(allow_non_fake_inputs=True), function, sample)
            for _ in range(2):
                assert called(fake_mode(), function, sample) == want, (name, function)
            compared += not isinstance(want, type)
    assert compared > 30


def test_is_remembered() -> None:
    with fake_mode():
        x, y = torch.empty(3, 5), torch.empty(5, 7)
        x @ y
        before = len(_known)
        for _ in range(3):
            z = (torch.empty(3, 5) @ y).t()
        assert len(_known) <= before + 2
        assert z.shape == (7, 3)


def test_devices_dtypes_and_strides_are_told_apart() -> None:
    with fake_mode():
        for device in ("cpu:0", "cpu:1"):
            for dtype in (torch.float32, torch.bfloat16):
                for x in (
                    torch.empty(4, 6, device=device, dtype=dtype),
                    torch.empty(6, 4, device=device).to(dtype).t(),
                ):
                    y = x + 1
                    assert (y.device, y.dtype, y.stride()) == (torch.device(device), dtype, x.stride())


def test_other_defaults_are_told_apart() -> None:
    with fake_mode():
        x = torch.empty(3, dtype=torch.int64)
        assert (x / 2).dtype == torch.float32
        torch.set_default_dtype(torch.float64)
        try:
            assert (x / 2).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def test_views_without_elements_are_not_taken_for_writes() -> None:
    mode = fake_mode()
    with mode:
        given = mode.from_tensor(torch.empty(0))
        views = [torch.ops.prims.as_strided.default(given, [0, 3], [3, 1], 0) for _ in range(2)]
    assert [tuple(view.shape) for view in views] == [(0, 3), (0, 3)]
    assert not any(view is given for view in views)


def test_of_lists_each_form_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _known.clear()
    ran: list[int] = []

    def counting(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._foreach_lerp_.Scalar:
            ran.append(len(args[0]))
        return torch_dispatch(mode, func, types, args, kwargs)

    torch_dispatch = FakeTensorMode.dispatch
    monkeypatch.setattr(FakeTensorMode, "dispatch", counting)
    mode = fake_mode()
    with mode:
        first, second = ([torch.empty(size) for size in (3, 4, 3, 3, 4)] for _ in range(2))
        assert torch._foreach_lerp_(first, second, 0.5)[4] is first[4]
        assert ran == [2]
        with pytest.raises(RuntimeError, match="broadcast"):
            torch._foreach_lerp_(first, [*second[:4], torch.empty(5)], 0.5)
        with pytest.raises(RuntimeError, match="same number of tensors"):
            torch._foreach_lerp_(first, second[:4], 0.5)


def dtypes_under_autocast(kind: str, function: Any, arguments: Any) -> list[torch.dtype] | None:
    """Of what an operator returns; None of one that does not run there."""
    args, kwargs = arguments
    try:
        with torch.autocast(kind, dtype=torch.bfloat16):
            return [tensor.dtype for tensor in tensor_leaves(function(*args, **kwargs))]
    except Exception:  # of values that fakes have not, or of a dtype that the kernel has not
        return None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.filterwarnings("ignore")
def test_autocast_gives_fakes_the_dtypes_of_an_accelerator(dtype: torch.dtype) -> None:
    same, unlike = 0, []
    with sim.cluster(["1GiB"]):
        for name, op in sorted(OPS.items()):
            if name in UNSUPPORTED or dtype not in op.supported_dtypes("cpu"):
                continue
            sample = next(iter(op.sample_inputs("cpu", dtype, requires_grad=False)))
            given = (sample.input, *sample.args), sample.kwargs
            there = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("sim:0"), given)
            seen = dtypes_under_autocast("sim", op.op, there)
            mode = fake_mode()
            with mode, accelerator_casts():
                found = dtypes_under_autocast("cpu", op.op, pytree.tree_map_only(torch.Tensor, mode.from_tensor, given))
            if None not in (seen, found) and not name.startswith(MADE_INSIDE):
                same += seen == found
                unlike += [name] if seen != found else []
    assert unlike == []
    assert same > 500
