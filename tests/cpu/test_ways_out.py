"""A misfit: its numbers, and the ways out, each of which is what a plan of it gives."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from misfits import Block, Net, net, samples
from torch import nn
from torch.utils.checkpoint import checkpoint

import autosplit
import autosplit.api.planning
from autosplit import CapacityError, sim
from autosplit.api.recompute import recomputing, repeated_blocks
from autosplit.cli import main
from autosplit.device import parse_cluster
from autosplit.errors import WayOut

DEVICES, SAMPLES = "1x16MiB", 32


def misfit(model, devices, count, mode, **asked):
    with pytest.raises(CapacityError) as caught:
        autosplit.plan(model, devices, samples(count), mode=mode, **asked)
    return caught.value


@pytest.fixture(scope="module")
def model():
    return net(6)


@pytest.fixture(scope="module")
def error(model):
    return misfit(model, DEVICES, SAMPLES, "train")


@pytest.fixture(scope="module")
def ways(error):
    return {way.write: way for way in error.ways_out(300)}


def same(way, plan):
    """The offer is what the plan predicts."""
    devices = plan.prediction.devices
    assert way.peak_bytes == {name: device.peak_bytes for name, device in devices.items()}
    assert way.reserved_bytes == {name: device.reserved_bytes for name, device in devices.items()}
    assert (way.step_ns, way.strategy) == (plan.prediction.step_ns, plan.strategy)


# ---------------------------------------------------------------- the numbers


@settings(max_examples=6)
@given(st.integers(1, 10), st.integers(1, 3), st.sampled_from(["train", "infer"]))
def test_the_numbers_of_a_misfit_add_up(size, count, mode):
    error = misfit(net(1), f"{count}x{size * 100}KiB", 64, mode)
    has = {device.name: device.memory_bytes for device in parse_cluster(f"{count}x{size * 100}KiB").devices}
    assert (error.model, error.mode) == ("Net", mode)
    assert error.has_bytes == has
    assert error.needs_bytes.keys() == has.keys()
    assert error.short_bytes == {n: need - has[n] for n, need in error.needs_bytes.items() if need > has[n]}
    assert error.short_bytes


# ---------------------------------------------------------------- the ways


def test_every_kind_is_found_and_all_of_them_fit(error, ways):
    assert {way.kind for way in ways.values()} == {"batch", "recompute", "optimizer", "devices"}
    assert error.not_tried == ()
    for way in ways.values():
        has = parse_cluster(DEVICES).devices[0].memory_bytes
        assert max(way.reserved_bytes.values()) <= has


def test_they_are_sorted_by_what_they_cost(ways):
    costs = [
        ({"batch": 0, "recompute": 0, "optimizer": 1, "devices": 2}[w.kind], w.relative_time) for w in ways.values()
    ]
    assert costs == sorted(costs)
    assert all(way.relative_time >= 1.0 for way in ways.values())


def written(way: WayOut) -> dict[str, int]:
    return {name: int(value) for name, value in (word.split("=") for word in way.write.split(", "))}


def test_fewer_samples_is_a_plan_of_so_many(model, ways):
    (way,) = (way for way in ways.values() if way.kind == "batch")
    asked = written(way)
    plan = autosplit.plan(model, DEVICES, samples(SAMPLES), mode="train", **asked)
    assert way.peak_bytes == {name: device.peak_bytes for name, device in plan.prediction.devices.items()}
    assert plan.accumulate == asked["accumulate"] == -(-SAMPLES // asked["batch"])
    assert way.how == f"pass {plan.batch} samples at once in place of 32, and step after {plan.accumulate} calls"
    alone = autosplit.plan(model, DEVICES, samples(SAMPLES), mode="train", batch=asked["batch"])
    peaks = {name: device.peak_bytes for name, device in alone.prediction.devices.items()}
    assert all(way.peak_bytes[name] > peak for name, peak in peaks.items() if peak)  # gradients are there already


def test_fewer_samples_hold_when_done_as_it_says(model, ways):
    (way,) = (way for way in ways.values() if way.kind == "batch")
    asked = written(way)
    with sim.cluster(DEVICES) as cluster:
        args = tuple(torch.zeros(x.shape).to("sim:0") for x in samples(asked["batch"]))
        real = copy.deepcopy(model).to_empty(device="cpu")
        split = autosplit.partition(real, cluster.devices, args, mode="train", **asked)
        optimizer = torch.optim.AdamW(split.parameters())
        for _ in range(2):
            for _ in range(asked["accumulate"]):
                split(*args).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert 0 < cluster.peak_bytes("sim:0") <= way.peak_bytes["gpu:0"] * 1.01


class Recomputed(Net):
    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, scale=0.5, use_reentrant=False)
        return x


def test_recomputing_is_a_plan_of_the_model_that_checkpoints_its_blocks(ways):
    with torch.device("meta"):
        by_hand = Recomputed(6)
    same(ways["recompute blocks.*"], autosplit.plan(by_hand, DEVICES, samples(SAMPLES), mode="train"))


def test_one_more_device_is_a_plan_with_it(model, ways):
    same(ways["one more device like gpu:0"], autosplit.plan(model, "2x16MiB", samples(SAMPLES), mode="train"))


def test_another_optimizer_is_a_plan_with_it(model, ways):
    asked = {"mode": "train", "optimizer": "sgd"}
    same(ways["optimizer='sgd'"], autosplit.plan(model, DEVICES, samples(SAMPLES), **asked))


def test_inference_has_no_optimizer_and_nothing_to_recompute(model):
    error = misfit(net(1), "1x6MiB", 256, "infer")
    assert {way.kind for way in error.ways_out(300)} == {"batch"}  # no device has room for one activation less


def test_nothing_is_looked_for_before_it_is_asked_and_nothing_twice(monkeypatch):
    asked = []
    found = (WayOut("batch", "batch=1", "pass 1", "single", {}, {}, 1, 1.0),)
    monkeypatch.setattr(autosplit.api.planning, "find_ways_out", lambda *given: asked.append(given) or (found, ()))
    error = misfit(net(1), "1x100KiB", 8, "infer")
    assert not asked
    assert error.ways_out(7.0) == error.ways_out() == found
    assert [given[-1] for given in asked] == [7.0]


def test_without_time_nothing_is_planned_and_that_is_said(model):
    error = misfit(model, DEVICES, SAMPLES, "train")
    assert error.ways_out(0.0) == ()
    assert error.not_tried == ("devices", "optimizer", "batch", "recompute")
    assert error.ways_out(300.0)
    assert error.not_tried == ()


def test_the_error_travels_without_the_model(error, ways):
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == str(error)
    assert copied.short_bytes == error.short_bytes
    assert copied.ways_out() == tuple(ways.values())


def test_an_engine_alone_offers_nothing():
    error = CapacityError("no", needs_bytes={"a": 2}, has_bytes={"a": 1})
    assert (error.ways_out(), error.model) == ((), "")


def test_the_model_stays_as_it_was(model, ways):
    assert {type(block) for block in model.blocks} == {Block}
    assert "forward" not in model.__dict__
    assert type(model) is Net


# ---------------------------------------------------------------- what can be recomputed


def test_repeated_blocks_are_the_outermost_of_one_class():
    tall = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*(nn.Sequential(Block(), Block()) for _ in range(3))), Block())
    assert repeated_blocks(tall) == {"1": ("0", "1", "2")}
    assert repeated_blocks(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))) == {}
    assert repeated_blocks(nn.Sequential(Block(), nn.ReLU(), Block())) == {"": ("0", "2")}


def test_a_copy_that_recomputes_has_no_data_and_keeps_ties():
    tied = Net(2)
    tied.blocks[1].up.weight = tied.blocks[0].up.weight
    (changed,) = recomputing(tied)
    assert all(parameter.device.type == "meta" for parameter in changed.model.parameters())
    assert changed.model.blocks[1].up.weight is changed.model.blocks[0].up.weight
    assert changed.model.state_dict().keys() == tied.state_dict().keys()


def test_a_transformers_model_recomputes_as_it_offers_it():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=3, n_embd=64, n_head=2, vocab_size=64, n_positions=128, bos_token_id=0, eos_token_id=0)
    with torch.device("meta"):
        gpt = GPT2LMHeadModel(config)
    ids = torch.empty(16, 128, dtype=torch.int64, device="meta")
    asked = {"kwargs": {"input_ids": ids, "labels": ids}, "mode": "train"}
    offered = next(recomputing(gpt))
    assert offered.write == "model.activation_checkpointing_enable()"
    assert not any(getattr(module, "gradient_checkpointing", False) for module in gpt.modules())
    before = autosplit.plan(gpt, "1x1GiB", **asked)
    gpt.activation_checkpointing_enable()
    after = autosplit.plan(offered.model, "1x1GiB", **asked)
    assert after.prediction == autosplit.plan(gpt, "1x1GiB", **asked).prediction
    assert after.capture == before.capture == "graph"
    assert after.prediction.devices["gpu:0"].peak_bytes < 0.5 * before.prediction.devices["gpu:0"].peak_bytes


# ---------------------------------------------------------------- the command line


def test_the_command_line_prints_the_ways_out(capsys):
    words = ["plan", "misfits:large", "--input", "x=f32:32x32x64", "--for", "train", "--devices", DEVICES, "--json"]
    assert main(words) == 3
    said = capsys.readouterr()
    document = json.loads(said.out)["error"]
    assert {way["kind"] for way in document["ways_out"]} == {"recompute", "batch", "optimizer", "devices"}
    assert document["not_tried"] == []
    assert "Ways out, cheapest first (each planned again" in said.err
    for way in document["ways_out"]:
        words = "".join(f"--{word.replace('=', ' ')} " for word in way["write"].replace("'", "").split(", "))
        assert (words.strip() if way["kind"] in ("batch", "optimizer") else way["write"]) in said.err
        assert set(way) == set(WayOut.__dataclass_fields__)


def test_a_search_that_fails_leaves_the_misfit_as_it_is(capsys, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(autosplit.api.planning, "find_ways_out", fail)
    words = ["plan", "misfits:net", "--input", "x=f32:64x32x64", "--devices", "1x1MiB"]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "stopped by the user" in said
    assert "Not tried" in said


def test_a_search_that_ran_out_of_time_is_not_begun_again_without_more(model):
    error = misfit(model, DEVICES, SAMPLES, "train")
    search, budgets = error.find_ways_out, []
    assert search is not None

    def counted(budget_s):
        budgets.append(budget_s)
        return search(0)

    error.find_ways_out = counted
    for budget_s in (1, 1, 0.5, 2):
        error.ways_out(budget_s)
    assert budgets == [1, 2]
