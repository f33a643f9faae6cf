"""The weights of a rank: those of other stages are emptied in place, and are not in its state_dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autosplit.runtime import place_weights


def hold_only(model: nn.Module, names: Iterable[str]) -> None:
    """Empty every other parameter and buffer, in place: it keeps its identity and its form, on the meta device.

    From then on ``state_dict`` has what is held, and ``load_state_dict`` takes a whole one or one like that.

    Args:
        model: weights that no stage reads should be among ``names``.
        names: as in named_parameters and named_buffers, of tied weights the first.
    """
    kept = set(names)
    others = [name for name, _ in (*model.named_parameters(), *model.named_buffers()) if name not in kept]
    place_weights(model, dict.fromkeys(others, torch.device("meta")))
    model.register_state_dict_post_hook(_leave_out)
    model.register_load_state_dict_pre_hook(_pass_over)
    model.register_load_state_dict_post_hook(_do_not_miss)


def absent(module: nn.Module) -> set[str]:
    """Names of the weights that are with other ranks, those of tied weights too."""
    found: set[str] = set()
    for path, inner in module.named_modules(remove_duplicate=False):
        for key, tensor in (*inner._parameters.items(), *inner._buffers.items()):
            if tensor is not None and tensor.is_meta:
                found.add(f"{path}.{key}" if path else key)
    return found


class ReplicatedStages(DistributedDataParallel):
    """DistributedDataParallel over a rank's stages: its parameters and buffers are those that the rank holds."""

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that are here."""
        return ((name, weight) for name, weight in super().named_parameters(*args, **kwargs) if not weight.is_meta)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Those that are here."""
        return ((name, buffer) for name, buffer in super().named_buffers(*args, **kwargs) if not buffer.is_meta)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key, value in list(state.items()):
        if key.startswith(prefix) and isinstance(value, torch.Tensor) and value.is_meta:
            del state[key]


def _pass_over(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in absent(module):
        state.pop(prefix + name, None)


def _do_not_miss(module: nn.Module, keys: Any) -> None:
    gone = absent(module)
    keys.missing_keys[:] = [key for key in keys.missing_keys if not any(_is(key, name) for name in gone)]


def _is(key: str, name: str) -> bool:
    return key == name or key.endswith(f".{name}")
