"""What a checkpoint costs, for the engine: it keeps its inputs, and its backward computes its forward again."""

import pytest
import torch
from misfits import Net, samples
from torch.utils.checkpoint import checkpoint

from autosplit import estimate
from autosplit.capture import Frontend, climb
from autosplit.costs import build_graph
from autosplit.device import parse_cluster

CLUSTER = parse_cluster("1x1GiB")
DEPTH = 4


class Checkpointed(Net):
    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, scale=0.5, use_reentrant=False)
        return x


def costed(kind, mode):
    with torch.device("meta"):
        model = kind(DEPTH)
    program = climb(Frontend(model, kind), samples(64), {}, mode, None).program
    return build_graph(program, CLUSTER.devices)


@pytest.fixture(scope="module")
def graphs():
    return costed(Net, "train"), costed(Checkpointed, "train")


def test_the_forward_is_as_long_and_runs_twice(graphs):
    plain, again = graphs
    regions = [node for node in again.nodes.values() if node.op == "tag_activation_checkpoint"]
    assert len(regions) == DEPTH
    forward_ns = sum(node.forward_ns["1GiB"] for node in plain.nodes.values())
    assert sum(node.forward_ns["1GiB"] for node in again.nodes.values()) == pytest.approx(forward_ns, rel=0.05)
    assert all(node.backward_ns["1GiB"] == 3 * node.forward_ns["1GiB"] for node in regions)


def test_only_what_comes_in_is_kept(graphs):
    plain, again = ({t.name for t in graph.tensors.values() if t.saved_by and not t.is_weight} for graph in graphs)
    assert len(plain) >= 3 * DEPTH
    assert len(again) == DEPTH  # x, and each block's output but the last
    assert all("~" not in name for name in again)


def test_the_estimate_sees_the_memory_that_is_saved(graphs):
    plain, again = (
        estimate.peak_bytes(graph, dict.fromkeys(graph.nodes, "gpu:0"), CLUSTER)["gpu:0"] for graph in graphs
    )
    assert again < 0.6 * plain


def test_in_inference_it_is_the_block_and_nothing_else():
    plain, again = (costed(kind, "infer") for kind in (Net, Checkpointed))
    assert len(again) <= len(plain)
    assert not any(tensor.saved_by for tensor in again.tensors.values())
