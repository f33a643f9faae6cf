"""generate() of a split transformers model: token for token as unsplit, each layer's KV cache where the layer is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import autosplit
from autosplit import sim

transformers = pytest.importorskip("transformers")

WORDS = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}


def llama() -> tuple[nn.Module, dict[str, str]]:
    config = transformers.LlamaConfig(
        num_hidden_layers=3, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4, **WORDS
    )
    return transformers.LlamaForCausalLM(config), {
        "model.embed_tokens": "sim:0", "model.layers.0": "sim:0", "model.layers.1": "sim:1", "model.layers.2": "sim:2",
        "lm_head": "sim:2",
    }  # fmt: skip


def gpt2() -> tuple[nn.Module, dict[str, str]]:
    config = transformers.GPT2Config(n_layer=3, n_embd=32, n_head=4, n_positions=64, **WORDS)
    return transformers.GPT2LMHeadModel(config), {
        "transformer.wte": "sim:0", "transformer.h.0": "sim:0", "transformer.h.1": "sim:1", "transformer.h.2": "sim:2",
    }  # fmt: skip


def t5() -> tuple[nn.Module, dict[str, str]]:
    config = transformers.T5Config(
        num_layers=2, d_model=32, d_kv=8, d_ff=64, num_heads=4, decoder_start_token_id=0, **WORDS
    )
    return transformers.T5ForConditionalGeneration(config), {
        "encoder.block.0": "sim:0", "encoder.block.1": "sim:2", "decoder.block.0": "sim:1", "decoder.block.1": "sim:2",
    }  # fmt: skip


MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "beams": {"do_sample": False, "num_beams": 3},
    "no cache": {"do_sample": False, "use_cache": False},
}


@pytest.mark.parametrize("build", [llama, gpt2, t5])
def test_generate_is_equal_token_for_token(build) -> None:
    torch.manual_seed(0)
    model, placement = build()
    unsplit = copy.deepcopy(model.eval())
    ids = torch.randint(2, 128, (2, 7))
    with sim.cluster(["1GiB"] * 3) as cluster:
        inputs = {"input_ids": ids.to("sim:0")}
        if build is t5:
            inputs["decoder_input_ids"] = ids[:, :1].to("sim:0")
        split = autosplit.partition(model, cluster.devices, kwargs=inputs, placement=placement)
        for name, how in MODES.items():
            torch.manual_seed(1)
            want = unsplit.generate(ids, max_new_tokens=5, **how)
            torch.manual_seed(1)
            have = split.generate(ids.to("sim:0"), max_new_tokens=5, **how)
            assert torch.equal(have.cpu(), want), name


def test_each_layers_cache_stays_with_the_layer() -> None:
    model, placement = llama()
    model.eval()
    with sim.cluster(["1GiB"] * 3) as cluster:
        ids = torch.randint(2, 128, (2, 7)).to("sim:0")
        split = autosplit.partition(model, cluster.devices, kwargs={"input_ids": ids}, placement=placement)
        with torch.no_grad():
            out = split(ids)
            assert str(out.logits.device) == "sim:0"
            homes = [str(layer.keys.device) for layer in out.past_key_values.layers]
            assert homes == ["sim:0", "sim:1", "sim:2"]
            before = len(cluster.transfers)
            split(ids[:, :1], past_key_values=out.past_key_values)
        layer_bytes = out.past_key_values.layers[0].keys.nbytes
        moved = [transfer for transfer in cluster.transfers[before:] if transfer.size_bytes >= layer_bytes]
        assert not moved, "a cache was moved between devices"


def test_a_decode_step_with_a_cache_can_be_planned() -> None:
    model, placement = llama()
    model.eval()
    with sim.cluster(["1GiB"] * 3) as cluster:
        ids = torch.randint(2, 128, (2, 7))
        with torch.no_grad():
            cache = model(ids).past_key_values
        kept = [layer.keys for layer in cache.layers]
        plan = autosplit.plan(
            model, cluster.devices, (ids[:, :1],), {"past_key_values": cache}, mode="infer", placement=placement
        )
        assert [layer.keys for layer in cache.layers] == kept  # planning leaves the caller's objects as they were
        assert not [transfer for transfer in plan.transfers if "past_key_values" in transfer.tensor]


@pytest.mark.parametrize("io", ["sim:1", "cpu"])
def test_the_models_device_is_where_inputs_come_from(io) -> None:
    """generate() makes tensors there, which meet the outputs; the first weight may be anywhere."""
    torch.manual_seed(0)
    model, placement = llama()
    unsplit = copy.deepcopy(model.eval())
    ids = torch.randint(2, 128, (2, 7))
    how = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": 9}
    with sim.cluster(["1GiB"] * 3) as cluster:
        split = autosplit.partition(model, cluster.devices, kwargs={"input_ids": ids.to(io)}, placement=placement)
        assert str(split.device) == io
        assert torch.equal(split.generate(ids.to(io), **how).cpu(), unsplit.generate(ids, **how))
