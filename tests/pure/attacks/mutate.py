"""Mutated plan and cluster files, read in a process of its own that watches what Python does meanwhile.

``python mutate.py FIRST COUNT`` reads as many mutations, the same for the same seeds, and prints one JSON document:
how many were refused and how, what escaped, what the interpreter was seen doing that reading has no reason for, and
the most memory the process had. ``python mutate.py harm`` does such things, to show that they are seen.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import autosplit.device.file as cluster_file
from autosplit import report
from autosplit.device import Cluster, Link, parse_cluster, to_toml
from autosplit.errors import CapacityError, DeviceError, PlanError
from autosplit.placement import Plan
from autosplit.report.compare import differences
from autosplit.report.explorer import explorer
from autosplit.report.html import page
from autosplit.report.notebook import fragment
from autosplit.report.trace import trace

_NUMBERS = [0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40, 0.5, 1e308, float("nan"), float("inf")]
_TEXTS = ["", "host", "gpu:0", "gpu:9", "\x1b[2J", "\u202e", "\0", "../../x", "a" * 2000, "\ud800", "é" * 99, "4"]
_VALUES = [*_NUMBERS, *_TEXTS, None, True, False, [], {}, [[]], [None], {"": {}}, {"a": 1}, ["gpu:0"]]
_BITS = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"-", b"\0", b"\xff", b"\\ud800", b"1e9"]
_BITS += [b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"=", b"[[links]]\n", b"'" * 3, b'"' * 3, b"#", b"1979-05-27"]
_WATCHED = ("os", "subprocess", "socket", "ctypes", "shutil", "pty", "urllib", "http", "sqlite3", "marshal", "pickle")
_NAMED = ("open", "compile", "exec", "import", "code.__new__", "function.__new__")


class Watch:
    """What the interpreter was seen doing while it was on."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: collections.Counter[str] = collections.Counter()
        sys.addaudithook(self._note)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """On inside; a module that is new after it was imported by what was read."""
        modules, self.is_on = len(sys.modules), True
        try:
            yield
        finally:
            self.is_on = False
            if len(sys.modules) != modules:
                self.seen["import of a module"] += 1

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_on:
            return
        if event in _NAMED or event.partition(".")[0] in _WATCHED:
            self.seen[f"{event} {str(arguments[:2])[:80]}"] += 1


def plans() -> list[bytes]:
    """What is mutated: a plan of each form."""
    text = (Path(__file__).parent / "told" / "code.json").read_bytes()
    split = json.loads(text.replace(b"__import__('os').system('id')", b"gpu:0"))
    split["prediction"]["devices"]["gpu:0"]["timeline"] = {
        "positions": [0, 1],
        "allocated_bytes": [5, 9],
        "phases": [["forward", 0]],
    }
    split["prediction"]["spans"] = [
        {"device": "gpu:0", "kind": "forward", "start_ns": 0, "end_ns": 5},
        {"device": "gpu:0", "kind": "send", "start_ns": 5, "end_ns": 6, "to": "gpu:1", "microbatch": 1},
    ]
    stages = {"microbatches": 4, "schedule": "1f1b", "stages": [["gpu:0/mm"], ["b/mm"]]}
    piped = split | {"strategy": "pipeline", "pipeline": stages, "replicas": 2, "batch": 8, "optimizer": "adamw"}
    return [json.dumps(document).encode() for document in (split, piped)]


def clusters() -> list[bytes]:
    """A plain cluster, and one with links."""
    plain = parse_cluster("2x24GiB")
    link = Link(src="gpu:0", dst="gpu:1", bandwidth_bytes_per_s=10**9, latency_ns=5)
    linked = Cluster(devices=parse_cluster("1xA100-80GB,1x8GiB").devices, links=(link,), assumptions=("measured",))
    return [to_toml(cluster).encode() for cluster in (plain, linked)]


def in_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few random edits that know nothing of the format."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, to = sorted((rng.randrange(len(data) + 1), min(len(data), rng.randrange(len(data) + 1))))
        near = min(len(data), at + rng.randrange(1, 9))
        data = rng.choice(
            (
                lambda d, at=at, near=near: d[:at] + d[near:],
                lambda d, at=at: d[:at] + rng.choice(_BITS) + d[at:],
                lambda d, at=at, near=near: d[:at] + rng.choice(_BITS) + d[near:],
                lambda d, at=at: d[:at] + bytes([rng.randrange(256)]) + d[at + 1 :],
                lambda d, at=at, to=to: d[:to] + d[at:to] + d[to:] if to - at < 400 else d[:at],
                lambda d, at=at, to=to: d[:at] + d[to:],
            )
        )(data)
    return data


def in_form(data: bytes, rng: random.Random) -> bytes:
    """A few edits of the document: another value, a key gone, renamed, twice, or in another place."""
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder = rng.choice(_holders(document))
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            continue
        key, value = rng.choice(keys), rng.choice(_VALUES)
        edit = rng.randrange(4)
        if edit == 0:
            del holder[key]
        elif edit == 1 and isinstance(holder, dict):
            holder[str(rng.choice(_TEXTS))] = holder.pop(key)
        elif edit == 2:
            other = rng.choice(_holders(document))
            holder[key] = json.loads(json.dumps(other))
        else:
            holder[key] = value
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _holders(document: object) -> list:
    found, todo = [], [document]
    while todo:
        value = todo.pop()
        if isinstance(value, dict | list):
            found.append(value)
            todo += value.values() if isinstance(value, dict) else value
    return found


def try_plan(data: bytes, rng: random.Random, watch: Watch, base: Plan) -> str:
    """What became of a mutated plan; an accepted one is used as a user would."""
    try:
        with watch.reading():
            plan = Plan.from_json(data)
            if Plan.from_json(plan.to_json()) != plan:
                return "is another plan when it is written and read"
            differences(base, plan)
            with contextlib.suppress(PlanError):
                plan.to_device_map()
    except (PlanError, CapacityError) as error:
        return f"{type(error).__name__}{'' if len(str(error)) < 2000 else ' in far too many words'}"
    if rng.random() < 0.05:
        for make in (page, trace, explorer, fragment, Plan.why):
            make(plan)
        shown = report.text(plan)
        return "accepted" if all(char.isprintable() or char == "\n" for char in shown) else "rewrites the screen"
    return "accepted"


def try_cluster(data: bytes, watch: Watch) -> str:
    """What became of a mutated cluster file."""
    cluster_file.read = lambda path, most_bytes: data
    try:
        with watch.reading():
            cluster_file.read_cluster("x.toml")
    except DeviceError as error:
        return f"DeviceError{'' if len(str(error)) < 2000 else ' in far too many words'}"
    return "accepted"


def main(first: int, count: int) -> dict[str, object]:
    """Read mutations ``first`` to ``first + count``: four plans to each cluster."""
    watch, outcomes, escaped = Watch(), collections.Counter(), []
    whole, tables = plans(), clusters()
    base = Plan.from_json(whole[0])
    report.text(base)
    for warm in (b"{", b'{"format":4}', whole[1]):
        try_plan(warm, random.Random(0), Watch(), base)
    for warm in (b"x = ", b"x = 1", tables[1]):
        try_cluster(warm, Watch())
    for seed in range(first, first + count):
        rng = random.Random(seed)
        try:
            if seed % 5 == 4:
                outcome = f"cluster {try_cluster(in_bytes(rng.choice(tables), rng), watch)}"
            else:
                mutate = in_form if rng.random() < 0.7 else in_bytes
                outcome = f"plan {try_plan(mutate(rng.choice(whole), rng), rng, watch, base)}"
        except Exception as error:
            outcome = f"escaped {type(error).__name__}"
            escaped.append(f"seed {seed}: {error!r}"[:300])
        outcomes[outcome] += 1
    seen = dict(watch.seen.most_common(20))
    return {"outcomes": dict(outcomes), "escaped": escaped[:20], "seen": seen, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Most memory of this process. Not ru_maxrss: that begins with what the process had that started this one."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("this kernel does not tell the peak of a process in /proc/self/status")
    return int(found[1]) * 1024 / 1e6


def harm() -> dict[str, object]:
    """What must not go unseen."""
    watch = Watch()
    watch.is_on = True
    with open(os.devnull, "w"):
        pass
    exec("pass")
    subprocess.run(["true"], check=True)
    socket.socket().close()
    with contextlib.suppress(ImportError):
        __import__("a_module_that_is_not_there")
    watch.is_on = False
    return {"seen": dict(watch.seen)}


if __name__ == "__main__":
    os.chdir("/")
    print(json.dumps(harm() if sys.argv[1] == "harm" else main(int(sys.argv[1]), int(sys.argv[2]))))
