"""A lower bound of the bottleneck of any labelling: the work, shared out as if blocks could be divided."""

from __future__ import annotations

import numpy as np

from autosplit.solvers.fleet import Fleet
from autosplit.solvers.population import Floats
from autosplit.solvers.quotient import Quotient

_PASSES = 2
_STEPS = 50
_WIDEST = 20.0  # prices differ by at most exp of this
_UNIT = 1 << 20  # the price of the first kind in the exact sum


def share_bound(quotient: Quotient, fleet: Fleet) -> int:
    """No labelling, contiguous or not, has a bottleneck under this, in ns. Transfers and memory are left out.

    For any prices > 0 of the devices, the bottleneck is at least the priced sum of the loads over the sum of the
    prices, hence at least the sum over blocks of the least price x work there. Good prices are searched for by floats;
    the bound is summed in integers. Besides, each block takes its least work somewhere. A block that is allowed
    nowhere counts nothing.

    Complexity: O(blocks x kinds^2) with 100 rounds.
    Source: Lagrangian dual of scheduling on unrelated machines (Lenstra, Shmoys, Tardos 1990).

    >>> from autosplit.solvers.fleet import Kind
    >>> share_bound(Quotient.of_numbers([[5, 4, 3]]), Fleet((Kind((0, 1)),)))
    6
    """
    work = np.where(quotient.allowed, quotient.work_ns, np.inf)[:, quotient.allowed.any(axis=0)]
    if not work.size:
        return 0
    counts = np.array([len(kind.devices) for kind in fleet.kinds], dtype=np.float64)
    prices = [max(1, round(_UNIT * float(price))) for price in _prices(work, counts)]
    total = 0
    for block, allowed in zip(quotient.work_ns.T.tolist(), quotient.allowed.T.tolist(), strict=True):
        total += min((p * w for p, w, ok in zip(prices, block, allowed, strict=True) if ok), default=0)
    devices = sum(price * len(kind.devices) for price, kind in zip(prices, fleet.kinds, strict=True))
    return max(-(-total // devices), int(work.min(axis=0).max()))


def _prices(work: Floats, counts: Floats) -> Floats:
    """Prices of the kinds that make the bound large, the first kind's 1: one at a time by ternary search."""
    logs = np.zeros(len(work))
    logs[counts == 0] = _WIDEST

    def bound(kind: int, log: float) -> float:
        tried = np.exp(np.where(np.arange(len(work)) == kind, log, logs))
        return float((work * tried[:, None]).min(axis=0).sum() / (counts @ tried))

    for _ in range(_PASSES if len(work) > 1 else 0):
        for kind in range(1, len(work)):
            low, high = -_WIDEST, _WIDEST
            for _ in range(_STEPS):
                left, right = (2 * low + high) / 3, (low + 2 * high) / 3
                low, high = (left, high) if bound(kind, left) < bound(kind, right) else (low, right)
            logs[kind] = (low + high) / 2
    prices: Floats = np.exp(logs - logs[0])
    return prices
