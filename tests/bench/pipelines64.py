"""Seconds of the pipeline search on chains of random costs: ``python tests/bench/pipelines64.py``.

100 blocks on 64 devices and 300 on 8, with room for all and with little: one device for each stage, the same number of
devices for each, any number that divides the 256 micro-batches, and that with recomputation.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace

import numpy as np

from autosplit.solvers.blocks.fleet import UNLIMITED, Fleet, Kind
from autosplit.solvers.blocks.quotient import Quotient, Recomputed
from autosplit.solvers.stages.dynamic import best_line
from autosplit.solvers.stages.family import Prefixes
from autosplit.solvers.stages.line import ALONE, Flight, Replication

MICROBATCHES = 256


def chain(count: int) -> Quotient:
    """Blocks of 5 to 30 ms; recomputed they take a third more and hold a tenth."""
    rng = random.Random(count)
    plain = Quotient.of_numbers(
        [[rng.randint(5_000_000, 30_000_000) for _ in range(count)]],
        [(rng.randint(100_000, 2_000_000), i, [i + 1]) for i in range(count - 1)],
        fixed_bytes=[rng.randint(1, 4) * 10**8 for _ in range(count)],
        stash_bytes=[rng.randint(1, 9) * 10**7 for _ in range(count)],
    )
    gradient = np.array([[rng.randint(10_000_000, 40_000_000) for _ in range(count)]])
    again = Recomputed(plain.work_ns * 4 // 3, plain.fixed_bytes, plain.stash_bytes // 10)
    return replace(plain, gradient_ns=gradient, recomputed=again)


def main() -> None:
    print("blocks  devices  capacity  pipeline             ms a micro-batch  stages  recomputed  seconds")
    for count, devices, capacity in (
        (100, 64, UNLIMITED),
        (100, 64, 4 * 10**9),
        (300, 8, UNLIMITED),
        (300, 8, 15 * 10**9),
    ):
        quotient = chain(count)
        family, fleet = Prefixes(quotient, range(count)), Fleet((Kind(tuple(range(devices)), capacity),))
        any_degree = Replication.up_to(devices, MICROBATCHES)
        for name, replication, recompute in (
            ("straight", ALONE, False),
            ("grid", any_degree._replace(uniform=True), False),
            ("replicas", any_degree, False),
            ("replicas, recomputed", any_degree, True),
        ):
            start = time.perf_counter()
            line = best_line(family, fleet, Flight(MICROBATCHES, replication=replication, recompute=recompute))
            seconds = time.perf_counter() - start
            room = "-" if capacity == UNLIMITED else f"{capacity / 1e9:g} GB"
            found = "does not fit" if line is None else f"{line.value / 1e6:.3f}{'' if not line.slack else ' at most'}"
            stages = () if line is None else line.stages
            again = sum(len(stage.recomputed) for stage in stages)
            head = f"{count:6}  {devices:7}  {room:8}  {name:20} {found:>16}"
            print(f"{head}  {len(stages):6}  {again:10}  {seconds:7.2f}", flush=True)


if __name__ == "__main__":
    main()
