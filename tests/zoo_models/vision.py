"""Vision models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo_models.entry import Entry, Inputs, pretrained

VIT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8, "num_labels": 10,
}  # fmt: skip


def pictures(size: int, _: int) -> Inputs:
    """Pictures of 32 pixels a side, and a class for each."""
    return {"pixel_values": torch.randn(size, 3, 32, 32), "labels": torch.arange(size) % 10}


def segmented(size: int, _: int) -> Inputs:
    """Pictures of 64 pixels a side, and a class for each pixel."""
    return {"pixel_values": torch.randn(size, 3, 64, 64), "labels": torch.randint(0, 5, (size, 64, 64))}


def unlabelled(size: int, _: int) -> Inputs:
    """Pictures of 64 pixels a side."""
    return {"pixel_values": torch.randn(size, 3, 64, 64)}


def classifier(name: str, stem: str, inputs: Any = pictures, /, **values: Any) -> Entry:
    """An image classifier."""
    return seeing(name, lambda: pretrained(f"{stem}ForImageClassification", f"{stem}Config", **values), inputs)


def seeing(name: str, model: Callable[[], nn.Module], inputs: Any) -> Entry:
    """A vision model."""
    return Entry(name, "vision", model, inputs, needs="transformers")


def _segformer() -> nn.Module:
    return pretrained(
        "SegformerForSemanticSegmentation", "SegformerConfig", num_encoder_blocks=3, depths=[1, 1, 1],
        sr_ratios=[4, 2, 1], hidden_sizes=[16, 32, 32], patch_sizes=[7, 3, 3], strides=[4, 2, 2],
        num_attention_heads=[1, 2, 4], mlp_ratios=[2, 2, 2], decoder_hidden_size=32, num_labels=5,
    )  # fmt: skip


def _detr() -> nn.Module:
    from transformers import ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    return pretrained(
        "DetrForObjectDetection", "DetrConfig", backbone_config=backbone, use_timm_backbone=False, backbone=None,
        use_pretrained_backbone=False, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=6, num_labels=4,
    )  # fmt: skip


ENTRIES = (
    classifier("vit", "ViT", **VIT),
    classifier("deit", "DeiT", **VIT),
    classifier("dinov2", "Dinov2", **VIT),
    classifier("beit", "Beit", **VIT, use_relative_position_bias=True),
    classifier("swin", "Swin", image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4],
               window_size=4, num_labels=10),
    classifier("swinv2", "Swinv2", image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 4],
               window_size=4, num_labels=10),
    classifier("convnext", "ConvNext", hidden_sizes=[16, 32, 32], depths=[1, 1, 1], num_stages=3, num_labels=10,
               drop_path_rate=0.1),
    classifier("resnet", "ResNet", embedding_size=16, hidden_sizes=[16, 32, 32], depths=[1, 2, 1], num_labels=10,
               layer_type="basic"),
    classifier("regnet", "RegNet", embedding_size=16, hidden_sizes=[16, 32, 32], depths=[1, 1, 1], groups_width=8,
               num_labels=10),
    classifier("poolformer", "PoolFormer", hidden_sizes=[16, 32], depths=[1, 2], num_encoder_blocks=2,
               patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1], num_labels=10),
    seeing("segformer", _segformer, segmented),
    seeing("detr", _detr, unlabelled),
)  # fmt: skip
