"""Devices that a user names, as a Cluster; and a cluster's names as torch devices."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch

from autosplit.device import HOST, Cluster, Device, parse_cluster
from autosplit.errors import DeviceError
from autosplit.units import parse_bytes

DeviceLike = str | torch.device | Device
DevicesLike = str | Cluster | Sequence[DeviceLike] | Mapping[DeviceLike, str | int]

_DESCRIBED = re.compile(r"\s*\d+\s*x|\s*[\d.]+\s*[KMGT]i?B", re.IGNORECASE)


def resolve(devices: DevicesLike) -> Cluster:
    """The cluster that ``devices`` means.

    Args:
        devices: "auto" (every accelerator), "cuda" (every device of the type), "cuda:0,cuda:1", a spec of described
            devices such as "2x24GiB", a path of a cluster.toml, a list of names, torch devices or Device records, a
            mapping from device to memory ("22GiB"), or a Cluster.

    Raises:
        DeviceError: none, unknown, repeated; says what is there.
    """
    if isinstance(devices, Cluster):
        return devices
    devices = getattr(devices, "devices", devices)  # an open cluster of virtual devices
    if isinstance(devices, str):
        return _from_text(devices)
    if isinstance(devices, Mapping):
        return Cluster(devices=tuple(_device(name, parse_bytes(size)) for name, size in devices.items()))
    if isinstance(devices, Sequence):
        return Cluster(devices=tuple(_device(device) for device in devices))
    raise DeviceError(f"devices={devices!r}: expected 'auto', a list of devices, a mapping to memory, or a spec")


def torch_devices(cluster: Cluster) -> dict[str, torch.device]:
    """The torch device of each device of the cluster, and of the host.

    Raises:
        DeviceError: a device is only described: it can be planned for, but nothing can run on it.
    """
    found: dict[str, torch.device] = {}
    for name in cluster.names:
        try:
            found[name] = torch.device(name)
        except RuntimeError as error:
            raise DeviceError(
                f"device {name!r} is described, not present: a plan can be made for it, but nothing can run on it; "
                f"plan for devices by the names that they have where the plan is applied, as a cluster.toml can "
                f"(here: {', '.join(_present()) or 'only cpu'})"
            ) from error
    return found | {HOST: torch.device("cpu")}


def _from_text(text: str) -> Cluster:
    if text == "auto":
        present = _present()
        if not present:
            raise DeviceError(
                "devices='auto': no accelerator is present; pass devices=['cpu'] or a spec like '2x24GiB'"
            )
        return Cluster(devices=tuple(_device(name) for name in present))
    if text.endswith(".toml"):
        return _from_toml(Path(text))
    if _DESCRIBED.match(text):
        return parse_cluster(text)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) == 1 and ":" not in names[0] and names[0] != "cpu":
        return Cluster(devices=tuple(_device(name) for name in _of_type(names[0])))
    return Cluster(devices=tuple(_device(name) for name in names))


def _from_toml(path: Path) -> Cluster:
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Cluster)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise DeviceError(f"cluster file {str(path)!r}: {error}") from error


def _device(device: DeviceLike, memory_bytes: int | None = None) -> Device:
    if isinstance(device, Device):
        return device if memory_bytes is None else msgspec.structs.replace(device, memory_bytes=memory_bytes)
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"unknown device {device!r}: present are {', '.join([*_present(), 'cpu'])}") from error
    if found.type == "cpu":
        return Device(name="cpu", kind="cpu", memory_bytes=memory_bytes or _host_bytes(), flops_per_s=10**11)
    name = f"{found.type}:{found.index or 0}"
    if name not in _present():
        raise DeviceError(f"device {name!r} is not present: present are {', '.join([*_present(), 'cpu'])}")
    return Device(name=name, kind=_kind(name), memory_bytes=memory_bytes or _free_bytes(name))


def is_present(name: str) -> bool:
    """Whether a device of that name is here, to run on."""
    return name == "cpu" or name in _present()


def _present() -> list[str]:
    """Names of the accelerators of this process."""
    kind = torch.accelerator.current_accelerator()
    if kind is None or not torch.accelerator.is_available():
        return []
    return [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())]


def _of_type(kind: str) -> list[str]:
    names = [name for name in _present() if name.split(":")[0] == kind]
    if not names:
        raise DeviceError(f"no device of type {kind!r}: present are {', '.join([*_present(), 'cpu'])}")
    return names


def _kind(name: str) -> str:
    return torch.cuda.get_device_name(name) if name.startswith("cuda") else name.split(":", maxsplit=1)[0]


def _free_bytes(name: str) -> int:
    """What this process can still use of a device, with what its allocator already holds."""
    module = torch.get_device_module(torch.device(name))
    free, _ = module.mem_get_info(torch.device(name))
    return int(free) + int(module.memory_reserved(torch.device(name)))


def _host_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
