"""Plans and the device maps of Accelerate and transformers, one from the other."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import autosplit
from autosplit import PlanError
from autosplit.placement.modules import device_map

X = torch.linspace(-1, 1, 8 * 16).reshape(8, 16)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return x + self.fc2(self.fc1(x).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Shifted(Net):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(16))

    def forward(self, x):
        return super().forward(x + self.shift)


MAP = {"embed": 0, "blocks.0": 0, "blocks.1": 0, "blocks.2": 1, "blocks.3": 1, "head": 1}


def made(device_map, model=None, devices="2x1GiB"):
    return autosplit.from_device_map(model or Net(), device_map, (X,), devices=devices, mode="infer")


def test_there_and_back():
    plan = made(MAP)
    assert plan.to_device_map() == {path: f"gpu:{i}" for path, i in MAP.items()}
    assert list(plan.to_device_map()) == list(MAP)
    assert made(plan.to_device_map()) == plan
    assert [(t.src, t.dst) for t in plan.transfers if "host" not in (t.src, t.dst)] == [("gpu:0", "gpu:1")]


def test_as_short_as_it_can_be():
    assert made({"": 1}).to_device_map() == {"": "gpu:1"}
    assert made({"": 1, "embed": 0}).to_device_map() == {"embed": "gpu:0", "blocks": "gpu:1", "head": "gpu:1"}
    assert made({"blocks.0.fc1": 0, "": 0}).to_device_map() == {"": "gpu:0"}


@pytest.mark.parametrize(
    ("model", "found", "says"),
    [
        (Net, {"": 0, "blocks.1.fc2": 1, "blocks.1/add": 0}, None),
        (Shifted, {"": 0, "head": 1}, "the model itself is split below module level: weight "),
    ],
)
def test_a_split_below_module_level_is_refused_by_its_name(model, found, says):
    plan = made(found, model())
    if says is None:
        assert plan.to_device_map()["blocks.1.fc2"] == "gpu:1"
        return
    with pytest.raises(PlanError, match=says):
        plan.to_device_map()


def test_operators_of_one_module_on_two_devices_are_refused():
    placement = {"embed/linear": "a", "blocks.0.fc1/linear": "a", "blocks.0/relu": "a", "blocks.0/add": "b"}
    with pytest.raises(PlanError, match=r"module 'blocks.0' is split below module level: operator 'blocks.0/relu'"):
        device_map(placement, {"embed.weight": "a", "blocks.0.fc1.weight": "a"})
    with pytest.raises(PlanError, match=r"module 'fc' is split"):
        device_map({"fc/linear": "b"}, {"fc.weight": "a"})


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"": 0, "head": "disk"}, "'disk' for 'head': autosplit never offloads"),
        ({"": "gpu:0", "head": 2}, "device 2; there are 2"),
        ({"": "gpu:0", "tail": 1}, "'tail' is neither a node nor the path of a module"),
        ({}, "is empty"),
        ({"": 0, "head.weight": 1}, "puts weight 'head.weight' on gpu:1, but it is read on gpu:0"),
    ],
)
def test_maps_that_are_refused(found, says):
    with pytest.raises(PlanError, match=re.escape(says)):
        made(found)


def test_cpu_beside_others_is_offloading():
    with autosplit.sim.cluster("1x64MiB"):
        with pytest.raises(PlanError, match="'cpu' for 'head' beside other devices: there it means offloading"):
            made({"": "sim:0", "head": "cpu"}, devices=None)
        plan = made({"": 0, "head": "cpu"}, devices=["sim:0", "cpu"])
        assert plan.weights["head.weight"] == "cpu"
        assert made({"": 0}, devices=None).cluster.names == ("sim:0",)
    assert made({"": "cpu"}, devices=None).to_device_map() == {"": "cpu"}


def test_transformers_and_accelerate_take_the_map(tmp_path):
    transformers = pytest.importorskip("transformers")
    accelerate = pytest.importorskip("accelerate")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, vocab_size=64, intermediate_size=32
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(8)[None]
    whole = accelerate.infer_auto_device_map(
        model, max_memory={0: 60_000, 1: 10**9}, no_split_module_classes=["LlamaDecoderLayer"]
    )
    assert set(whole.values()) == {0, 1}
    plan = autosplit.from_device_map(model, whole, (), {"input_ids": ids}, devices="2x1GiB", mode="infer")
    short = plan.to_device_map()
    accelerate.utils.modeling.check_device_map(model, short)
    on_one = dict.fromkeys(short, "cpu")  # the only device here: the form is what is tried
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path, device_map=on_one)
    dispatched = accelerate.dispatch_model(loaded, device_map=on_one, force_hooks=True)
    assert torch.equal(dispatched(input_ids=ids).logits, model(input_ids=ids).logits)
