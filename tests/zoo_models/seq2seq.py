"""Encoder-decoders of transformers, of text and of audio."""

from __future__ import annotations

from typing import Any

import torch

from zoo_models.decoders import TOKENS
from zoo_models.entry import Entry, Inputs, ids, pretrained

BART = TOKENS | {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128, "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}  # fmt: skip


def translated(size: int, length: int) -> Inputs:
    """A source, and labels of another length."""
    tokens = ids(size, length)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": ids(size, length - 3)}


def source() -> Inputs:
    """Two sources of seven tokens."""
    tokens = ids(2, 7)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def translator(name: str, stem: str, model: str = "ForConditionalGeneration", /, **values: Any) -> Entry:
    """An encoder-decoder that generates."""
    make = f"{stem}{model}", f"{stem}Config"
    return Entry(name, "seq2seq", lambda: pretrained(*make, **values), translated, source, needs="transformers")


T5 = TOKENS | {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}

ENTRIES = (
    translator("t5", "T5", **T5),
    translator("mt5", "MT5", **T5),
    translator("bart", "Bart", **BART),
    translator("mbart", "MBart", **BART),
    translator("pegasus", "Pegasus", **BART),
    translator("marian", "Marian", "MTModel", **BART),
    translator("blenderbot", "Blenderbot", **BART),
)
