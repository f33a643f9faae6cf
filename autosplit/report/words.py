"""Modules in words: which parts of a model a device runs, and short names for them.

Names in a plan file are data from anywhere: they are printed as plain text, with control characters replaced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autosplit.files import clean

if TYPE_CHECKING:
    from autosplit.placement import Plan

__all__ = ["COPIES", "MODES", "Labels", "Path", "clean", "idle_words", "layer_words", "path_of", "tensor_words"]

_MOST_PARTS = 8  # of a model, named for one device
_MOST_OF_A_CUT = 2  # parts of a numbered module that are named for one device; more are "part of" it
_DEEPEST_PATH = 32  # components of a module path that are told apart

Path = tuple[str, ...]
"""A module path as its components; () is the model itself."""


def layer_words(placement: Mapping[str, str]) -> dict[str, str]:
    """What each device runs, in words: the largest modules that are whole there, numbered runs collapsed.

    Args:
        placement: device by node name; a node name is "MODULE.PATH/OPERATOR".

    Returns:
        Words by device name, modules in execution order. O(nodes).

    >>> layer_words({"m.embed/take": "a", "m.h.0/mm": "a", "m.h.1/mm": "a", "m.h.2/mm": "b", "head/mm": "b"})
    {'a': 'embed, h 0-1', 'b': 'h 2, head'}
    """
    parts = _parts(placement)
    labels = Labels(placement)
    return {device: _join(found, labels) for device, found in parts.items()}


@dataclass
class _Branch:
    """One module of the tree that node names span: the devices below it, and its own nodes by device."""

    children: dict[str, _Branch] = field(default_factory=dict)
    devices: set[str] = field(default_factory=set)
    own: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """Something a device runs: a whole module; with ``own`` only that many operators of its own forward.

    With ``is_cut`` some of its modules and operators.

    A numbered module has ``place``, its position among its numbered siblings, and is named by its parent's path.
    """

    path: Path
    own: int = 0
    place: int | None = None
    is_cut: bool = False

    @property
    def naming(self) -> Path:
        """The path to find a label for."""
        return self.path if self.place is None else self.path[:-1]


class Labels:
    """Short names of the modules of a plan: the fewest last components that no other module shares.

    A label never begins at a number, and keeps every number of its path: "layers.16.attn", not "attn".
    """

    def __init__(self, nodes: Iterable[str]) -> None:
        modules = {path[:end] for path in set(map(path_of, nodes)) for end in range(len(path) + 1)}
        self._sharing = Counter(module[start:] for module in modules for start in range(len(module)))

    def of(self, path: Path) -> str:
        """The label of a module; "" for the root."""
        numbers = [i for i, component in enumerate(path) if component.isdecimal()]
        start = max(0, numbers[0] - 1 if numbers else len(path) - 1)
        while start > 0 and self._sharing[path[start:]] > 1:
            start -= 1
        return clean(".".join(path[start:]))


MODES = {"infer": "inference", "train": "training"}
"""What a plan is for, by its mode."""

COPIES = ("a copy, under torchrun", "a replica, under torchrun")
"""Of a device that the plan puts nothing on: it has the same as those that are shown, in another process."""


def idle_words(plan: Plan) -> str:
    """What a device does that the plan puts nothing on."""
    if plan.strategy == "replicate":
        return COPIES[0]
    if plan.replicas == 1:
        return "nothing"
    used = len(set(plan.placement.values()))
    return COPIES[1] if len(plan.cluster.devices) == used * plan.replicas else "a replica under torchrun, or nothing"


def path_of(node: str) -> Path:
    """The module path in a node's or a tensor's name, "MODULE.PATH/OPERATOR"."""
    module = node.rpartition("/")[0]
    return tuple(module.split(".", _DEEPEST_PATH)) if module else ()


def tensor_words(tensor: str, labels: Labels) -> str:
    """Module and operator that made a tensor, by its name: "layers.16 add"."""
    operator = tensor.rpartition("/")[2].partition("#")[0].partition("!")[0].partition("@")[0]
    return clean(f"{labels.of(path_of(tensor))} {operator}".strip())


def _parts(placement: Mapping[str, str]) -> dict[str, list[_Part]]:
    """For each device the largest modules that are whole there, in execution order."""
    root = _Branch()
    for node, device in placement.items():
        branch = root
        branch.devices.add(device)
        for component in path_of(node):
            branch = branch.children.setdefault(component, _Branch())
            branch.devices.add(device)
        branch.own[device] = branch.own.get(device, 0) + 1
    parts: dict[str, list[_Part]] = {device: [] for device in dict.fromkeys(placement.values())}
    _collect(root, (), None, parts)
    return parts


def _collect(branch: _Branch, path: Path, place: int | None, parts: dict[str, list[_Part]]) -> None:
    numbered = {name: i for i, name in enumerate(filter(str.isdecimal, branch.children))}
    is_list = len(numbered) == len(branch.children) > 0 and not branch.own and place is None
    if len(branch.devices) == 1 and not is_list:
        parts[next(iter(branch.devices))].append(_Part(path, place=place))
        return
    found: dict[str, list[_Part]] = {device: [] for device in branch.devices}
    for name, child in branch.children.items():
        _collect(child, (*path, name), numbered.get(name), found)
    for device, count in branch.own.items():
        found[device].append(_Part(path, own=count))
    for device, mine in found.items():
        is_cut = place is not None and len(_runs(mine)) > _MOST_OF_A_CUT
        parts[device] += [_Part(path, is_cut=True)] if is_cut else mine


def _join(parts: Sequence[_Part], labels: Labels) -> str:
    """The parts as a phrase: "embed, layers 0-16"."""
    words: list[str] = []
    previous = ""  # the label that numbers are being listed under
    for run in _runs(parts):
        first, last = run[0], run[-1]
        if first.place is None:
            words.append(_one(first, labels.of(first.naming)))
            previous = ""
            continue
        label = labels.of(first.naming) or "modules"
        numbers = first.path[-1] if first is last else f"{first.path[-1]}-{last.path[-1]}"
        words.append(numbers if label == previous else f"{label} {numbers}")
        previous = label
    if len(words) > _MOST_PARTS:
        words[_MOST_PARTS - 1 :] = [f"{len(words) - _MOST_PARTS + 1} more"]
    return ", ".join(words)


def _one(part: _Part, label: str) -> str:
    if part.is_cut:
        return f"part of {label}"
    if part.own:
        return f"{part.own} op{'s' if part.own > 1 else ''} of {label or 'forward'}"
    return label or "the whole model"


def _runs(parts: Sequence[_Part]) -> list[list[_Part]]:
    """The parts with numbered neighbours of one parent together."""
    runs: list[list[_Part]] = []
    for part in parts:
        before = runs[-1][-1] if runs else None
        follows = (
            before is not None
            and before.place is not None
            and part.place == before.place + 1
            and part.naming == before.naming
        )
        if follows:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs
