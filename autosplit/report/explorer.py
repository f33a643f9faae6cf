"""Explorer: a plan as a graph for Model Explorer (google-ai-edge/model-explorer), which opens and folds its modules.

Format: a GraphCollection, as its ``graph_builder.py`` (0.1.34) has it: ``{"label", "graphs": [{"id", "nodes"}]}``, a
node with id, label, namespace, attrs and incomingEdges. It is a picture of the plan, not of the model's data flow: a
plan file holds which node runs where and what is copied, not who reads what. So edges lead from each node to the next
that its device runs, and through a node of its own for each copy, from where the tensor is made to the next node of the
device that receives it.
"""

from __future__ import annotations

import bisect
from typing import Any

import msgspec

from autosplit.device import HOST
from autosplit.placement import Plan, Transfer
from autosplit.report.tree import made_at
from autosplit.report.words import clean, layer_words, path_of
from autosplit.units import format_bytes, format_ns

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#b3a500", "#8a8f96")


def explorer(plan: Plan) -> str:
    """The plan as a graph collection in JSON. O(nodes + transfers log nodes)."""
    ends = _Ends(plan)
    nodes = [_node(plan, ends, at, name) for at, name in enumerate(plan.placement)]
    for number, transfer in enumerate(plan.transfers):
        nodes.append(_copy(plan, ends, number, transfer))
        reader = ends.next_on(transfer.dst, ends.made_at(transfer))
        if reader is not None:
            nodes[reader]["incomingEdges"].append({"sourceNodeId": f"copy {number}"})
    words = layer_words(plan.placement)
    about = {"strategy": plan.strategy, "reason": clean(plan.reason), "step": format_ns(plan.prediction.step_ns)}
    about |= {clean(device): runs for device, runs in words.items()}
    graph = {"id": "plan", "nodes": nodes, "groupNodeAttributes": {"": about}}
    return msgspec.json.encode({"label": "autosplit plan", "graphs": [graph]}).decode()


class _Ends:
    """Where tensors are made and where they are next read, as positions in program order."""

    def __init__(self, plan: Plan) -> None:
        self._made_at = made_at(plan)
        self.on: dict[str, list[int]] = {}
        for at, device in enumerate(plan.placement.values()):
            self.on.setdefault(device, []).append(at)

    def made_at(self, transfer: Transfer) -> int:
        """The position of the node that makes the tensor; -1 for what arrives from the host."""
        return -1 if transfer.src == HOST else self._made_at(transfer.tensor)

    def next_on(self, device: str, at: int) -> int | None:
        """The device's first node after the position, or its first of all."""
        mine = self.on.get(device)
        if not mine:
            return None
        place = bisect.bisect_right(mine, at)
        return mine[place] if place < len(mine) else mine[0]

    def before(self, device: str, at: int) -> int | None:
        """The device's last node before the position."""
        mine = self.on[device]
        place = bisect.bisect_left(mine, at)
        return mine[place - 1] if place else None


def _node(plan: Plan, ends: _Ends, at: int, name: str) -> dict[str, Any]:
    device = plan.placement[name]
    before = ends.before(device, at)
    return {
        "id": str(at),
        "label": clean(name.rpartition("/")[2]),
        "namespace": _namespace(name),
        "attrs": _attrs({"device": clean(device), "position": str(at), "node": clean(name)}),
        "incomingEdges": [] if before is None else [{"sourceNodeId": str(before)}],
        "style": {"borderColor": _COLOURS[plan.cluster.names.index(device) % len(_COLOURS)]},
    }


def _copy(plan: Plan, ends: _Ends, number: int, transfer: Transfer) -> dict[str, Any]:
    """The node of a copy; from the host it has no source."""
    is_made = transfer.src != HOST and plan.placement
    time_ns = plan.cluster.transfer_ns(transfer.src, transfer.dst, transfer.size_bytes)
    return {
        "id": f"copy {number}",
        "label": f"copy {clean(transfer.src)} to {clean(transfer.dst)}",
        "namespace": "",
        "attrs": _attrs(
            {
                "tensor": clean(transfer.tensor),
                "module": clean(".".join(path_of(transfer.tensor))),
                "size": format_bytes(transfer.size_bytes),
                "time": format_ns(time_ns),
                "gradient back": "yes" if transfer.returns_gradient else "no",
            }
        ),
        "incomingEdges": [{"sourceNodeId": str(ends.made_at(transfer))}] if is_made else [],
        "style": {"backgroundColor": "#f0e442"},
    }


def _namespace(node: str) -> str:
    """The module path with "/" between: a name of its own cannot hold one."""
    return "/".join(clean(component).replace("/", "_") for component in path_of(node))


def _attrs(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]
