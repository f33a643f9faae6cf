"""Tensors written in place, views, aliases, inputs and outputs: a split model keeps what shares memory with what."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from semantics import ROWS, Case, Net, W, check, families, modes, of, rows
from splitting import split_in_turns
from torch import nn

from autosplit import sim

# ---------------------------------------------------------------- written in place


def written_between_two_readers(m, h):
    a = m.l0(h) * 1
    early = a * 0.5
    a.mul_(3)
    late = a + 1
    a += m.l2(early)
    return m.l2(late), m.l3(a)


def written_by_an_index(m, h):
    a = m.l0(h) * 2
    a[:, 1] = m.l2(h)[:, 0]
    a[0] = 1.5
    a[a > 1] = 0.25
    return m.l3(a), a


def written_by_scatter(m, h):
    a = torch.zeros_like(h)
    a.scatter_(1, h.argsort(1), m.l2(h))
    a.index_add_(0, torch.tensor([0, 2], device=h.device), m.l3(h)[:2])
    a.masked_fill_(h > 0.5, 0.1)
    return m.l0(a) + a


def written_by_copy(m, h):
    a = torch.empty_like(h)
    a.copy_(m.l2(h))
    b = torch.empty(ROWS, 2 * W, dtype=h.dtype, device=h.device)
    b[:, :W].copy_(a)
    b[:, W:].fill_(0.5)
    return m.l3(b[:, :W] * b[:, W:])


def written_by_activations(m, h):
    a = m.l0(h)
    b = F.relu(a, inplace=True)
    c = F.hardtanh_(m.l2(b) + a)
    return m.l3(c), F.threshold_(c * 2, 0.1, 0.0), a


def written_by_out(m, h):
    with torch.no_grad():
        a = torch.empty_like(h)
        torch.add(h, m.l2(h), out=a)
        torch.mul(a, a, out=a)
    return m.l3(h) * a


def written_by_foreach(m, h):
    parts = [h * 1, h * 2, m.l2(h)]
    torch._foreach_mul_(parts, 0.5)
    return m.l0(parts[0]) + m.l3(parts[1]) + parts[2]


def shape_changed_in_place(m, h):
    a = m.l0(h) * 1
    a.t_()
    a.unsqueeze_(0)
    return m.l3(a.squeeze(0).t())


def zeroed_then_summed(m, h):
    total = torch.zeros_like(h)
    for layer in (m.l0, m.l2, m.l3):
        total += layer(h)
        total.div_(2)
    return total


WRITTEN = {
    "between two readers": of(written_between_two_readers),
    "by an index": of(written_by_an_index),
    "by scatter": of(written_by_scatter),
    "by copy_": of(written_by_copy),
    "by activations": of(written_by_activations),
    "by out=": of(written_by_out),
    "by foreach": of(written_by_foreach),
    "its shape": of(shape_changed_in_place),
    "an accumulator": of(zeroed_then_summed),
}

# ---------------------------------------------------------------- views and aliases


def views_of_a_weight(m, h):
    top, bottom = m.l2.weight[:4], m.l2.weight.narrow(0, 4, 4)
    left = F.linear(h, top, m.l2.bias[:4])
    right = F.linear(left, bottom[:, :4])
    return F.linear(torch.cat([left, right], 1), m.l3.weight.t())


def one_weight_in_three(m, h):
    q, k, v = m.qkv.chunk(3)
    scores = F.linear(h, q) @ F.linear(h, k).t()
    return scores.softmax(-1) @ F.linear(h, v)


def weight_written(m, h):
    with torch.no_grad():
        before = m.l2(h)
        m.l2.weight.clamp_(-0.1, 0.1)
        m.l2.weight[:, 0].zero_()
        m.l2.bias.mul_(0.5)
    return m.l0(before) + F.linear(h, m.l2.weight, m.l2.bias)


def view_written(m, h):
    base = m.l0(h) * 1
    window = base[:, 2:6]
    early = base.sum(1)
    window.mul_(m.l2(h)[:, :4])
    base.diagonal()[:2].add_(1)
    return early, m.l3(base), window * 1


def base_written(m, h):
    base = m.l0(h) * 1
    view = base.t()[1:5]
    deeper = view.unsqueeze(0).transpose(1, 2)
    before = deeper * 0.5
    base.add_(m.l2(h))
    return before, deeper * 2, view.tanh()


def unbound(m, h):
    first, second, third = m.l2(h).unbind(0)
    a, b = m.l0(h).split([3, 5], dim=1)
    c, d, e = h.chunk(3, dim=1)
    return torch.outer(first, second) @ third, a.amax() * b, F.pad(c * e.amax(), (0, 1)) + d.amin()


def narrow_written(m, h):
    base = m.l0(h) * 1
    for i in range(ROWS):
        base.narrow(0, i, 1).add_(m.l2(h[i])[None] * base.detach().amax())
    return m.l3(base)


def expanded(m, h):
    wide = m.l2(h).mean(0, keepdim=True).expand(ROWS, W)
    column = h[:, :1].expand_as(h)
    return m.l3(wide) * column + m.scale.expand(ROWS, W)


def strided(m, h):
    base = m.l0(h).contiguous()
    windows = base.as_strided((ROWS, 3, 4), (W, 2, 1))
    rolled = base.unfold(1, 4, 2)
    return m.l2((windows * rolled).reshape(ROWS, 12)[:, :W])


def strided_written(m, h):
    base = m.l0(h) * 1
    torch.as_strided(base, (ROWS, 2), (W, 3), 1).fill_(0.5)
    return m.l3(base)


def detached_alias(m, h):
    a = m.l0(h) * 1
    shadow = a.detach()
    a.mul_(2)
    return m.l2(shadow), m.l3(a), shadow.sum()


def permuted(m, h):
    a = m.l0(h).view(ROWS, 2, 4).permute(2, 0, 1)
    b = a.transpose(0, 2).movedim(0, 1).flip(0)
    return m.l2(b.reshape(ROWS, W)) + a.swapaxes(0, 1).reshape(ROWS, W)


def reshape_that_may_view(m, h):
    a = m.l0(h) * 1
    same = a.reshape(ROWS, W)
    flat = a.reshape(-1)
    flat[3:7] = 0.5
    return m.l3(same), m.l2(a)


VIEWS = {
    "of a weight": of(views_of_a_weight),
    "one weight in three": of(one_weight_in_three, qkv=lambda: nn.Parameter(torch.randn(3 * W, W))),
    "a weight written": of(weight_written),
    "written": of(view_written),
    "its base written": of(base_written),
    "unbound": of(unbound),
    "narrow written": of(narrow_written),
    "expanded": of(expanded, scale=lambda: nn.Parameter(torch.randn(1, W))),
    "strided": of(strided),
    "strided and written": of(strided_written),
    "detached alias": of(detached_alias),
    "permuted": of(permuted),
    "reshape that may view": of(reshape_that_may_view),
}

# ---------------------------------------------------------------- outputs and inputs


def outputs_are_views(m, h, y):
    a = m.l2(h)
    return y[:2], y.t(), a, a[:, :3], a.t(), y


def outputs_repeat(m, h, y):
    a = m.l2(h)
    return a, {"again": a, "input": y, "weight": m.l3.weight, "buffer": m.table}, (a, None, 3, "text")


def input_written(m, h, y, *, z):
    y.mul_(m.l2(h))
    z["deep"][0][:, 1:3] += 1
    return m.l3(y) + z["deep"][0]


def input_view_written(m, h, y):
    y.t()[0].fill_(0.75)
    early = y * 2
    y[:, 3].copy_(m.l2(early)[:, 0])
    return early, y


OUTPUTS = {
    "are views": Case(lambda: Net(outputs_are_views), lambda: (rows(),)),
    "repeat": Case(lambda: Net(outputs_repeat, table=torch.randn(2, 2)), lambda: (rows(),)),
    "and inputs written": Case(
        lambda: Net(input_written), lambda: (rows(),), lambda: {"z": {"deep": [rows(), rows()]}}, grad=False
    ),
    "and a view of an input written": Case(lambda: Net(input_view_written), lambda: (rows(),), grad=False),
}


CASES = families(written=WRITTEN, view=VIEWS, outputs=OUTPUTS)


@pytest.mark.parametrize(("case", "training"), modes(CASES))
def test_aliases(case: Case, training: bool) -> None:
    check(case, training)


def test_an_output_that_is_a_view_of_an_input_shares_its_memory() -> None:
    model = Net(lambda m, h, y: (m.l2(h), y[:2]))
    with sim.cluster("2x64MiB") as cluster:
        x, y = rows().to("sim:0"), rows().to("sim:0")
        split = split_in_turns(model.eval(), (x, y), {}, [str(d) for d in cluster.devices])
        with torch.no_grad():
            _, (_, top) = split(x, y)
            y.zero_()
        assert not top.any()
