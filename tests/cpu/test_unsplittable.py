"""Forwards with effects beside their result: split where that is possible, else a CaptureError that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import autosplit
from autosplit import sim

SEEN: list[int] = []
PLACEMENT = {"a": "sim:0", "b": "sim:1"}


class Net(nn.Module):
    """Two blocks; ``step`` is the forward."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.b = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.step = step

    def forward(self, x: torch.Tensor, *args: Any) -> Any:
        return self.step(self, x, *args)


def generator(m, x):
    yield m.a(x)
    yield m.b(x)


def expression(m, x):
    return (part(x) for part in (m.a, m.b))


def reads(path: str) -> Callable[..., Any]:
    def step(m, x):
        with open(path) as file:
            return m.b(m.a(x)) * float(file.read())

    return step


def raises(m, x):
    raise ValueError("the model's own words")


@pytest.mark.parametrize("capture", ["auto", "graph", "modules"])
@pytest.mark.parametrize("step", [generator, expression])
def test_a_generator_is_refused(step, capture) -> None:
    with pytest.raises(autosplit.CaptureError, match=r"returns a \w+, which .* return a list or a tuple"):
        autosplit.plan(Net(step), "2x64MiB", (torch.randn(3, 4),), capture=capture)


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(
        autosplit.CaptureError, match=r"raised FileNotFoundError.*gone\.txt.* at .*_unsplittable\.py:\d+ in step"
    ):
        autosplit.plan(Net(reads(str(tmp_path / "gone.txt"))), "2x64MiB", (torch.randn(3, 4),))


def test_a_file_that_is_there_is_read_at_each_call(tmp_path) -> None:
    path = tmp_path / "scale.txt"
    path.write_text("2.0")
    model, x = Net(reads(str(path))), torch.randn(3, 4)
    want = model(x)
    with sim.cluster("2x64MiB") as cluster:
        split = autosplit.partition(model, cluster.devices, (x,), placement=PLACEMENT)
        assert (split.plan.capture, split.plan.parts) == ("graphs", ("a", "b"))
        assert torch.equal(split(x.to("sim:0")).cpu(), want)
        path.write_text("4.0")
        assert torch.equal(split(x.to("sim:0")).cpu(), 2 * want)
        with pytest.raises(autosplit.CaptureError, match=r"test_unsplittable\.py:\d+"):
            autosplit.partition(split, cluster.devices, (x,), placement=PLACEMENT, capture="graph")


def test_what_the_model_raises_is_told() -> None:
    with pytest.raises(autosplit.CaptureError, match="ValueError: the model's own words"):
        autosplit.plan(Net(raises), "2x64MiB", (torch.randn(3, 4),))


@pytest.mark.parametrize("capture", ["auto", "modules"])
def test_lists_that_a_call_writes_are_written_by_calls_alone(capture) -> None:
    def step(m, x, log):
        SEEN.append(len(x))
        log.append(len(log))
        m.__dict__.setdefault("history", []).append(len(x))
        return m.b(m.a(x))

    model, x = Net(step), torch.randn(3, 4)
    SEEN.clear()
    with sim.cluster("2x64MiB") as cluster:
        given: list[int] = []
        split = autosplit.partition(model, cluster.devices, (x, given), placement=PLACEMENT, capture=capture)
        assert (SEEN, given, model.__dict__.get("history")) == ([], [], None)  # planning leaves no trace
        split(x.to("sim:0"), given)
        split(x.to("sim:0"), given)
        assert (SEEN, given, split.history) == ([3, 3], [0, 1], [3, 3])


def test_numpy_without_cpu_works_as_it_does_on_a_cpu(tmp_path) -> None:
    def step(m, x):
        h = m.a(x)
        (tmp_path / "seen").write_text(str(float(h.detach().numpy().max())))
        return m.b(h) * float(h.detach().numpy().max())

    model, x = Net(step), torch.randn(3, 4)
    want = model(x)
    with sim.cluster("2x64MiB") as cluster:
        split = autosplit.partition(model, cluster.devices, (x,), placement=PLACEMENT)
        assert split.plan.capture == "graphs"
        assert torch.equal(split(x.to("sim:0")).cpu(), want)


def test_prints_are_printed_once_a_call(capsys) -> None:
    def step(m, x):
        h = m.a(x)
        print("rows", len(h))
        return m.b(h)

    model, x = Net(step), torch.randn(3, 4)
    with sim.cluster("2x64MiB") as cluster:
        split = autosplit.partition(model, cluster.devices, (x,), placement=PLACEMENT)
        capsys.readouterr()
        split(x.to("sim:0"))
        split(x.to("sim:0"))
        assert capsys.readouterr().out == "rows 3\nrows 3\n"
