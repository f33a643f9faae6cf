"""The modules of a plan as a tree, and as few blocks of them as make a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from autosplit.placement import Plan
from autosplit.report.words import Labels, Path, path_of

_MOST_BLOCKS = 80  # more cannot be read in one picture
_DEEPEST = 6  # levels of modules that are looked at before blocks are joined
_LEAST_SHARE = 0.05  # of the nodes of a module that is cut: with fewer a device has no block of it
_MAIN_SHARE = 0.8  # of a module's nodes: with so many on one device it is drawn there


@dataclass
class Module:
    """A module: its nodes by device, its submodules, and the operators of its own forward.

    Attributes:
        path: its name as components.
        at: the position in program order of the first of its nodes.
        nodes: how many of its nodes (submodules' too) each device has.
        own: (operator, device, position) of its own nodes.
        number: its place in the tree, parents before children.
    """

    path: Path
    at: int
    children: dict[str, Module] = field(default_factory=dict)
    nodes: Counter[str] = field(default_factory=Counter)
    own: list[tuple[str, str, int]] = field(default_factory=list)
    number: int = 0

    @property
    def main(self) -> str | None:
        """The device that has nearly all of its nodes; None where no device has."""
        device, count = self.nodes.most_common(1)[0]
        return device if count >= _MAIN_SHARE * self.nodes.total() else None

    @property
    def is_list(self) -> bool:
        """Whether it only holds numbered modules."""
        return bool(self.children) and not self.own and all(map(str.isdecimal, self.children))


@dataclass
class Block:
    """Modules that are drawn as one, on one device.

    Attributes:
        label: in words: "layers 0-14".
        device: where (nearly) all of its nodes are.
        count: of the nodes that are there.
        at: the position in program order of the first of them.
        modules: by their numbers; together they are the block. None at all: single operators, of modules that hold
            others or that are drawn on another device.
        is_part: the block has only those nodes of its one module that are on the device.
    """

    label: str
    device: str
    count: int
    at: int
    modules: tuple[int, ...] = ()
    is_part: bool = False


def module_tree(placement: Mapping[str, str]) -> Module:
    """The modules that node names span; a node name is "MODULE.PATH/OPERATOR". O(nodes * depth)."""
    root = Module((), 0)
    for at, (node, device) in enumerate(placement.items()):
        module = root
        module.nodes[device] += 1
        for component in path_of(node):
            if component not in module.children:
                module.children[component] = Module((*module.path, component), at)
            module = module.children[component]
            module.nodes[device] += 1
        module.own.append((node.rpartition("/")[2], device, at))
    _number(root, 0)
    return root


def blocks(root: Module, placement: Mapping[str, str]) -> list[Block]:
    """At most some 80 blocks, ordered by their first node; together they have nearly every node of the plan.

    A module is a block where nearly all of it is on one device; numbered neighbours on one device are one block. A
    numbered module that is cut, and what is cut deeper than the picture can show, is a block for each device. Single
    operators, of a module that holds others or that is nearly whole elsewhere, are a block only where a
    device has no other.
    """
    if not placement:
        return []
    labels = Labels(placement)
    found: list[Block] = []
    for depth in range(_DEEPEST, -1, -1):
        found = []
        _visit(root, depth, labels, found)
        if len(found) <= _MOST_BLOCKS:
            break
    return sorted(found + _strays(root, found), key=lambda block: block.at)


def made_at(plan: Plan) -> Callable[[str], int]:
    """A function from a tensor's name to the position of the node that makes it: by name, else the first of its module.

    An input, which no node makes, is at 0. O(nodes), then O(1).
    """
    position = {node: at for at, node in enumerate(plan.placement)}
    first_of: dict[str, int] = {}
    for node, at in position.items():
        first_of.setdefault(node.rpartition("/")[0], at)

    def find(tensor: str) -> int:
        node = tensor.partition("@")[0].partition("!")[0]
        return position.get(node, first_of.get(tensor.rpartition("/")[0], 0))

    return find


def _number(module: Module, number: int) -> int:
    module.number = number
    for child in module.children.values():
        number = _number(child, number + 1)
    return number


def _visit(module: Module, depth: int, labels: Labels, found: list[Block]) -> None:
    main = module.main
    is_leaf = not module.children
    if main is not None and (is_leaf or (module.path and not module.is_list)):
        found.append(Block(_label(module, labels), main, module.nodes[main], module.at, (module.number,)))
        return
    if depth == 0 or is_leaf or (module.path and module.path[-1].isdecimal()):
        label = _label(module, labels)
        least = min(_LEAST_SHARE * module.nodes.total(), max(module.nodes.values()))
        for device, count in module.nodes.items():
            if count >= least:
                found.append(Block(f"{label}, part", device, count, _first(module, device), (module.number,), True))
        return
    parts: list[tuple[str, list[Block]]] = []
    for name, child in module.children.items():
        mine: list[Block] = []
        _visit(child, depth - 1, labels, mine)
        parts.append((name, mine))
    if module.is_list:
        found += _in_runs(parts, labels.of(module.path) or "modules")
    else:
        found += [block for _, mine in parts for block in mine]


def _in_runs(parts: list[tuple[str, list[Block]]], label: str) -> list[Block]:
    """The blocks of numbered modules, neighbours that are whole and on one device as one: "layers 0-14"."""

    def place(part: tuple[str, list[Block]]) -> str | None:
        mine = part[1]
        whole = len(mine) == 1 and len(mine[0].modules) == 1 and not mine[0].is_part
        return mine[0].device if whole else None

    found: list[Block] = []
    for device, group in groupby(parts, place):
        members = list(group)
        run = [block for _, mine in members for block in mine]
        if device is None or len(run) == 1:
            found += run
            continue
        numbers = tuple(number for block in run for number in block.modules)
        words = f"{label} {members[0][0]}-{members[-1][0]}"
        found.append(Block(words, device, sum(block.count for block in run), run[0].at, numbers))
    return found


def _label(module: Module, labels: Labels) -> str:
    return labels.of(module.path) or "the model"


def _first(module: Module, device: str) -> int:
    """Position of the module's first node on the device."""
    own = [at for _, name, at in module.own if name == device][:1]
    return min(own + [_first(child, device) for child in module.children.values() if child.nodes[device]])


def _strays(root: Module, found: list[Block]) -> list[Block]:
    """For each device without a block, its operators."""
    drawn = {block.device for block in found}
    return [
        Block(f"{count} single op{'s' if count > 1 else ''}", device, count, _first(root, device))
        for device, count in root.nodes.items()
        if device not in drawn
    ]
