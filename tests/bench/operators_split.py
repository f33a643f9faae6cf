"""Split every operator and module of torch between two virtual devices, and count what became of each sample.

    python tests/bench/operators_split.py [--samples 2] [--log outcomes.jsonl]

Prints the tables of docs/reliability.md. ``--samples`` takes so many of each operator, in place too where it has
such a form, and of each module in train and in eval mode, spread over those it has; without it all are run (hours).
What is in ``--log`` already is taken from there, so that a run can be ended and gone on with.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from operators import (
    MODULES,
    RAISES,
    SUPPORTED,
    UNSUPPORTED,
    Case,
    in_place_names,
    module_cases,
    operator_cases,
    outcomes,
)

OUTCOMES = ("equal", "close", "fell", "refused", "undefined", "different", "raw error")
_CAPTURE = re.compile(r"cannot be captured as one graph(?: at \S+ in \S+)?: (.*?); rewrite that line", re.DOTALL)


def main() -> int:
    """Run, print, and say by the exit status whether anything differed, or raised an error that is not known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, help="at most so many of each operator or module")
    parser.add_argument("--log", type=Path, help="one JSON line a sample; what it has is not run again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.monotonic()
    kinds = {kind: list(_run(family(options.samples), kind, options.log)) for kind, family in FAMILIES.items()}
    _print_counts(kinds)
    _print_reasons([outcome for found in kinds.values() for outcome in found])
    print(f"\nnot tried: {len(UNSUPPORTED)} operators that a virtual device does not run, split or not")
    print(f"{time.monotonic() - start:.0f} s")
    return int(any(_is_fault(case, outcome) for found in kinds.values() for case, outcome, _ in found))


def _operators(most: int | None) -> Iterator[Iterable[Case]]:
    return (operator_cases(name, most=most) for name in SUPPORTED)


def _in_place(most: int | None) -> Iterator[Iterable[Case]]:
    return (operator_cases(name, in_place=True, most=most) for name in in_place_names())


def _modules(most: int | None) -> Iterator[Iterable[Case]]:
    return (module_cases(name, training, most) for name in MODULES for training in (True, False))


FAMILIES = {"operators": _operators, "operators in place": _in_place, "modules": _modules}


def _run(family: Iterator[Iterable[Case]], kind: str, log: Path | None) -> Iterator[tuple[str, str, str]]:
    done = _logged(log, kind)
    for cases in family:
        for case in cases:
            found = done.get(case.name) or next(outcomes([case]))
            if log is not None and case.name not in done:
                with log.open("a") as file:
                    file.write(json.dumps([kind, *found]) + "\n")
            yield found
        torch._dynamo.reset()  # else it remembers every model


def _logged(log: Path | None, kind: str) -> dict[str, tuple[str, str, str]]:
    """What an earlier run wrote, by case."""
    if log is None or not log.exists():
        return {}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {case: (case, outcome, reason) for family, case, outcome, reason in lines if family == kind}


def _print_counts(kinds: dict[str, list[tuple[str, str, str]]]) -> None:
    print(f"| | tried | samples | {' | '.join(OUTCOMES)} |\n|{'---|' * (3 + len(OUTCOMES))}")
    for kind, found in kinds.items():
        counts = Counter(outcome for _, outcome, _ in found)
        row = [kind, len({_name(case) for case, _, _ in found}), len(found), *(counts[key] for key in OUTCOMES)]
        print(f"| {' | '.join(map(str, row))} |")


def _print_reasons(found: list[tuple[str, str, str]]) -> None:
    groups: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for case, outcome, reason in found:
        if outcome != "equal":
            groups[outcome, _short(reason)][_name(case)] += 1
    print("\n| outcome | samples | reason | of |\n|---|---|---|---|")
    for (outcome, reason), names in sorted(groups.items(), key=lambda group: (group[0][0], -group[1].total())):
        print(f"| {outcome} | {names.total()} | {reason} | {', '.join(names)} |")


def _is_fault(case: str, outcome: str) -> bool:
    return outcome == "different" or (outcome == "raw error" and _name(case) not in RAISES)


def _name(case: str) -> str:
    return case.partition("[")[0]


def _short(reason: str) -> str:
    """The reason in one line without what differs between samples of one cause."""
    said = _CAPTURE.search(reason)
    line = (said[1] if said is not None else reason).split("\n")[0]
    line = f"close: {line}" if said is not None and reason.startswith("close: ") else line
    return re.sub(r"\b(u?)\d+(\.\d+)?\b", r"\1N", line)[:160].replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
