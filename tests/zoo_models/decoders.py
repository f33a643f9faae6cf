"""Decoders of transformers: they have causal attention, a loss of their own, and generate."""

from __future__ import annotations

from typing import Any

import torch

from zoo_models.entry import Entry, Inputs, ids, pretrained

TOKENS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = TOKENS | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
OLD = TOKENS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}


def batch(size: int, length: int) -> Inputs:
    """Tokens with a mask, and the tokens themselves as labels."""
    tokens = ids(size, length)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def prompt() -> Inputs:
    """Two prompts of five tokens."""
    tokens = ids(2, 5)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def decoder(name: str, model: str, config: str, family: str = "decoder", /, **values: Any) -> Entry:
    """A causal language model."""
    return Entry(name, family, lambda: pretrained(model, config, **values), batch, prompt, needs="transformers")


def of_common(name: str, stem: str, /, **values: Any) -> Entry:
    """A causal language model whose config has the usual names."""
    return decoder(name, f"{stem}ForCausalLM", f"{stem}Config", **(COMMON | values))


ENTRIES = (
    decoder("gpt2", "GPT2LMHeadModel", "GPT2Config", **OLD),
    decoder("gptj", "GPTJForCausalLM", "GPTJConfig", **OLD, rotary_dim=4),
    decoder("codegen", "CodeGenForCausalLM", "CodeGenConfig", **OLD, n_ctx=128, rotary_dim=4),
    decoder("gpt_bigcode", "GPTBigCodeForCausalLM", "GPTBigCodeConfig", **OLD),
    decoder(
        "gpt_neo", "GPTNeoForCausalLM", "GPTNeoConfig", **TOKENS, hidden_size=32, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=128, window_size=8,
    ),
    of_common("gpt_neox", "GPTNeoX"),
    decoder("bloom", "BloomForCausalLM", "BloomConfig", **TOKENS, hidden_size=32, n_layer=3, n_head=4),
    decoder("falcon", "FalconForCausalLM", "FalconConfig", **COMMON),
    decoder("mpt", "MptForCausalLM", "MptConfig", **TOKENS, d_model=32, n_layers=3, n_heads=4, max_seq_len=128),
    decoder(
        "opt", "OPTForCausalLM", "OPTConfig", **TOKENS, hidden_size=32, ffn_dim=64, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=32,
    ),
    of_common("llama", "Llama"),
    of_common("mistral", "Mistral", sliding_window=8),
    of_common("qwen2", "Qwen2", tie_word_embeddings=True),
    of_common("qwen3", "Qwen3", head_dim=8),
    of_common("gemma2", "Gemma2", head_dim=8, sliding_window=8),
    decoder("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", **COMMON, head_dim=8, sliding_window=8),
    of_common("phi", "Phi"),
    of_common("phi3", "Phi3"),
    of_common("stablelm", "StableLm"),
    of_common("starcoder2", "Starcoder2"),
    of_common("olmo2", "Olmo2"),
    of_common("cohere", "Cohere"),
    of_common("granite", "Granite"),
    of_common("smollm3", "SmolLM3"),
)  # fmt: skip
