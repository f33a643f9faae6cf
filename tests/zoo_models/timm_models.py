"""Vision models of timm, where it is installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo_models.entry import Entry, Inputs


def _pictures(side: int) -> Any:
    def inputs(size: int, _: int) -> Inputs:
        return {"x": torch.randn(size, 3, side, side)}

    return inputs


def _create(name: str, values: dict[str, Any]) -> nn.Module:
    import timm

    made: nn.Module = timm.create_model(name, num_classes=10, **values)
    return made


def timm_model(name: str, architecture: str, side: int = 32, /, **values: Any) -> Entry:
    """A classifier of pictures of ``side`` pixels."""
    return Entry(f"timm-{name}", "timm", lambda: _create(architecture, values), _pictures(side), needs="timm")


def _small_vit(name: str, architecture: str, /, **values: Any) -> Entry:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    return timm_model(name, architecture, **(sizes | values))


ENTRIES = (
    timm_model("resnet10t", "resnet10t", 64, zero_init_last=False),
    timm_model("resnext", "resnext26ts", 64),
    timm_model("densenet", "densenet121", 64, growth_rate=8, block_config=(2, 2, 2)),
    timm_model("efficientnet", "efficientnet_b0", 64, drop_rate=0.1, drop_path_rate=0.1),
    timm_model("mobilenetv3", "mobilenetv3_small_050", 64, drop_rate=0.1),
    timm_model("regnet", "regnetx_002", 64),
    timm_model("convnext", "convnext_atto", 64, depths=(1, 1, 2, 1), dims=(16, 32, 32, 64), drop_path_rate=0.1),
    timm_model("nfnet", "nf_regnet_b0", 64),
    timm_model("hrnet", "hrnet_w18_small", 64),
    _small_vit("vit", "vit_tiny_patch16_224", drop_path_rate=0.1),
    _small_vit("deit-distilled", "deit_tiny_distilled_patch16_224"),
    _small_vit("cait", "cait_xxs24_224"),
    _small_vit("beit", "beit_base_patch16_224"),
    _small_vit("eva", "eva02_tiny_patch14_224"),
    timm_model("swin", "swin_tiny_patch4_window7_224", img_size=32, patch_size=2, window_size=4, embed_dim=24,
               depths=(2, 2), num_heads=(2, 4), drop_path_rate=0.1),
    timm_model("maxvit", "maxvit_rmlp_pico_rw_256", 64, img_size=64),
    timm_model("ghostnet", "ghostnet_050", 64),
    timm_model("edgenext", "edgenext_xx_small", 64),
)  # fmt: skip
