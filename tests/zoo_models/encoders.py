"""Encoders of transformers: masked language models and classifiers."""

from __future__ import annotations

from typing import Any

import torch

from zoo_models.decoders import batch
from zoo_models.entry import Entry, Inputs, ids, pretrained

COMMON = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 130, "pad_token_id": 0,
}  # fmt: skip


def padded(size: int, length: int) -> Inputs:
    """Tokens of which the last of each row are padding, labels for all."""
    inputs = batch(size, length)
    for row in range(size):
        inputs["attention_mask"][row, length - row :] = 0
    return inputs


def classified(size: int, length: int) -> Inputs:
    """Tokens with a mask, and one label a row."""
    tokens = ids(size, length)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.arange(size) % 2}


def encoder(name: str, model: str, config: str, /, *, inputs: Any = padded, **values: Any) -> Entry:
    """An encoder with a head."""
    return Entry(name, "encoder", lambda: pretrained(model, config, **values), inputs, needs="transformers")


ENTRIES = (
    encoder("bert", "BertForMaskedLM", "BertConfig", **COMMON),
    encoder("roberta", "RobertaForMaskedLM", "RobertaConfig", **COMMON),
    encoder(
        "distilbert", "DistilBertForSequenceClassification", "DistilBertConfig", inputs=classified, vocab_size=96,
        dim=32, hidden_dim=64, n_layers=3, n_heads=4, max_position_embeddings=130,
    ),
    encoder("albert", "AlbertForMaskedLM", "AlbertConfig", **COMMON, embedding_size=16),
    encoder(
        "deberta_v2", "DebertaV2ForMaskedLM", "DebertaV2Config", **COMMON, relative_attention=True, position_buckets=8,
        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", share_att_key=True,
    ),
    encoder(
        "electra", "ElectraForSequenceClassification", "ElectraConfig", inputs=classified, **COMMON, embedding_size=16
    ),
    encoder(
        "modernbert", "ModernBertForMaskedLM", "ModernBertConfig", **COMMON, global_attn_every_n_layers=2,
        local_attention=8, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    ),
    encoder("mpnet", "MPNetForMaskedLM", "MPNetConfig", **COMMON),
    encoder("xlm_roberta", "XLMRobertaForSequenceClassification", "XLMRobertaConfig", inputs=classified, **COMMON),
    encoder("roformer", "RoFormerForMaskedLM", "RoFormerConfig", **COMMON),
    encoder("longformer", "LongformerForMaskedLM", "LongformerConfig", **COMMON, attention_window=8),
)  # fmt: skip
