"""20,000 mutated files: refused in our own words or harmless, in little memory, with nothing run, written or opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MUTATE = Path(__file__).with_name("mutate.py")
MOST_MB = 256


def mutate(*words):
    done = subprocess.run([sys.executable, MUTATE, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("first", "count"), [(0, 20_000), pytest.param(20_000, 980_000, marks=pytest.mark.long)], ids=["ci", "release"]
)
def test_mutated_files(first, count):
    found = mutate(first, count)
    print(found)
    outcomes = found["outcomes"]
    assert found["escaped"] == []
    assert set(outcomes) == {
        "plan PlanError",
        "plan CapacityError",
        "plan accepted",
        "cluster DeviceError",
        "cluster accepted",
    }
    assert sum(outcomes.values()) == count
    assert outcomes["plan accepted"] > count / 100, "hardly anything is read to its end"
    assert found["seen"] == {}
    assert found["peak_mb"] < MOST_MB


def test_what_must_be_seen_is_seen():
    seen = {event.partition(" ")[0] for event in mutate("harm")["seen"]}
    assert seen >= {"open", "compile", "exec", "import", "subprocess.Popen", "socket.__new__"}
