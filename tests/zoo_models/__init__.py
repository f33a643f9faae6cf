"""The zoo: small models of every kind that people split, built from config with random weights.

Nothing is downloaded. What comes from a library that is not installed is in the table all the same, and says so.
"""

from __future__ import annotations

from zoo_models import (
    audio,
    decoders,
    diffusers_models,
    encoders,
    handwritten,
    multimodal,
    recurrent,
    seq2seq,
    timm_models,
    torch_nn,
    vision,
)
from zoo_models.entry import Entry, Inputs, loss_of, tensors

__all__ = ["ENTRIES", "Entry", "Inputs", "loss_of", "tensors"]

ENTRIES: tuple[Entry, ...] = (
    *decoders.ENTRIES,
    *encoders.ENTRIES,
    *seq2seq.ENTRIES,
    *vision.ENTRIES,
    *audio.ENTRIES,
    *recurrent.ENTRIES,
    *multimodal.ENTRIES,
    *torch_nn.ENTRIES,
    *handwritten.ENTRIES,
    *timm_models.ENTRIES,
    *diffusers_models.ENTRIES,
)
