"""A split model that several threads call, or that calls itself, computes what the unsplit one does."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import autosplit
from autosplit import sim

W = 16


class Net(nn.Module):
    """Calls itself again for each further round."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(W, W), nn.Tanh()) for _ in range(4))

    def forward(self, x: torch.Tensor, rounds: int = 1) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if rounds == 1 else self.forward(x, rounds - 1)


def split_of(model: nn.Module, cluster: Any) -> nn.Module:
    homes = {f"layers.{i}": f"sim:{i // 2}" for i in range(4)}
    return autosplit.partition(model, cluster.devices, (torch.randn(2, W),), placement=homes, profile=False)


def wrong_in_threads(call: Callable[[int], tuple[torch.Tensor, torch.Tensor]], threads: int = 4) -> list[str]:
    """What went wrong in so many threads; ``call(i)`` gives what came and what was to come."""
    wrong: list[str] = []

    def work(first: int) -> None:
        for i in range(first, first + 40):
            try:
                torch.testing.assert_close(*call(i))
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}"[:200])

    workers = [threading.Thread(target=work, args=(7 * i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return wrong


def test_threads_call_one_split_model() -> None:
    model = Net()
    whole = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        split = split_of(model, cluster)

        def call(i: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(2 + i % 5, W)
            if i % 2:
                return split(x), whole(x)
            with torch.no_grad():
                return split(x), whole(x)

        assert wrong_in_threads(call) == []
        assert type(split).__mro__[1] is Net
        assert "forward" not in split.__dict__


def test_a_model_calls_its_own_forward() -> None:
    model = Net()
    whole = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        split = split_of(model, cluster)
        for rounds in (1, 3, 3, 1):
            x = torch.randn(4, W)
            torch.testing.assert_close(split(x, rounds), whole(x, rounds))


def test_a_model_is_planned_copied_and_read_while_it_is_called() -> None:
    model = Net()
    whole = copy.deepcopy(model)
    x = torch.randn(3, W)
    want = whole(x)
    with sim.cluster("2x64MiB") as cluster:
        split = split_of(model, cluster)
        split(x)
        ways: dict[int, Callable[[], object]] = {
            0: lambda: autosplit.plan(split, cluster.devices, (x,), mode="infer", profile=False).mode,
            1: lambda: copy.deepcopy(split)(x).shape,
            2: lambda: split.plan.strategy,
        }
        known = {way: make() for way, make in ways.items()}

        def call(i: int) -> tuple[torch.Tensor, torch.Tensor]:
            if i % 8 in ways:
                assert ways[i % 8]() == known[i % 8]
            return split(x), want

        assert wrong_in_threads(call, threads=2) == []
        assert {"forward", "plan", "__deepcopy__"}.isdisjoint(split.__dict__)


def test_threads_come_to_the_first_call_together() -> None:
    model = Net()
    whole = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        split = autosplit.partition(model, cluster.devices, strategy="split", profile=False)

        def call(i: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(2 + i % 3, W)
            return split(x), whole(x)

        assert wrong_in_threads(call) == []


def test_a_forward_copies_its_own_model() -> None:
    class Copies(Net):
        def forward(self, x: torch.Tensor, rounds: int = 1) -> torch.Tensor:
            if x.sum() > 1e9:  # no one graph, so that Python runs each time
                return x
            self.twin = [copy.deepcopy(self)]
            return super().forward(x, rounds)

    model = Copies()
    want = copy.deepcopy(model)(torch.ones(2, W))
    with sim.cluster("2x64MiB") as cluster:
        split = split_of(model, cluster)
        torch.testing.assert_close(split(torch.ones(2, W)), want)


def test_what_a_model_calls_plan_stays_its_own() -> None:
    class Planned(Net):
        def __init__(self) -> None:
            super().__init__()
            self.plan = 2.0

        def forward(self, x: torch.Tensor, rounds: int = 1) -> torch.Tensor:
            return super().forward(x, rounds) * self.plan

    model = Planned()
    whole = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        split = split_of(model, cluster)
        for batch in (2, 2, 3):
            x = torch.randn(batch, W)
            torch.testing.assert_close(split(x), whole(x))
        assert split.__dict__["plan"] == 2.0
        assert split.plan.strategy == "split"
