"""Tensors made in forward, and tensors of every kind of number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from semantics import ROWS, Case, Net, W, check, families, modes, of, rows
from torch import nn

# ---------------------------------------------------------------- made in forward


def factories(m, h):
    positions = torch.arange(W, device=h.device, dtype=h.dtype)
    steps = torch.linspace(0, 1, W, dtype=h.dtype, device=m.l2.weight.device)
    ones = torch.ones(1, W, device=h.device).double()
    mask = torch.triu(torch.full((W, W), -1.0, device=h.device, dtype=h.dtype), 1)
    table = torch.tensor([[1.0, 2.0]], device=h.device, dtype=h.dtype).repeat(1, 4)
    return m.l3((m.l2(h) + positions * steps) @ mask) * table + ones + torch.eye(W, device=h.device)[:ROWS].to(h)


def made_from_a_tensor(m, h):
    a = m.l2(h)
    fresh = a.new_zeros(ROWS, W) + h.new_full((W,), 0.5) + a.new_tensor([1.0] * W) + h.new_ones(1)
    noise = torch.zeros_like(a) + torch.full_like(h, 2.0) + torch.empty_like(h).fill_(1)
    counts = torch.arange(W).type_as(h).to(a)
    return m.l3(fresh * noise) + counts.to(h.device) + torch.zeros(1).to(h)


def moved_to_a_weight(m, h):
    weight = m.l3.weight
    shifted = h.to(weight.device, weight.dtype) + torch.ones(W, dtype=weight.dtype).to(weight.device)
    return m.l3(shifted).to(h.device) + torch.zeros(2, device=next(m.l2.parameters()).device).sum()


def literal_cpu(m, h):
    mask = torch.tril(torch.ones(W, W, dtype=torch.bool, device="cpu"))
    plain = torch.zeros(1) + torch.arange(W) + torch.tensor([1.0]) + torch.tensor(2.5)
    return m.l2(h).masked_fill(~mask[:ROWS], 0.0).cpu() + m.l3(h.to("cpu")) + plain


FACTORIES = {
    "with the input's device": of(factories),
    "from a tensor": of(made_from_a_tensor),
    "with a weight's device": of(moved_to_a_weight),
    "with a literal cpu": Case(lambda: Net(literal_cpu), home="cpu"),
}

# ---------------------------------------------------------------- dtypes


def integers(m, h, n):
    counts = (h > 0).long().cumsum(-1)
    hashed = (n * 31 + counts) % 7
    flags = (hashed > 3) & ~(n == 2) | torch.zeros_like(n, dtype=torch.bool)
    n.bitwise_xor_(5)
    return m.l2(h) * flags, hashed // 2, flags, n.to(torch.int8), F.one_hot(hashed, 7).any(-1), m.l3(flags.to(h.dtype))


def spectra(m, h):
    spectrum = torch.fft.fft(m.l2(h))
    pairs = torch.view_as_complex(m.l3(h).reshape(ROWS, W // 2, 2))
    rotated = pairs * torch.polar(torch.ones_like(h[:, :4]), h[:, :4])
    mixed = torch.view_as_real(rotated).reshape(ROWS, W)
    return torch.fft.ifft(spectrum.conj() * 1j).real + mixed, spectrum.abs(), rotated, spectrum.imag


def mixed_floats(m, h):
    low = m.l2(h).to(torch.bfloat16)
    half = (h.half() * 0.5).float()
    return m.l3(low.double() * half), low, half.double() @ m.l0.weight


def chain(m, x):
    return m.out(F.layer_norm(F.gelu(m.mid(m.inp(x))), (W,))).softmax(-1)


class Chain(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inp, self.mid, self.out = (nn.Linear(W, W, dtype=dtype) for _ in range(3))
        self.table = nn.Embedding(5, W, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return chain(self, x * self.table.weight[2])


class Eights(nn.Module):
    """A weight of int8 and its scale."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight8", torch.randint(-127, 127, (W, W), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(W, 1) / 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight8.to(x.dtype) * self.scale)


class Fours(nn.Module):
    """Two int4 in each byte, a scale and a zero point by group."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", torch.randint(0, 256, (W, W // 2), dtype=torch.uint8))
        self.register_buffer("scales", torch.rand(W, 2) / 10)
        self.register_buffer("zeros", torch.randint(0, 16, (W, 2), dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack([self.packed & 15, self.packed >> 4], dim=-1).reshape(W, 2, W // 2)
        weight = (both.to(x.dtype) - self.zeros[..., None].to(x.dtype)) * self.scales[..., None].to(x.dtype)
        return F.linear(x, weight.reshape(W, W))


def dtype_case(dtype: torch.dtype) -> Case:
    return Case(lambda: Chain(dtype), lambda: (rows(dtype=dtype),), whole=True)


DTYPES = {
    "integers and bools": Case(lambda: Net(integers), lambda: (torch.randint(0, 9, (ROWS, W)),)),
    "complex": of(spectra),
    "mixed": of(mixed_floats),
    "float32": dtype_case(torch.float32),
    "bfloat16": dtype_case(torch.bfloat16),
    "float16": dtype_case(torch.float16),
    "int8 weights": of(lambda m, h: m.l2(m.packed(h)) + m.packed(m.l3(h)), packed=Eights),
    "int4 weights": of(lambda m, h: m.l2(m.packed(h)) + m.packed(m.l3(h)), packed=Fours),
}


CASES = families(factory=FACTORIES, dtype=DTYPES)


@pytest.mark.parametrize(("case", "training"), modes(CASES))
def test_values(case: Case, training: bool) -> None:
    check(case, training)
