"""The devices of this process: which there are, what they are, and how much memory they have."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from autosplit import catalogue
from autosplit.device import Device, from_entry, meant
from autosplit.errors import DeviceError

DeviceLike = str | torch.device | Device


def present_names() -> list[str]:
    """Names of the accelerators of this process: "cuda:0", "cuda:1"; empty when there are none."""
    kind = torch.accelerator.current_accelerator()
    if kind is None or not torch.accelerator.is_available():
        return []
    return [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())]


def is_present(name: str) -> bool:
    """Whether a device of that name is here, to run on."""
    return name == "cpu" or name in present_names()


def absent(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of ``names`` that are devices to run on and are not here; and what is here. "meta" runs nothing."""
    there = [*present_names(), "cpu"]
    return [name for name in names if _indexed(name) not in there and not name.startswith("meta")], there


def _indexed(name: str) -> str:
    """The name as ``present_names`` writes it."""
    found = torch.device(name)
    return "cpu" if found.type == "cpu" else f"{found.type}:{found.index or 0}"


def names_of_type(kind: str) -> list[str]:
    """Names of the present devices of a type such as "cuda".

    Raises:
        DeviceError: there are none.
    """
    names = [name for name in present_names() if name.split(":")[0] == kind]
    if not names:
        raise DeviceError(f"no device of type {kind!r}: {_present_words()}{meant(kind)}")
    return names


def present_device(asked: str | torch.device, memory_bytes: int | None = None) -> Device:
    """A device of this process: its speed from the catalogue when its name is there, its memory as measured now.

    Args:
        asked: "cuda:1", a torch.device, or "cpu".
        memory_bytes: what a plan may use; None is what is free now, with what this process holds already.

    Raises:
        DeviceError: no such device, or it is not present.
    """
    try:
        found = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"unknown device {asked!r}: {_present_words()}{meant(str(asked))}") from error
    if found.type == "cpu":
        return from_entry("cpu", catalogue.CPU, memory_of("cpu")[1] if memory_bytes is None else memory_bytes)
    name = f"{found.type}:{found.index or 0}"
    if not is_present(name):
        raise DeviceError(f"device {name!r} is not present: {_present_words()}")
    memory_bytes = memory_of(name)[0] if memory_bytes is None else memory_bytes
    reported = reported_name(name)
    entry = catalogue.find(reported)
    if entry is None:
        return Device(name=name, kind=reported, memory_bytes=memory_bytes)
    return from_entry(name, entry, memory_bytes)


def reported_name(name: str) -> str:
    """What torch calls the device, as "NVIDIA H200"; devices other than CUDA's have the name of their type."""
    return torch.cuda.get_device_name(name) if name.startswith("cuda") else name.split(":", maxsplit=1)[0]


def memory_of(name: str) -> tuple[int, int]:
    """Bytes that this process can still use of a device, with what its allocator already holds; and bytes in all."""
    if name == "cpu":
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        return page_bytes * os.sysconf("SC_AVPHYS_PAGES"), page_bytes * os.sysconf("SC_PHYS_PAGES")
    module = torch.get_device_module(torch.device(name))
    free, total = module.mem_get_info(torch.device(name))
    return int(free) + int(module.memory_reserved(torch.device(name))), int(total)


def _present_words() -> str:
    return f"present are {', '.join([*present_names(), 'cpu'])}"
