"""Audio models of transformers."""

from __future__ import annotations

from typing import Any

import torch

from zoo_models.decoders import TOKENS
from zoo_models.entry import Entry, Inputs, ids, pretrained
from zoo_models.seq2seq import BART

WAVES = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "conv_dim": (16, 16), "conv_stride": (4, 2), "conv_kernel": (4, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def waves(size: int, length: int) -> Inputs:
    """Raw samples, with tokens to spell."""
    return {"input_values": torch.randn(size, 40 * length), "labels": ids(size, 4, 32)}


def spectra(size: int, _: int) -> Inputs:
    """Log-mel frames, with tokens to write."""
    return {"input_features": torch.randn(size, 8, 40), "labels": ids(size, 6)}


def frames(size: int, _: int) -> Inputs:
    """A spectrogram, with a class."""
    return {"input_values": torch.randn(size, 32, 16), "labels": torch.arange(size) % 5}


def hearing(name: str, model: str, config: str, inputs: Any, prompt: Any = None, /, **values: Any) -> Entry:
    """An audio model."""
    return Entry(name, "audio", lambda: pretrained(model, config, **values), inputs, prompt, needs="transformers")


ENTRIES = (
    hearing(
        "whisper", "WhisperForConditionalGeneration", "WhisperConfig", spectra,
        lambda: {"input_features": torch.randn(2, 8, 40)},
        **(BART | TOKENS | {"decoder_start_token_id": 1}), num_mel_bins=8, max_source_positions=20,
        max_target_positions=64, suppress_tokens=None, begin_suppress_tokens=None,
    ),
    hearing("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", waves, **WAVES, mask_time_prob=0.0),
    hearing(
        "wav2vec2-masked", "Wav2Vec2ForCTC", "Wav2Vec2Config", waves, **WAVES, mask_time_prob=0.2, mask_time_length=2
    ),
    hearing("hubert", "HubertForCTC", "HubertConfig", waves, **WAVES, mask_time_prob=0.0),
    hearing("wavlm", "WavLMForCTC", "WavLMConfig", waves, **WAVES, mask_time_prob=0.0),
    hearing(
        "ast", "ASTForAudioClassification", "ASTConfig", frames, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, patch_size=8, frequency_stride=4, time_stride=4, max_length=32,
        num_mel_bins=16, num_labels=5,
    ),
)  # fmt: skip
