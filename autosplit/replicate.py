"""Replicate: the model fits one device, so every rank keeps a whole copy and DDP averages the gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from autosplit import faults


def process_group_is_up() -> bool:
    """Whether this process is a rank of an initialised process group."""
    return dist.is_available() and dist.is_initialized()


def replicate(model: nn.Module, device: torch.device) -> nn.Module:
    """``model``, already on ``device``, in DistributedDataParallel.

    A model without a trainable parameter is returned as it is: there is no gradient to average.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    replica = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    if faults.is_loss_watched():
        replica.register_forward_hook(_check_loss)
    return replica


def _check_loss(_: nn.Module, __: object, output: object) -> None:
    """Before the backward spreads a loss that is not finite to every rank's gradients."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, torch.Tensor) and leaf.ndim == 0 and leaf.is_floating_point():
            faults.check_loss(leaf)
