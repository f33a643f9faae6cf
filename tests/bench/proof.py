"""Seconds to a proof that a contiguous plan is optimal: ``python tests/bench/proof.py``.

Graphs of 4,000 and 10,000 nodes, eight devices, thread CPU time: a plan from a few orders, then the certificate.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hard_cases import fleet, gpt, llama

from autosplit.solvers.certificate.certify import certify
from autosplit.solvers.stages.contiguous import by_orders
from autosplit.solvers.stages.line import ONE_AT_A_TIME


def main() -> None:
    """Print the table."""
    print(f"{'graph':12} {'nodes':>6} {'plan s':>7} {'proof s':>8}")
    for name, graph in (("llama, 102", llama(102)), ("gpt, 280", gpt(280)), ("gpt, 768", gpt(768))):
        quotient = graph.quotient(1)
        devices = fleet(quotient, 8)
        began = time.thread_time()
        line = by_orders(quotient, devices, ONE_AT_A_TIME)
        planned = time.thread_time()
        assert line is not None
        found = certify(quotient, devices, line.value)
        proof = f"{time.thread_time() - planned:8.2f}" if found.proved else "not proved"
        print(f"{name:12} {len(quotient):6} {planned - began:7.2f} {proof}", flush=True)


if __name__ == "__main__":
    main()
