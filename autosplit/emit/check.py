"""The checker after emission. Numbers on a CPU cannot see a missing transfer: this can."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from autosplit.emit.rewrite import Emitted, Move
from autosplit.errors import PlanError
from autosplit.program import is_control


def check_split(emitted: Emitted, planned: Iterable[tuple[str, str, str]] | None = None) -> None:
    """Check an emitted graph: every node's tensors are on its device; the moves are the planned ones.

    Args:
        emitted: what rewrite returned.
        planned: (value, src, dst) of each transfer of the plan, in any order; None skips that check.

    Raises:
        PlanError: names the node whose inputs are elsewhere, or the first transfer that differs.
    """
    for node in emitted.graph_module.graph.nodes:
        _check_node(emitted, node)
    if planned is None:
        return
    want = {Move(*transfer) for transfer in planned}
    have = set(emitted.moves)
    for move in sorted(want ^ have, key=lambda m: (m.value, m.src, m.dst)):
        said = "planned but not emitted" if move in want else "emitted but not planned"
        raise PlanError(f"transfer of {move.value!r} from {move.src} to {move.dst} is {said}: plan again")


def _check_node(emitted: Emitted, node: fx.Node) -> None:
    own = emitted.location.get(node)
    if own is None or node.op in ("placeholder", "get_attr") or is_control(node) or _is_transfer(node):
        return
    for argument in node.all_input_nodes:
        elsewhere = emitted.location.get(argument, own)
        if elsewhere != own:
            raise PlanError(
                f"node {node.meta.get('value_name', node.name)!r} runs on {own} but reads "
                f"{argument.meta.get('value_name', argument.name)!r} on {elsewhere}: a transfer is missing"
            )


def _is_transfer(node: fx.Node) -> bool:
    return node.op == "call_method" and node.name.startswith("to")
