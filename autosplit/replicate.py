"""Replicate: the model fits one device, so every rank keeps a whole copy and DDP averages the gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def process_group_is_up() -> bool:
    """Whether this process is a rank of an initialised process group."""
    return dist.is_available() and dist.is_initialized()


def replicate(model: nn.Module, device: torch.device) -> nn.Module:
    """``model``, already on ``device``, in DistributedDataParallel.

    A model without a trainable parameter is returned as it is: there is no gradient to average.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
