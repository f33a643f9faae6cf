"""What runs on sim devices computes what the CPU computes, bit for bit unless a tolerance is named."""

import copy
import functools
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .nets import Attention, Recurrent, Split, batch_for, in_place, resnet, tied, train, transformer

OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "adamw": torch.optim.AdamW,
    "adamw for-loop": functools.partial(torch.optim.AdamW, foreach=False),
    "adamw fused": functools.partial(torch.optim.AdamW, fused=True),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


def same_training(build, optimizer, batch, devices, atol=0.0):
    losses, state = train(build, optimizer, batch)
    sim_losses, sim_state = train(build, optimizer, batch, devices)
    assert sim_losses == pytest.approx(losses, rel=0, abs=atol)
    torch.testing.assert_close(sim_state, state, rtol=0, atol=atol)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_convolutions_and_batch_norm(two, optimizer):
    same_training(resnet, optimizer, batch_for(resnet), two.devices)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_transformer(two, dropout):
    build = functools.partial(transformer, dropout)
    same_training(build, OPTIMIZERS["adamw"], batch_for(build), two.devices)


@pytest.mark.parametrize("build", [tied, in_place])
def test_tied_weights_and_in_place_changes(two, build):
    same_training(build, OPTIMIZERS["sgd"], batch_for(build), two.devices)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_cells(two, kind, bias):
    generator = torch.Generator().manual_seed(2)
    batch = torch.randn(4, 7, 16, generator=generator), torch.randint(0, 10, (28,), generator=generator)
    # The fused cells add in another order than the CPU's.
    same_training(lambda: (Recurrent(kind, bias), nn.Linear(32, 10)), OPTIMIZERS["sgd"], batch, two.devices, atol=1e-6)


class Recomputed(nn.Module):
    def __init__(self, reentrant, dropout):
        super().__init__()
        self.embedding, self.block, self.reentrant = nn.Embedding(100, 64), Attention(64, 4, dropout), reentrant

    def forward(self, x):
        return checkpoint(self.block, self.embedding(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize(("reentrant", "dropout"), [(False, 0.0), (True, 0.0), (False, 0.1)])
def test_checkpoint(two, reentrant, dropout):
    build = lambda: (Recomputed(reentrant, dropout), nn.Linear(64, 100))  # noqa: E731 - a model, not a function
    same_training(build, OPTIMIZERS["adamw"], batch_for(build), two.devices)


def test_attention_with_masks_and_dropout(two):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 8, 16).requires_grad_()
    mask = torch.rand(8, 8) > 0.3
    for options in ({}, {"is_causal": True}, {"attn_mask": mask}, {"attn_mask": mask.float()}, {"scale": 0.3}):
        expected = F.scaled_dot_product_attention(q, k, v, **options)
        on_sim = {name: o.to("sim:1") if isinstance(o, torch.Tensor) else o for name, o in options.items()}
        found = F.scaled_dot_product_attention(*(t.to("sim:1") for t in (q, k, v)), **on_sim)
        assert torch.equal(found.cpu(), expected)
    torch.manual_seed(1)
    expected = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(1)
    found = F.scaled_dot_product_attention(*(t.to("sim:1") for t in (q, k, v)), dropout_p=0.5)
    torch.testing.assert_close(found.cpu(), expected)


def test_save_load_and_deepcopy(two):
    torch.manual_seed(0)
    model = Split(*resnet(), two.devices)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    on_cpu = torch.load(file, map_location="cpu")
    file.seek(0)
    in_place_of = torch.load(file)
    assert {str(value.device) for value in in_place_of.values()} == {"sim:0", "sim:1"}
    for state in (on_cpu, in_place_of):
        model.load_state_dict(state)
    copied = copy.deepcopy(model)
    assert copied.head[0].weight.device == two.devices[0]
    assert all(torch.equal(value, on_cpu[name]) for name, value in copied.cpu().state_dict().items())


def test_module_moves_keep_the_parameters_and_their_ties(two):
    model, _ = tied()
    weight = model[0].weight
    watch, optimizer = weakref.ref(weight), torch.optim.SGD(model.parameters(), lr=1.0)
    for device in ("sim:0", "sim:1", "cpu", "sim:1"):
        model.to(device)
        assert model[0].weight is weight is model[2].weight is watch()
        assert str(weight.device) == device
    model(torch.zeros(1, 4, dtype=torch.long, device="sim:1")).sum().backward()
    before = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight, before)
    model.cpu()
    assert weight.grad.device.type == "cpu"


def test_swap_tensors_with_optimizer_weakref_and_old_graph(two):
    parameter = nn.Parameter(torch.ones(3))
    watch, optimizer = weakref.ref(parameter), torch.optim.SGD([parameter], lr=1.0)
    old_graph = (parameter * parameter).sum()
    torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().to("sim:1")))
    assert watch() is parameter
    assert parameter.device == two.devices[1]
    (parameter * 2).sum().backward()
    optimizer.step()
    assert parameter.tolist() == [-1.0] * 3
    with pytest.raises(RuntimeError, match="recorded before one of its parameters moved"):
        old_graph.backward()


def test_fx_and_export_modules_move(two):
    torch.manual_seed(0)
    x, _ = batch_for(resnet)
    traced = torch.fx.symbolic_trace(nn.Sequential(*resnet()))
    expected = copy.deepcopy(traced)(x)
    assert torch.equal(traced.to("sim:1")(x.to("sim:1")).cpu(), expected)
    tokens, _ = batch_for(transformer)
    exported = torch.export.export(nn.Sequential(*transformer()).eval(), (tokens,)).module()
    expected = exported(tokens)
    torch.testing.assert_close(exported.to("sim:1")(tokens.to("sim:1")).cpu(), expected)


def test_autocast_casts_and_keeps_low_copies_like_cuda(two):
    linear, x = nn.Linear(256, 256).to("sim:1"), torch.randn(4, 256, device="sim:1")
    before = two.allocated_bytes(1)
    with torch.autocast("sim", dtype=torch.bfloat16):
        once = linear(x)
        first = two.allocated_bytes(1) - before
        twice = linear(once)
        assert two.allocated_bytes(1) - before - first == 4 * 256 * 2  # no second copy of the weight
        assert F.relu(twice).dtype == torch.bfloat16
        full = (F.softmax(twice, -1), F.layer_norm(twice, (256,)), twice.sum(), twice.norm(), twice.atan2(x))
        assert {value.dtype for value in full} == {torch.float32}
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            F.binary_cross_entropy(twice.sigmoid(), twice.sigmoid())
    twice.sum().backward()
    assert linear.weight.grad.dtype == torch.float32
    del full, once, twice
    linear.zero_grad()
    assert two.allocated_bytes(1) == before


def test_backward_features_across_devices(two):
    torch.manual_seed(0)
    model, calls = Split(nn.Linear(3, 3), nn.Linear(3, 3), two.devices), []
    model.head.register_full_backward_hook(lambda *_: calls.append("hook"))
    x = torch.randn(2, 3, requires_grad=True)
    grads = torch.autograd.grad(model(x).pow(2).sum(), list(model.parameters()), create_graph=True)
    sum((grad.to("sim:0") ** 2).sum() for grad in grads).backward()
    assert model.head.weight.grad.device == two.devices[0]
    assert x.grad.device.type == "cpu"
    assert calls == ["hook"]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    clipped = torch.stack([p.grad.cpu().norm() for p in model.parameters()]).norm()
    assert norm.item() > 1e-3
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


def test_gradcheck_and_vmap(two):
    a = torch.randn(3, 3, dtype=torch.double, device="sim:1", requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: (a @ a).sin(), (a,))
    linear = nn.Linear(3, 3).to("sim:1")
    x = torch.randn(5, 3)
    assert torch.equal(torch.func.vmap(linear)(x.to("sim:1")).cpu(), torch.func.vmap(copy.deepcopy(linear).cpu())(x))


def test_reduced_precision_module(two):
    model = Split(*transformer(), two.devices).bfloat16()
    model(batch_for(transformer)[0]).float().sum().backward()
    assert model.tail[2].weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.sort()[1],
        lambda x: x.unique(),
        lambda x: x[x > 0],
        lambda x: x % 3,
        lambda x: torch.view_as_complex(x.view(-1, 2)).conj().imag.clone(),
        lambda x: torch.fft.fft(x).abs(),
        torch.linalg.svdvals,
        lambda x: F.interpolate(x[None, None], scale_factor=2, mode="bilinear"),
        lambda x: x.scatter_add(0, x.new_zeros(1, 10, dtype=torch.long), x),
        lambda x: x.unfold(0, 3, 1).sum(-1),
        lambda x: x.new_zeros(2, 3).resize_(4, 5).zero_(),
        lambda x: torch.sum(x, 0, out=x.new_empty(10)),
        lambda x: torch.tril(x) + torch.eye(10, device=x.device) * torch.tensor(2.0),
        lambda x: torch.randperm(7, device=x.device) + torch.arange(7, device=x.device),
        lambda x: torch.linspace(0, 1, 5, device=x.device),
        lambda x: torch.multinomial(x.abs(), 2),
        lambda x: x.to(torch.int8).to(memory_format=torch.contiguous_format).t(),
        lambda x: torch.special.entr(x.abs()).nan_to_num_(),
        lambda x: torch._efficientzerotensor(3, device=x.device) + x[0, :3],
    ],
)
def test_assorted_operators(two, run):
    x = torch.randn(10, 10, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(4)
    expected = run(x.clone())
    torch.manual_seed(4)
    found = run(x.to("sim:1"))
    assert found.device == two.devices[1]
    assert torch.equal(found.cpu(), expected)


def test_resize_keeps_the_elements(two):
    x = torch.arange(6.0, device="sim:1").view(2, 3)
    assert x.resize_(4, 3)[:2].flatten().tolist() == list(range(6))


def test_a_kernel_sees_that_one_tensor_was_given_twice(two):
    x = torch.ones(5, 1, device="sim:1")
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):  # its result is not resized
        x.logical_and_(torch.ones(5, 5, device="sim:1"))
    assert x.shape == (5, 1)

    attention, query = nn.MultiheadAttention(4, 2, batch_first=True).eval(), torch.randn(2, 3, 4)
    with torch.no_grad():
        expected, _ = attention(query, query, query)  # one kernel, which multiplies by all three weights at once
        moved = query.to("sim:1")
        found, _ = attention.to("sim:1")(moved, moved, moved)
    assert torch.equal(found.cpu(), expected)
