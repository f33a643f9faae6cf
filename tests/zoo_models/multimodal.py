"""Models of transformers that read pictures and text."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo_models.decoders import COMMON, TOKENS
from zoo_models.entry import Entry, Inputs, ids, pretrained

IMAGE = 90
"""The token that stands for a patch of a picture."""

EYES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
READER = TOKENS | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
SPOKEN = COMMON | {"num_hidden_layers": 2}


def pairs(size: int, length: int) -> Inputs:
    """Texts and pictures, as many of each."""
    return {"input_ids": ids(size, length), "pixel_values": torch.randn(size, 3, 32, 32), "return_loss": True}


def captions(patches: int) -> Any:
    """Makes inputs: each row has the tokens of one picture, then text."""

    def inputs(size: int, length: int) -> Inputs:
        tokens = torch.cat([torch.full((size, patches), IMAGE), ids(size, length, 80)], dim=1)
        mask, pixels = torch.ones_like(tokens), torch.randn(size, 3, 32, 32)
        return {"input_ids": tokens, "attention_mask": mask, "pixel_values": pixels, "labels": tokens.clone()}

    return inputs


def prompts(patches: int) -> Any:
    """Makes prompts: a picture and five tokens."""
    return lambda: {name: value for name, value in captions(patches)(2, 5).items() if name != "labels"}


def paligemma(size: int, length: int) -> Inputs:
    """Captions of which the first part is read in both directions."""
    inputs = captions(16)(size, length)
    return inputs | {"token_type_ids": (torch.arange(16 + length) >= 20).long().expand(size, -1).clone()}


def _qwen2_vl_inputs(size: int, length: int) -> Inputs:
    grid = torch.tensor([[1, 4, 4]] * size)
    vision = torch.tensor([[91] + [IMAGE] * 4 + [92]] * size)
    tokens = torch.cat([vision, ids(size, length, 80)], dim=1)
    return {
        "input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone(),
        "pixel_values": torch.randn(size * 16, 3 * 2 * 8 * 8), "image_grid_thw": grid,
        "mm_token_type_ids": (tokens == IMAGE).int(),
    }  # fmt: skip


def _qwen2_vl_prompt() -> Inputs:
    return {name: value for name, value in _qwen2_vl_inputs(2, 5).items() if name != "labels"}


def _qwen2_vl() -> nn.Module:
    text = SPOKEN | {"rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}}
    eyes = {
        "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    return pretrained(
        "Qwen2VLForConditionalGeneration", "Qwen2VLConfig", text_config=text, vision_config=eyes, image_token_id=IMAGE,
        video_token_id=93, vision_start_token_id=91, vision_end_token_id=92,
    )  # fmt: skip


def _llava() -> nn.Module:
    return pretrained(
        "LlavaForConditionalGeneration", "LlavaConfig", text_config={"model_type": "llama", **SPOKEN},
        vision_config={"model_type": "clip_vision_model", **EYES}, image_token_index=IMAGE, image_token_id=IMAGE,
        image_seq_length=16,
    )  # fmt: skip


def _paligemma() -> nn.Module:
    text = {"model_type": "gemma", **SPOKEN, "head_dim": 8}
    eyes = {"model_type": "siglip_vision_model", **EYES, "projection_dim": 32, "vision_use_head": False}
    return pretrained(
        "PaliGemmaForConditionalGeneration", "PaliGemmaConfig", text_config=text, vision_config=eyes,
        image_token_index=IMAGE, image_token_id=IMAGE, projection_dim=32, hidden_size=32,
    )  # fmt: skip


def _blip2() -> nn.Module:
    questions = {**READER, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    text = {"model_type": "opt", **SPOKEN, "ffn_dim": 64, "word_embed_proj_dim": 32}
    return pretrained(
        "Blip2ForConditionalGeneration", "Blip2Config", vision_config=EYES, qformer_config=questions, text_config=text,
        num_query_tokens=4, image_text_hidden_size=16, image_token_index=IMAGE, image_token_id=IMAGE,
    )  # fmt: skip


def _dual(stem: str, **values: Any) -> Any:
    return lambda: pretrained(f"{stem}Model", f"{stem}Config", text_config=READER, vision_config=EYES, **values)


def seeing(name: str, model: Any, inputs: Any, prompt: Any = None) -> Entry:
    """A model of pictures and text."""
    return Entry(name, "multimodal", model, inputs, prompt, needs="transformers")


ENTRIES = (
    seeing("clip", _dual("CLIP", projection_dim=16), pairs),
    seeing("siglip", _dual("Siglip"), lambda size, _: pairs(size, 64)),
    seeing("llava", _llava, captions(16), prompts(16)),
    seeing("paligemma", _paligemma, paligemma, prompts(16)),
    seeing("blip2", _blip2, captions(4), prompts(4)),
    seeing("qwen2_vl", _qwen2_vl, _qwen2_vl_inputs, _qwen2_vl_prompt),
)
