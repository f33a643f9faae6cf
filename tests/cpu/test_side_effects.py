"""What a call leaves in the caller's objects and the model's is what the unsplit model leaves, at every rung."""

from __future__ import annotations

import collections
import copy
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import autosplit
from autosplit import sim

LOG: list[Any] = []
COUNT = 0
PLACEMENT = {"a": "sim:0", "b": "sim:1"}


class Two(nn.Module):
    """Two blocks on two devices; ``step`` is the forward, and ``breaks`` keeps it from being one graph."""

    def __init__(self, step, breaks: bool = False, **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.b = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.step, self.breaks = step, breaks
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor, *args: Any) -> Any:
        if self.breaks and x.sum() > 1e9:
            return x
        return self.step(self, x, *args)


@dataclass
class Holder:
    kept: list[Any] = field(default_factory=list)
    state: Any = None


class Slotted:
    __slots__ = ("__hidden", "state")

    def __init__(self) -> None:
        self.state = self.__hidden = None

    def put(self, value: Any) -> None:
        self.state = self.__hidden = value

    def get(self) -> Any:
        return self.__hidden


def split_of(model: nn.Module, cluster: Any, *args: Any) -> nn.Module:
    return autosplit.partition(model, cluster.devices, args, placement=PLACEMENT, optimizer="sgd")


both_rungs = pytest.mark.parametrize("breaks", [False, True])


@both_rungs
def test_inputs_kept_in_objects_are_the_callers(breaks) -> None:
    def step(m, x, holder, log, found):
        y = m.b(m.a(x))
        holder.state, found["k"] = x, [x]
        holder.kept.append((x, y))
        log.append((x, y))
        LOG.append(x)
        return y

    with sim.cluster("2x64MiB") as cluster:
        x, holder, log, found = torch.randn(2, 4).to("sim:0"), Holder(), [], {}
        split = split_of(Two(step, breaks), cluster, x, holder, log, found)
        assert (holder.state, holder.kept, log, found) == (None, [], [], {})
        LOG.clear()
        split(x, holder, log, found)
        for kept in (holder.state, holder.kept[0][0], log[0][0], found["k"][0]):
            assert kept is x
        assert torch.equal(log[0][1].cpu(), split(x, holder, log, found).cpu())
        assert len(LOG) == 2


@pytest.mark.filterwarnings("ignore:this and later calls like it run in plain Python")  # what it kept is on a device
@both_rungs
def test_a_deque_and_a_slotted_object(breaks) -> None:
    def step(m, x, slotted):
        y = m.b(m.a(x))
        before = slotted.get()
        slotted.put(y.detach())
        m.history.append(y.detach())
        return y + sum(m.history) + (0 if before is None else before)

    model = Two(step, breaks, history=collections.deque(maxlen=3))
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x, want, have = torch.randn(2, 4), Slotted(), Slotted()
        split = split_of(model, cluster, x.to("sim:0"), have)
        assert (len(split.history), have.state, have.get()) == (0, None, None)
        for _ in range(4):
            torch.testing.assert_close(split(x.to("sim:0"), have).cpu(), unsplit(x, want))


@both_rungs
def test_a_list_that_the_model_keeps_is_the_callers(breaks) -> None:
    def step(m, x, memory, found):
        m.memory = memory
        return m.b(m.a(x)) + len(memory), found

    with sim.cluster("2x64MiB") as cluster:
        x, memory, found = torch.randn(2, 4).to("sim:0"), [1], {"a": 1}
        split = split_of(Two(step, breaks), cluster, x, memory, found)
        result = split(x, memory, found)
        assert split.memory is memory
        assert result[1] is found


def test_writes_through_the_alignment_reach_the_caller() -> None:
    def step(m, x, mask, sums, out):
        h = m.a(x)
        mask |= h > 0
        with torch.no_grad():
            torch._foreach_add_(sums, [h.detach()] * 2)
            torch.mul(m.b(h).detach(), 2, out=out)
        return m.b(h)

    unsplit = Two(step, True)
    with sim.cluster("2x64MiB") as cluster:
        x = torch.randn(2, 4)

        def given(device: str) -> Any:
            zeros = [torch.zeros(2, 4, device=device) for _ in range(3)]
            return torch.zeros(2, 4, dtype=torch.bool, device=device), zeros[:2], zeros[2]

        split = autosplit.partition(
            copy.deepcopy(unsplit), cluster.devices, (x, *given("cpu")), placement={"a": "sim:1", "b": "sim:0"}
        )
        want, have = given("cpu"), given("sim:0")
        unsplit(x, *want)
        split(x.to("sim:0"), *have)
        for expected, found in zip((want[0], *want[1], want[2]), (have[0], *have[1], have[2]), strict=True):
            assert torch.equal(found.cpu(), expected)


def test_a_view_of_an_input_that_a_module_returns_is_a_view_of_the_input() -> None:
    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, h):
            if float(self.bias.detach()) > 1e9:
                return h
            return h[:, :2]

    def step(m, x):
        h = m.a(x) * 1
        v = m.view(h)
        v.add_(1)
        return m.b(h)

    unsplit = Two(step, True, view=View())
    with sim.cluster("2x64MiB") as cluster:
        x = torch.randn(2, 4)
        placement = {**PLACEMENT, "view": "sim:1"}
        split = autosplit.partition(copy.deepcopy(unsplit), cluster.devices, (x,), placement=placement)
        assert torch.equal(split(x.to("sim:0")).cpu(), unsplit(x))


def test_planning_on_data_changes_no_tensor_and_no_count() -> None:
    def step(m, x):
        global COUNT  # noqa: PLW0603  # what is tested
        COUNT += 1
        m.n.add_(1)
        return m.b(m.a(x)) * m.n.sum()

    model = Two(step, True, n=torch.zeros(4))
    unsplit, before = copy.deepcopy(model), COUNT
    with sim.cluster("2x64MiB") as cluster:
        x = torch.randn(2, 4)
        split = split_of(model, cluster, x)
        assert (split.n.tolist(), COUNT) == ([0] * 4, before)
        assert torch.equal(split(x.to("sim:0")).cpu(), unsplit(x))


def test_gradients_taken_in_a_forward_below_one_graph() -> None:
    def step(m, x):
        at = x.detach().requires_grad_()
        y = m.b(m.a(at))
        (slope,) = torch.autograd.grad(y, at, grad_outputs=torch.ones_like(y), create_graph=True)
        return y + slope

    model = Two(step, True)
    unsplit = copy.deepcopy(model)
    with sim.cluster("2x64MiB") as cluster:
        x = torch.randn(2, 4)
        split = split_of(model, cluster, x)
        want, have = unsplit(x), split(x.to("sim:0"))
        assert torch.equal(have.cpu(), want)
        want.sum().backward()
        have.sum().backward()
        for name, parameter in unsplit.named_parameters():
            torch.testing.assert_close(split.get_parameter(name).grad.cpu(), parameter.grad)


def test_a_buffer_can_be_returned_and_a_generator_used() -> None:
    model = Two(lambda m, x: (m.b(m.a(x)) + torch.rand(4, generator=m.g).to(x.device), m.k), True)
    model.register_buffer("k", torch.ones(3))
    model.g = torch.Generator().manual_seed(3)
    with sim.cluster("2x64MiB") as cluster:
        x = torch.randn(2, 4)
        split = split_of(model, cluster, x)
        assert torch.equal(split(x.to("sim:0"))[1].cpu(), torch.ones(3))


def test_an_interrupt_while_weights_are_swapped_leaves_them_whole() -> None:
    class Interrupts(dict):
        armed = False

        def __setitem__(self, key: str, value: Any) -> None:
            if Interrupts.armed:
                Interrupts.armed = False
                raise KeyboardInterrupt
            super().__setitem__(key, value)

    model = Two(lambda m, x: m.b(m.a(x)))
    with sim.cluster("2x64MiB") as cluster:
        x = torch.randn(2, 4).to("sim:0")
        model.b[2].__dict__["_parameters"] = Interrupts(model.b[2]._parameters)
        split = split_of(model, cluster, x)
        want = split(x)
        Interrupts.armed = True
        with pytest.raises(KeyboardInterrupt):
            split(x)
        assert all(parameter.untyped_storage().nbytes() for parameter in split.parameters())
        assert torch.equal(split(x).cpu(), want.cpu())


def test_threads_share_a_model_that_is_no_one_graph() -> None:
    model = Two(lambda m, x: m.b(m.a(x)) + m.a[0].weight.sum(), True)
    unsplit = copy.deepcopy(model)
    x = torch.randn(2, 4)
    want = unsplit(x).detach()
    with sim.cluster("2x64MiB") as cluster:
        split = split_of(model, cluster, x)
        split(x.to("sim:0"))
        wrong: list[object] = []

        def work() -> None:
            for _ in range(30):
                have = split(x.to("sim:0")).detach().cpu()
                if not torch.equal(have, want):
                    wrong.append(have)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
