"""One small model per trap, in train and eval mode, on random placements over three devices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from splitting import assert_equal, observe, split_at_random, sums_may_reorder, to
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from autosplit import sim

Forward = Callable[..., Any]
W = 8


class Model(nn.Module):
    """Linear layers ``l0`` to ``l3`` and a forward of the trap's own."""

    def __init__(self, forward: Forward, **modules: nn.Module) -> None:
        super().__init__()
        for i in range(4):
            setattr(self, f"l{i}", nn.Linear(W, W))
        for name, module in modules.items():
            setattr(self, name, module)
        self.double()
        self.trap = forward

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.l3(self.l0(x)), self.trap(self, self.l1(x), *args, **kwargs)


def x() -> torch.Tensor:
    return torch.randn(3, W, dtype=torch.float64)


def in_place_after_a_cut(m, h):
    a = m.l0(h)
    b = m.l1(h) + a
    c = a.clone()
    early = c * 0.5
    c.add_(b)
    return m.l2(early) + m.l3(c) + c


def alias_written_through(m, h):
    base = h * 2
    left, right = base[:, :4], base[:, 4:]
    stale = base * 0.5
    left.mul_(3)
    right.add_(left)
    return m.l0(stale), m.l2(base), left * 1


def in_place_on_an_input(m, h, y):
    y.add_(1)
    return m.l2(h + y), m.l3(y)


def regions_without_gradients(m, h):
    with torch.no_grad():
        target = m.l2(h).softmax(-1)
        scale = h.abs().max()
    return F.mse_loss(m.l2(h), target) + (h / scale).sum()


def autocast_region(m, h):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = torch.mm(h.float(), h.float().t())
    return m.l2(low.double() @ h)


def checkpointed(m, h):
    def block(v):
        return F.dropout(m.l2(F.gelu(m.l1(v))), 0.3, m.training)

    return m.l3(checkpoint(block, h, use_reentrant=False)) + h


def device_constants(m, h):
    positions = torch.arange(W, device=h.device, dtype=h.dtype)
    mask = torch.tril(torch.ones(W, W, dtype=torch.bool, device="cpu"))
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=h.dtype).repeat(2, 4)[:3]
    return m.l2(h + positions).masked_fill(~mask[:3], 0.0) + table + torch.zeros_like(h).to(h.device).cpu() * 2


def attention(m, h):
    q, k, v = (layer(h).view(3, 2, 4).transpose(0, 1) for layer in (m.l0, m.l1, m.l2))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(3, W)


def multi_output(m, h):
    values, order = m.l2(h).sort(-1)
    top = m.l3(h).topk(3)
    mean, deviation = torch.std_mean(values, -1, keepdim=True)
    return values.gather(1, order), top.values + mean[:, :1] * deviation, top.indices


def strided(m, h):
    windows = torch.as_strided(h.contiguous(), (3, 3, 4), (W, 2, 1))
    return m.l2(windows.reshape(3, 12)[:, :W])


def indices_in_a_list(m, h):
    """torch makes the indices on the host and hands them to the kernel of any device."""
    turned = h[..., [3, 1, 2, 0, 7, 6, 5, 4]] * 2
    turned[:, [0, 2]] = 0.5
    return m.l2(turned)


def mapped_by_vmap(m, h):
    scores = torch.vmap(lambda row: (m.l0(row) * 2).softmax(-1))(h)
    return m.l2(scores), m.l3(torch.vmap(torch.outer)(scores, h)[:, 0])


def asserted_values(m, h):
    torch._check_tensor_all(h.abs() < 1e6)
    return m.l2(h)


def rows_by_value(m, h):
    rows = (h[:, 0] > 0).nonzero().squeeze(1)
    chosen = h[h.sum(-1) > h.sum() / 3]
    return (
        m.l2(F.dropout(h[rows], 0.5, m.training)),
        m.l3(chosen),
        torch.zeros_like(h).index_add(0, rows, m.l0(h[rows])),
    )


def sizes_by_value(m, h):
    count = (h > 0).sum().item()
    return m.l2(h) * torch.ones(count, dtype=h.dtype, device=h.device).sum() / h.abs().max().item()


def numbers(m, h):
    rows, columns = h.size(0), h.shape[-1]
    return m.l2(h.reshape(columns, rows).t().contiguous()) / (rows * columns) + h.numel()


def nothing_and_inputs(m, h, y):
    return {"none": None, "input": y, "deep": [(m.l2(h), 3), {"text": "kept"}]}


def complex_and_integers(m, h):
    spectrum = torch.fft.rfft(m.l2(h), dim=-1)
    counts = (h > 0).long().cumsum(-1)
    return torch.fft.irfft(spectrum * (1 + 2j), n=W, dim=-1) + counts, counts, spectrum.abs()


def complex_outputs(m, h):
    return torch.fft.rfft(m.l2(h)), torch.view_as_complex(h.reshape(3, 4, 2)).sum()


def sizes_by_data(m, h):
    rows = m.l2(h[h[:, 0] > -1])
    values, counts = torch.unique((h * 2).detach().round(), return_counts=True)
    picked = h.masked_select(h > 0) * 2
    places = (h > 0.1).nonzero()
    return rows, values, counts, picked, places, m.l3(h)[places[:, 0], places[:, 1]]


def experts(m, h):
    weights, chosen = m.l2(h)[:, :3].softmax(-1).topk(2)
    out = torch.zeros_like(h)
    for number, expert in enumerate((m.l0, m.l1, m.l3)):
        row, slot = torch.where(chosen == number)
        out.index_add_(0, row, expert(h[row]) * weights[row, slot, None])
    return out


def a_number_read(m, h):
    return m.l2(h) / h.detach().abs().max().item()


def host_indices(m, h):
    order = torch.tensor([2, 0, 1], device="cpu")
    return m.l2(h[[1, 0, 2]]) + m.l3(h)[order, 0:8]


def literals_inside_an_operator(m, h):
    row, column = torch.unravel_index((h.abs() * 5).long(), (10, 10))
    window = torch.signal.windows.hann(W, dtype=h.dtype, device=h.device)
    return m.l2(h + row) * window - column


def quantised(m, h):
    return F.linear(h, m.packed.weight8.to(h.dtype) * m.packed.scale) + m.l2(h)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight8", torch.randint(-127, 127, (W, W), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(W, 1) / 100)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return v * v

    @staticmethod
    def backward(ctx, g):
        (v,) = ctx.saved_tensors
        return g * v * 2.5


def hooked() -> nn.Linear:
    layer = nn.Linear(W, W)
    layer.register_forward_hook(lambda module, args, out: out * 2)
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return layer


def frozen() -> nn.Linear:
    return nn.Linear(W, W).requires_grad_(False)


TRAPS: dict[str, tuple[Callable[[], Model], Callable[[], dict[str, torch.Tensor]]]] = {
    "in-place after a cut": (lambda: Model(in_place_after_a_cut), dict),
    "alias written through": (lambda: Model(alias_written_through), dict),
    "in-place on an input": (lambda: Model(in_place_on_an_input), lambda: {"y": x()}),
    "no_grad region": (lambda: Model(regions_without_gradients), dict),
    "autocast region": (lambda: Model(autocast_region), dict),
    "checkpoint with dropout": (lambda: Model(checkpointed), dict),
    "device constants": (lambda: Model(device_constants), dict),
    "attention": (lambda: Model(attention), dict),
    "multi-output": (lambda: Model(multi_output), dict),
    "as_strided": (lambda: Model(strided), dict),
    "indices in a list": (lambda: Model(indices_in_a_list), dict),
    "vmap": (lambda: Model(mapped_by_vmap), dict),
    "asserted values": (lambda: Model(asserted_values), dict),
    "rows by value": (lambda: Model(rows_by_value), dict),
    "sizes by value": (lambda: Model(sizes_by_value), dict),
    "numbers": (lambda: Model(numbers), dict),
    "None and an input returned": (lambda: Model(nothing_and_inputs), lambda: {"y": x()}),
    "complex and integers": (lambda: Model(complex_and_integers), dict),
    "complex outputs": (lambda: Model(complex_outputs), dict),
    "sizes by data": (lambda: Model(sizes_by_data), dict),
    "experts": (lambda: Model(experts), dict),
    "a number read": (lambda: Model(a_number_read), dict),
    "host indices": (lambda: Model(host_indices), dict),
    "literals inside an operator": (lambda: Model(literals_inside_an_operator), dict),
    "int8 weights": (lambda: Model(quantised, packed=Packed()), dict),
    "custom function": (lambda: Model(lambda m, h: m.l2(Double.apply(m.l0(h)))), dict),
    "hooks": (lambda: Model(lambda m, h: m.hooked(h), hooked=hooked()), dict),
    "frozen": (lambda: Model(lambda m, h: m.frozen(h), frozen=frozen()), dict),
    "weight norm": (lambda: Model(lambda m, h: m.wn(h), wn=parametrizations.weight_norm(nn.Linear(W, W))), dict),
    "spectral norm": (lambda: Model(lambda m, h: m.sn(h), sn=parametrizations.spectral_norm(nn.Linear(W, W))), dict),
    "batch norm": (lambda: Model(lambda m, h: m.l2(m.bn(h)), bn=nn.BatchNorm1d(W)), dict),
    "reused module": (lambda: Model(lambda m, h: m.l2(m.l2(m.l2(h)))), dict),
    "GRU": (lambda: Model(lambda m, h: m.gru(h[None])[0], gru=nn.GRU(W, W, 2, batch_first=True)), dict),
    "multi-head attention": (
        lambda: Model(lambda m, h: m.mha(h[None], h[None], h[None])[0], mha=nn.MultiheadAttention(W, 2)), dict
    ),
}  # fmt: skip


# Dynamo itself makes an instance of a custom function, which torch calls deprecated.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", TRAPS)
def test_trap(name: str, training: bool) -> None:
    build, inputs = TRAPS[name]
    for seed in range(4):
        torch.manual_seed(seed)
        model = build().train(training)
        unsplit = copy.deepcopy(model)
        kwargs = inputs()
        with sim.cluster("3x64MiB") as cluster:
            args, kwargs = to(((x(),), kwargs), "sim:0")
            split = split_at_random(model, args, kwargs, [str(d) for d in cluster.devices], seed)
            # A literal "cpu" in the model means the host to an unsplit model on another device.
            home = "cpu" if name in ("device constants", "autocast region") else "sim:0"
            unsplit.to(home)
            for _ in range(2):  # the second call meets the buffers that the first wrote
                want, have = observe(unsplit, *to((args, kwargs), home)), observe(split, args, kwargs)
                assert_equal(want, have, not sums_may_reorder(split), (name, seed))


def test_a_user_autocast_around_the_split_model() -> None:
    model = nn.Sequential(nn.Linear(W, W), nn.GELU(), nn.Linear(W, W)).eval()
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        args = to((torch.randn(3, W),), "sim:0")
        split = split_at_random(model, args, {}, [str(d) for d in cluster.devices], 1)
        unsplit.to("sim:0")
        with torch.autocast("sim", dtype=torch.bfloat16):
            want, have = unsplit(*args), split(*args)
        assert want.dtype == have.dtype == torch.bfloat16
        assert torch.equal(want.cpu(), have.cpu())
