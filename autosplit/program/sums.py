"""Autograd's own sums of gradients: it adds in place to a gradient that nobody else holds.

It does not on fake tensors, nor on tensors that Python has seen; whoever stands in for a device has to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.autograd.graph import GradientEdge


class GradientSums:
    """Tells the sums that autograd takes between two nodes of a backward from those inside of one.

    Between two is: after the one that has just run, and before another one starts.
    """

    def __init__(self) -> None:
        self._finished: int | None = None  # sequence number of the node that has just run

    def watch(self, roots: Iterable[torch.Tensor | GradientEdge]) -> None:
        """Follow the backward of ``roots``, which is to run next. O(nodes)."""
        starts = (root.grad_fn if isinstance(root, torch.Tensor) else root.node for root in roots)
        pending = [node for node in starts if node is not None]
        seen = set(pending)
        while pending:
            node = pending.pop()
            if node.next_functions:  # not an AccumulateGrad, which passes nothing on
                node.register_hook(self._ran)
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    pending.append(following)

    def is_one(self) -> bool:
        """Whether an addition that runs now is a sum of gradients that autograd takes."""
        if self._finished is None:
            return False
        node = torch._C._current_autograd_node()
        if node is None or node._sequence_nr() != self._finished or torch.is_grad_enabled():
            self._finished = None
        return self._finished is not None

    def _ran(self, *_: Any) -> None:
        node = torch._C._current_autograd_node()
        self._finished = None if node is None else node._sequence_nr()


_FOLLOWING: ContextVar[GradientSums | None] = ContextVar("following", default=None)


@contextmanager
def following(sums: GradientSums) -> Iterator[None]:
    """Inside, ``sums`` is told of the backward passes that a program runs by itself."""
    token = _FOLLOWING.set(sums)
    try:
        yield
    finally:
        _FOLLOWING.reset(token)


def goes_back(roots: Iterable[torch.Tensor]) -> None:
    """Say that the backward of ``roots`` runs next."""
    sums = _FOLLOWING.get()
    if sums is not None:
        sums.watch(roots)
