"""Regions and functions: autocast, gradient modes, checkpoints, custom and higher-order functions, second gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from semantics import ROWS, Case, Net, W, check, families, modes, of, rows
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = [
    # Dynamo itself makes an instance of a custom function, which torch calls deprecated.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # torch.cond called eagerly looks at the gradients of what it is given.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

# ---------------------------------------------------------------- autocast


class Floats(nn.Module):
    """Four float32 layers in a chain, so that autocast has something to cast."""

    def __init__(self, step=None) -> None:
        super().__init__()
        self.l0, self.l1, self.l2, self.l3 = (nn.Linear(W, W) for _ in range(4))
        self.norm = nn.LayerNorm(W)
        self.step = step or (lambda m, h: m.l2(F.gelu(m.norm(h))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.l3(self.step(self, self.l1(self.l0(x))))


def inside(m, h):
    with torch.autocast(h.device.type, dtype=torch.bfloat16):
        low = m.l2(m.norm(h))
        with torch.autocast(h.device.type, enabled=False):
            high = m.norm(low.float()).softmax(-1)
    return high + low


@torch.autocast("cpu", dtype=torch.bfloat16)
def decorated(m, h):
    return m.l2(h).float() + h.softmax(-1)


def island(m, h):
    with torch.autocast(h.device.type, enabled=False):
        high = m.l2(h.float())
    return m.norm(high) * h


def to_dtype_of(m, h):
    return torch.ones(W, dtype=torch.float32, device=h.device).to(h.dtype) * h


def floats(step=None, **options) -> Case:
    return Case(lambda: Floats(step), lambda: (rows(dtype=torch.float32),), whole=True, **options)


bfloat16 = partial(torch.autocast, dtype=torch.bfloat16)

AUTOCAST = {
    "by the caller": floats(context=bfloat16),
    "by the caller, with an island": floats(island, context=bfloat16),
    "by the caller, to the dtype of": floats(to_dtype_of, context=bfloat16),
    "inside forward": floats(inside, home="cpu"),
    "inside forward and around": floats(inside, home="cpu", context=bfloat16, train=False),
    "by a decorator": floats(decorated, home="cpu"),
}

# ---------------------------------------------------------------- gradient modes


def no_grad_target(m, h):
    with torch.no_grad():
        target = m.l2(h).softmax(-1)
        kept = m.l0(h)
    return F.mse_loss(m.l2(h), target), kept * m.l0(h)


def grad_within_no_grad(m, h):
    with torch.no_grad():
        a = m.l2(h)
        with torch.enable_grad():
            b = m.l3(a) * h
        c = b * 2
    return b + c, c


@torch.no_grad()
def frozen_step(m, h):
    return m.l2(h).relu()


def set_grad(m, h):
    torch.set_grad_enabled(False)
    a = m.l2(h)
    torch.set_grad_enabled(m.training)
    return m.l3(h) * a


def inference_region(m, h):
    with torch.inference_mode():
        scale = m.l2(h).abs().amax()
    return m.l3(h) / scale.clone()


def detached(m, h):
    a = m.l2(h.detach())
    return a * m.l3(h).detach(), h.detach() * 2


def hooked_in_forward(m, h):
    a = m.l2(h)
    if a.requires_grad:
        a.register_hook(lambda g: g * 3)
    return m.l3(a)


GRAD = {
    "a hook on an intermediate": of(hooked_in_forward),
    "no_grad": of(no_grad_target),
    "enable_grad within no_grad": of(grad_within_no_grad),
    "a decorator": of(lambda m, h: frozen_step(m, h) * m.l3(h)),
    "set_grad_enabled": of(set_grad),
    "inference_mode": Case(lambda: Net(inference_region), train=False),
    "detach": of(detached),
    "no_grad by the caller": Case(lambda: Net(no_grad_target), context=lambda _: torch.no_grad()),
    "inference_mode by the caller": Case(
        lambda: Net(no_grad_target), context=lambda _: torch.inference_mode(), grad=False
    ),
    "gradients on in eval": Case(lambda: Net(no_grad_target), train=False, context=lambda _: torch.enable_grad()),
}

# ---------------------------------------------------------------- checkpoints


def block(m, v, scale=1.0):
    return F.dropout(m.l2(F.gelu(m.l0(v))), 0.3, m.training) * scale


def checkpointed(m, h):
    a = checkpoint(block, m, h, use_reentrant=False)
    b = checkpoint(partial(block, scale=0.5), m, a, use_reentrant=False)
    return m.l3(F.dropout(b, 0.2, m.training)) + a


def checkpoint_with_keywords(m, h):
    return m.l3(checkpoint(lambda v, *, scale: block(m, v, scale), h, scale=2.0, use_reentrant=False))


def nested(m, h):
    def outer(v):
        return m.l0(checkpoint(block, m, v, use_reentrant=False)) + v

    return m.l3(checkpoint(outer, h, use_reentrant=False))


def of_a_module(m, h):
    return checkpoint(m.inner, checkpoint(m.inner, h, use_reentrant=False), use_reentrant=False)


def inner() -> nn.Module:
    return nn.Sequential(nn.Linear(W, W), nn.LayerNorm(W), nn.Dropout(0.2), nn.GELU())


CHECKPOINTS = {
    "of functions": of(checkpointed),
    "with keywords": of(checkpoint_with_keywords),
    "nested": of(nested),
    "of a module": of(of_a_module, inner=inner),
    "reentrant": Case(lambda: Net(lambda m, h: m.l3(checkpoint(partial(block, m), h, use_reentrant=True))), eval=False),
}

# ---------------------------------------------------------------- functions


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, factor, w):
        ctx.save_for_backward(v, w)
        ctx.factor = factor
        return v * v * factor, w.sum(0)

    @staticmethod
    def backward(ctx, g, g_sum):
        v, w = ctx.saved_tensors
        return g * v * 2.5 * ctx.factor, None, g_sum.expand_as(w)


class Straight(torch.autograd.Function):
    """Rounds forward, passes the gradient of what is small on unchanged."""

    @staticmethod
    def forward(v):
        return v.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0].abs() < 2)


def custom(m, h):
    a, total = Double.apply(m.l0(h), 0.5, m.l2.weight)
    return m.l3(a) + total, Straight.apply(m.l2(h) * 3)


@torch.library.custom_op("autosplit_tests::blend", mutates_args=())
def blend(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    return a * share + b * (1 - share)


blend.register_fake(lambda a, b, share: torch.empty_like(a))
blend.register_autograd(
    lambda ctx, g: (g * ctx.share, g * (1 - ctx.share), None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "share", inputs[2]),
)


@torch.library.custom_op("autosplit_tests::add_one", mutates_args=("a",))
def add_one(a: torch.Tensor) -> None:
    a.add_(1)


def custom_operators(m, h):
    a = m.l2(h).detach()
    add_one(a)
    return blend(m.l0(h), m.l3(h), 0.25) + a


def cond(m, h):
    return torch.cond(h.sum() > 0, lambda v: m.l2(v).sin(), lambda v: m.l3(v).cos(), (h,))


def cond_on_views(m, h):
    top = h[:2]
    return m.l0(torch.cond(top.amax() > 100, lambda v, w: v + w, lambda v, w: v * w.tanh(), (top, m.l2(h)[1:])))


def vmapped(m, h):
    scores = torch.vmap(lambda row: F.linear(row, m.l2.weight).softmax(-1))(h)
    return m.l3(torch.vmap(torch.dot)(scores, h)[:, None] * h)


def grad_inside(m, h):
    force = torch.func.grad(lambda v: m.l2(v).pow(2).sum())(h)
    return m.l3(h + force)


def functional(m, h):
    weights = {"weight": m.l2.weight * 0.5, "bias": m.l3.bias + 1}
    return torch.func.functional_call(m.l2, weights, (h,)) + m.l3(h)


def many_results(m, h):
    values, order = m.l2(h).sort(-1)
    top = m.l3(h).topk(3)
    deviation, mean = torch.std_mean(values, -1, keepdim=True)
    u, s, v = torch.linalg.svd(h, full_matrices=False)
    return values.gather(1, order), top.values + mean * deviation, top.indices, u * s @ v


FUNCTIONS = {
    "autograd.Function": of(custom),
    "custom operators": of(custom_operators),
    "cond": of(cond),
    "cond on views": of(cond_on_views),
    "vmap": of(vmapped),
    "grad": of(grad_inside),
    "functional_call": of(functional),
    "many results": of(many_results),
}

# ---------------------------------------------------------------- attention


def heads(m, h):
    return [layer(h).view(1, ROWS, 2, 4).transpose(1, 2) for layer in (m.l0, m.l2, m.l3)]


def attend(m, h, **options):
    return F.scaled_dot_product_attention(*heads(m, h), **options).transpose(1, 2).reshape(ROWS, W)


def masked(m, h, mask):
    return attend(m, h, attn_mask=mask)


def grouped(m, h):
    q = m.wide(h).view(1, ROWS, 4, 4).transpose(1, 2)
    _, k, v = heads(m, h)
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, is_causal=True)
    return m.narrow(out.transpose(1, 2).reshape(ROWS, 2 * W))


def with_backend(m, h):
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return attend(m, h, scale=0.25)


ATTENTION = {
    "causal": of(partial(attend, is_causal=True)),
    "bool mask": Case(lambda: Net(masked), lambda: (torch.ones(ROWS, ROWS).tril().bool(),)),
    "float mask": Case(lambda: Net(masked), lambda: (rows(1, 2, ROWS, ROWS),)),
    "grouped": of(grouped, wide=lambda: nn.Linear(W, 2 * W), narrow=lambda: nn.Linear(2 * W, W)),
    "dropout": of(lambda m, h: attend(m, h, dropout_p=0.4 if m.training else 0.0)),
    "a chosen backend": of(with_backend),
}

CASES = families(autocast=AUTOCAST, grad=GRAD, checkpoint=CHECKPOINTS, function=FUNCTIONS, attention=ATTENTION)


@pytest.mark.parametrize(("case", "training"), modes(CASES))
def test_regions(case: Case, training: bool) -> None:
    check(case, training)
