"""networkx's dispatch, in fresh processes: it reads its backends once, while it is imported."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import autosplit
from autosplit.flow.info import info

ROOT = Path(autosplit.__file__).parents[1]
DECLARED = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["entry-points"]
GROUPS = ("networkx.backends", "networkx.backend_info")

NETWORK = """
from autosplit.flow import SINK, SOURCE, FlowNetwork, backend
network = FlowNetwork(2)
network.add_arc(SOURCE, 0, 2**70)
network.add_arc(0, 1, 3)
network.add_arc(1, SINK, None)
"""
GRAPH = """
graph = nx.DiGraph()
nx.add_path(graph, "sab", capacity=2.5)
nx.add_path(graph, "bt", capacity=2)
"""


@pytest.fixture
def run(tmp_path):
    """Run code in a Python that finds the entry points of pyproject.toml as those of an installed autosplit."""
    metadata = tmp_path / f"autosplit-{autosplit.__version__}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: autosplit\nVersion: {autosplit.__version__}\n")
    lines = [f"[{group}]\nautosplit = {DECLARED[group]['autosplit']}\n" for group in GROUPS]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(tmp_path), str(ROOT)])

    def call(code):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_installed_autosplit_declares_the_backend():
    for group in GROUPS:
        found = {entry.name: entry.value for entry in importlib.metadata.entry_points(group=group)}
        assert found.get("autosplit") == DECLARED[group]["autosplit"], "install autosplit again: pip install -e ."


def test_info_names_what_the_backend_has():
    from autosplit.flow import backend

    assert info()["functions"].keys() == {"maximum_flow", "maximum_flow_value", "minimum_cut", "minimum_cut_value"}
    assert all(callable(getattr(backend, name)) for name in info()["functions"])


def test_importing_networkx_imports_next_to_nothing_of_ours(run):
    found = run(
        "import sys, networkx\n"
        "assert 'autosplit' in networkx.config.backends\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('autosplit', 'torch')))"
    )
    assert found.split() == ["autosplit", "autosplit.flow", "autosplit.flow.info"]


@pytest.mark.parametrize("first", ["autosplit.flow.backend", "autosplit.flow.network", "autosplit.flow.residual"])
def test_our_modules_may_be_imported_before_networkx(run, first):
    assert run(f"import {first}, networkx as nx; print('autosplit' in nx.utils.backends.backends)").split() == ["True"]


def test_backend_by_keyword(run):
    run(
        "import networkx as nx"
        + GRAPH
        + """
nx.config.warnings_to_ignore.add("cache")
expected = nx.minimum_cut(graph, "s", "t")
assert expected == nx.minimum_cut(graph, "s", "t", backend="autosplit") == (2, (set("sab"), {"t"}))
assert nx.minimum_cut_value(graph, "s", "t", backend="autosplit") == 2
assert nx.maximum_flow_value(graph, "s", "t", backend="autosplit") == 2
flow = {"s": {"a": 2}, "a": {"b": 2}, "b": {"t": 2}, "t": {}}
assert nx.maximum_flow(graph, "s", "t", backend="autosplit") == (2, flow)
graph["b"]["t"]["capacity"] = 9  # networkx warns that its cached conversions miss this; ours sees it
assert nx.minimum_cut_value(graph, "s", "t", backend="autosplit") == 2.5
"""
    )


def test_backend_by_priority(run):
    code = (
        "import networkx as nx"
        + GRAPH
        + """
from unittest import mock
from autosplit.flow import backend
nx.config.backend_priority.algos = ["autosplit"]
with mock.patch.object(backend, "minimum_cut", wraps=backend.minimum_cut) as ours:
    assert nx.minimum_cut(graph, "s", "t")[0] == 2
    assert ours.call_count == 1
    push = nx.algorithms.flow.preflow_push
    assert nx.minimum_cut(graph, "s", "t", flow_func=push)[0] == 2  # networkx does what we cannot
    assert ours.call_count == 1
assert nx.shortest_path_length(graph, "s", "t") == 3
"""
    )
    run(code)


def test_a_flow_network_is_dispatched_without_conversion(run):
    run(
        "import networkx as nx"
        + NETWORK
        + """
def refuse(*_, **__):
    raise AssertionError("converted")

backend.convert_to_nx = backend.convert_from_nx = refuse
assert nx.minimum_cut(network, SOURCE, SINK) == (3, ({SOURCE, 0}, {SINK, 1}))
assert nx.minimum_cut_value(network, SOURCE, SINK) == nx.maximum_flow_value(network, SOURCE, SINK) == 3
"""
    )


def test_a_flow_network_is_converted_for_what_only_networkx_has(run):
    run(
        "import networkx as nx"
        + NETWORK
        + """
assert nx.shortest_path(network, SOURCE, SINK, backend="networkx") == [SOURCE, 0, 1, SINK]
assert nx.maximum_flow(network, SOURCE, SINK) == (3, {SOURCE: {0: 3}, 0: {1: 3}, 1: {SINK: 3}, SINK: {}})
"""
    )
