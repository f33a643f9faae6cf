"""The networks of diffusion pipelines, where diffusers is installed; and a LoRA of peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo_models.decoders import COMMON, batch, prompt
from zoo_models.entry import Entry, Inputs, pretrained

TEXT = 32


def _make(name: str, values: dict[str, Any]) -> nn.Module:
    import diffusers

    made: nn.Module = getattr(diffusers, name)(**values)
    return made


def diffusers_model(name: str, cls: str, inputs: Any, /, **values: Any) -> Entry:
    """A network of diffusers."""
    return Entry(f"diffusers-{name}", "diffusers", lambda: _make(cls, values), inputs, needs="diffusers")


def _noisy(size: int, length: int) -> Inputs:
    text = torch.randn(size, length, TEXT)
    return {"sample": torch.randn(size, 4, 16, 16), "timestep": torch.arange(size), "encoder_hidden_states": text}


def _unconditioned(size: int, _: int) -> Inputs:
    return {"sample": torch.randn(size, 3, 16, 16), "timestep": torch.arange(size)}


def _classes(size: int, _: int) -> Inputs:
    noise = torch.randn(size, 4, 8, 8)
    return {"hidden_states": noise, "timestep": torch.arange(size), "class_labels": torch.arange(size) % 10}


def _pooled(size: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(size, 4, 16, 16), "encoder_hidden_states": torch.randn(size, length, TEXT),
        "pooled_projections": torch.randn(size, TEXT), "timestep": torch.arange(size),
    }  # fmt: skip


def _flux(size: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(size, 16, 4), "encoder_hidden_states": torch.randn(size, length, TEXT),
        "pooled_projections": torch.randn(size, TEXT), "timestep": torch.rand(size),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(length, 3),
    }  # fmt: skip


def _pixart(size: int, length: int) -> Inputs:
    text, none = torch.randn(size, length, TEXT), {"resolution": None, "aspect_ratio": None}
    noise = torch.randn(size, 4, 8, 8)
    return {"hidden_states": noise, "encoder_hidden_states": text, "timestep": torch.arange(size),
            "added_cond_kwargs": none}  # fmt: skip


def _lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, init_lora_weights=False
    )
    made: nn.Module = get_peft_model(pretrained("LlamaForCausalLM", "LlamaConfig", **COMMON), config)
    return made


BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}

ENTRIES = (
    diffusers_model(
        "unet", "UNet2DConditionModel", _noisy, **BLOCKS, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT, attention_head_dim=8,
    ),
    diffusers_model(
        "unet-plain", "UNet2DModel", _unconditioned, **BLOCKS, sample_size=16, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    diffusers_model(
        "vae", "AutoencoderKL", lambda size, _: {"sample": torch.randn(size, 3, 16, 16)}, **BLOCKS, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    diffusers_model(
        "vq", "VQModel", lambda size, _: {"sample": torch.randn(size, 3, 16, 16)}, **BLOCKS, latent_channels=4,
        num_vq_embeddings=16, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    diffusers_model(
        "dit", "DiTTransformer2DModel", _classes, num_attention_heads=4, attention_head_dim=8, in_channels=4,
        out_channels=4, num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=100, norm_num_groups=4,
    ),
    diffusers_model(
        "pixart", "PixArtTransformer2DModel", _pixart, num_attention_heads=4, attention_head_dim=8, in_channels=4,
        out_channels=4, num_layers=2, sample_size=8, patch_size=2, cross_attention_dim=32, caption_channels=TEXT,
        use_additional_conditions=False, norm_num_groups=4,
    ),
    diffusers_model(
        "sd3", "SD3Transformer2DModel", _pooled, sample_size=16, patch_size=2, in_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=TEXT, caption_projection_dim=32,
        pooled_projection_dim=TEXT, out_channels=4, pos_embed_max_size=32,
    ),
    diffusers_model(
        "flux", "FluxTransformer2DModel", _flux, patch_size=1, in_channels=4, num_layers=1, num_single_layers=2,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=TEXT, pooled_projection_dim=TEXT,
        axes_dims_rope=(2, 2, 4),
    ),
    Entry("peft-lora", "peft", _lora, batch, prompt, needs="peft"),
)  # fmt: skip
