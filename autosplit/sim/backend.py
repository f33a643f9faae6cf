"""Register the sim backend with torch: once a process, at the first cluster, and never undone."""

from __future__ import annotations

import operator

import torch
from torch.utils import backend_registration

from autosplit.errors import DeviceError
from autosplit.sim import autocast, kernels, patches, standins, sums
from autosplit.sim.fallback import fallback
from autosplit.sim.module import SimDeviceModule
from autosplit.sim.world import NAME

_TESTED_TORCH = "2.13."
_PRIVATE_APIS = (
    "_C.DispatchKey.AutocastPrivateUse1",
    "_C.DispatchKeySet",
    "_C._ExcludeDispatchKeyGuard",
    "_C._acc.PrivateUse1Hooks",
    "_C._current_autograd_node",
    "_C._from_dlpack",
    "_C._get_privateuse1_backend_name",
    "_C._storage_Use_Count",
    "_C._swap_tensor_impl",
    "_C._to_dlpack",
    "_neg_view",
    "ops.aten.view.default._op_dk",
    "Tensor._is_zerotensor",
    "Tensor._use_count",
    "autograd._engine_run_backward",
    "autograd.graph._engine_run_backward",
    "autograd.graph.get_gradient_edge",
    "autograd.set_multithreading_enabled",
    "clear_autocast_cache",
    "nn.Module._apply",
    "utils.backend_registration._setup_privateuseone_for_python_backend",
    "utils.swap_tensors",
)
# A Library takes its kernels back when it is collected.
_libraries: list[torch.library.Library] = []


def register() -> None:
    """Register the backend, unless it is already.

    Raises:
        DeviceError: this torch is not one the backend was tested with, or another backend holds PrivateUse1.
    """
    if _libraries:
        return
    check_torch()
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=SimDeviceModule(f"torch.{NAME}"))
    patches.install_for_good()
    anything = torch.library.Library("_", "IMPL")
    anything.fallback(fallback, "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    _libraries.extend((anything, aten))
    kernels.install(aten)
    standins.install(aten)
    sums.install(aten)
    autocast.install(aten, anything)


def check_torch() -> None:
    """Refuse a torch whose private parts this backend does not know.

    Raises:
        DeviceError: the version is not 2.13, a private API is missing, or PrivateUse1 is taken.
    """
    if not torch.__version__.startswith(_TESTED_TORCH):
        raise DeviceError(f"virtual devices need torch {_TESTED_TORCH}x; this is torch {torch.__version__}")
    missing = [path for path in _PRIVATE_APIS if not _has(path)]
    if missing:
        raise DeviceError(
            f"virtual devices need torch.{', torch.'.join(missing)}, which torch {torch.__version__} lacks"
        )
    holder = torch._C._get_privateuse1_backend_name()
    if holder != "privateuseone":
        raise DeviceError(
            f"virtual devices need the PrivateUse1 backend, which '{holder}' has taken in this process; "
            "use them in another process"
        )


def _has(path: str) -> bool:
    try:
        operator.attrgetter(path)(torch)
    except AttributeError:
        return False
    return True
