"""``batch=``: a plan for another number of samples, and for the largest that fits."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from misfits import WIDTH, net, samples
from torch import nn

import autosplit
from autosplit import CapacityError, PlanError, sim
from autosplit.api.batch import Example, Trials, _Search, largest
from autosplit.api.problem import Request
from autosplit.cli import main
from autosplit.device import parse_cluster
from autosplit.placement import Plan


def peaks(plan):
    return {name: device.peak_bytes for name, device in plan.prediction.devices.items()}


# ---------------------------------------------------------------- another batch


def test_another_batch_is_planned_as_if_it_were_given():
    resized = autosplit.plan(net(), "1x1GiB", samples(4), mode="train", batch=32)
    given = autosplit.plan(net(), "1x1GiB", samples(32), mode="train")
    assert (resized.batch, given.batch) == (32, None)
    assert resized.prediction == given.prediction
    assert any("float32[32, 32, 64]" in line for line in resized.assumptions)
    assert Plan.from_json(resized.to_json()).batch == 32


def test_only_what_has_the_batch_is_resized_and_the_layout_is_kept():
    image = torch.empty(4, 3, 8, 8).to(memory_format=torch.channels_last)
    table, scalar = torch.empty(5, 4), torch.tensor(1.0)
    example = Example((image, {"table": table, "again": image}), {"scalar": scalar, "n": 3}, "host").at(6)
    resized, others = example.args
    assert resized.shape == (6, 3, 8, 8)
    assert resized.is_contiguous(memory_format=torch.channels_last)
    assert resized.device.type == "meta"
    assert others["again"] is resized
    assert others["table"] is table
    assert example.kwargs == {"scalar": scalar, "n": 3}


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.fc(x.view(4, 32, WIDTH))


class Looks(Fixed):
    def forward(self, x):
        return self.fc(x) if x.sum().item() > 0 else x


class Scalar(Fixed):
    def forward(self, x):
        return self.fc.weight * x


@pytest.mark.parametrize(
    ("model", "inputs", "batch", "words"),
    [
        (Fixed(), samples(4), "max", "the batch of Fixed cannot be varied: with 8 samples in place of 4"),
        (Looks(), (torch.ones(4, WIDTH),), "max", "the batch of Looks cannot be varied"),
        (Scalar(), (torch.tensor(1.0),), "max", "no input has samples"),
        (Scalar(), (torch.tensor(1.0),), 3, "no input has samples"),
        (Fixed(), samples(4), 0, "batch=0"),
        (Fixed(), samples(4), True, "batch=True"),
        (Fixed(), samples(4), "min", "batch='min'"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_with_the_reason(model, inputs, batch, words):
    with pytest.raises(PlanError, match=words):
        autosplit.plan(model, "1x1GiB", inputs, mode="infer", batch=batch)


# ---------------------------------------------------------------- the largest


@pytest.mark.parametrize(("devices", "mode"), [("1x8MiB", "train"), ("2x4MiB", "infer")])
def test_the_largest_fits_and_one_more_is_refused(devices, mode):
    best = autosplit.plan(net(), devices, samples(4), mode=mode, batch="max")
    assert best.batch > 4
    assert best.assumptions[0].startswith(f"batch: {best.batch} is the largest found")
    assert best.reason.startswith(f"batch {best.batch} is the largest found that fits; ")
    again = autosplit.plan(net(), devices, samples(4), mode=mode, batch=best.batch)
    assert again.prediction == best.prediction
    with pytest.raises(CapacityError):  # as a whole: in micro-batches more may fit
        autosplit.plan(net(), devices, samples(4), mode=mode, batch=best.batch + 1, microbatches=1)


def test_the_largest_does_not_depend_on_the_example():
    found = {autosplit.plan(net(), "1x4MiB", samples(b), mode="infer", batch="max").batch for b in (1, 300)}
    assert len(found) == 1


@pytest.fixture(scope="module")
def captured():
    """What one model was captured as, by batch: another capacity needs no other capture."""
    return {}


@settings(max_examples=2)
@given(
    sizes=st.lists(st.integers(6, 24), min_size=2, max_size=2, unique=True), mode=st.sampled_from(["train", "infer"])
)
def test_more_memory_never_makes_the_largest_smaller(captured, sizes, mode):
    model = captured.setdefault("model", net(1))
    less, more = (
        largest(
            Trials(
                model,
                type(model),
                Request(parse_cluster(f"1x{size}MiB"), mode),
                Example(samples(8), {}, "host"),
                captured.setdefault(mode, {}),
            )
        ).batch
        for size in sorted(sizes)
    )
    assert less <= more


def test_when_not_even_one_sample_fits_the_error_is_of_one():
    with pytest.raises(CapacityError) as caught:
        autosplit.plan(net(), "1x1MiB", samples(4), mode="train", batch="max")
    assert (caught.value.model, caught.value.mode) == ("Net", "train")
    assert all(way.kind != "batch" for way in caught.value.ways_out(1.0))


def test_a_model_that_takes_no_single_sample():
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.Linear(256, 64))
    inputs = (torch.empty(4, 64),)
    assert autosplit.plan(model, "1x4MiB", inputs, mode="train", batch="max").batch > 4
    with pytest.raises(CapacityError) as caught:
        autosplit.plan(model, "1x1MiB", inputs, mode="train", batch="max")
    assert caught.value.short_bytes
    assert all(way.kind != "batch" for way in caught.value.ways_out(1.0))


@settings(max_examples=200)
@given(limit=st.integers(0, 5000), most=st.integers(2, 5000), least=st.integers(1, 2), guess=st.data())
def test_the_search_ends_at_the_limit_wherever_it_begins(limit, most, least, guess):
    tried = []
    start = guess.draw(st.integers(1, most))

    class Search(_Search):
        def guess(self):
            return start, guess.draw(st.integers(start, most))

        def takes_one(self):
            return least == 1

        def fits(self, batch):
            assert batch >= least
            assert 1 <= batch <= most
            tried.append(batch)
            (self.found if batch <= limit else self.refused)[batch] = CapacityError(str(batch))
            return batch <= limit

    search = Search(SimpleNamespace(problem=lambda batch: batch), most, lambda: True)
    if limit < least:
        with pytest.raises(CapacityError, match=f"^{least}$"):
            search.run()
    else:
        found = search.run()
        assert found.batch == min(limit, most)
        assert (found.refused is None) == (limit >= most)
    assert len(tried) == len(set(tried)) <= 2 * most.bit_length() + 2


def test_partition_for_the_largest_runs_that_and_any_other_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
    x = torch.randn(3, 64)
    wanted = model(x).detach()
    with sim.cluster("2x4MiB") as devices:
        split = autosplit.partition(model, devices, (x,), mode="infer", batch="max")
        assert split.plan.batch > 3
        with torch.no_grad():
            assert torch.equal(split(x), wanted)
            assert split(torch.randn(split.plan.batch, 64)).shape[0] == split.plan.batch


# ---------------------------------------------------------------- the command line


def test_batch_on_the_command_line(capsys):
    words = ["plan", "misfits:net", "--input", "x=f32:4x32x64", "--devices", "1x16MiB", "--json"]
    assert main([*words, "--batch", "max"]) == 0
    found = Plan.from_json(capsys.readouterr().out).batch
    assert found > 4
    assert main([*words, "--batch", f"{found}"]) == 0
    assert main([*words, "--batch", f"{found + 1}"]) == 3
    for wrong in ("0", "-1", "many", "1.5"):
        assert main([*words, "--batch", wrong]) == 2


def test_a_batch_that_cannot_be_is_a_usage_error(capsys):
    words = ["plan", "test_batch_max:Fixed", "--input", "x=f32:4x32x64", "--devices", "1x16MiB", "--batch", "max"]
    assert main(words) == 2
    assert "cannot be varied" in capsys.readouterr().err
