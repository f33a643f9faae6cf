"""Captured graphs of real architectures, solved for throughput: against the split that others would make.

    python tests/bench/captured.py [--only NAME] [--graphs DIR] [--contiguous] [--effort 1]

The models are made on the meta device from their configurations, captured, and costed for described devices by the
catalogue's roofline: seconds are real, times of a step are predictions. Columns: nodes; seconds of CPU time of
``solve``; the busiest device's time, its proved bound and the gap; and by how much that is better than sequential fill
(Accelerate's device map) and than the split into equal shares of compute, on the same costs ("-": does not fit).
--graphs keeps the cost graphs there as JSON, and reads them from there when they exist: capture takes longer.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from autosplit.device import Cluster, parse_cluster
from autosplit.errors import CapacityError
from autosplit.graph import CostGraph, Mode
from autosplit.solvers import solve
from autosplit.solvers.blocks.compiled import blocks_of
from autosplit.solvers.problem import Problem
from autosplit.solvers.stages.plain import plain_splits


class Case(NamedTuple):
    """A model, its call, and the devices."""

    name: str
    devices: str
    mode: Mode
    build: Callable[[], tuple[Any, dict[str, Any]]]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--graphs", type=Path)
    parser.add_argument("--contiguous", action="store_true", help="only stages; the bound is over stages, too")
    parser.add_argument("--effort", type=int, default=1)
    options = parser.parse_args()
    print(f"{'model':16} {'devices':14} {'mode':5} {'nodes':>6} {'s':>6} {'value ms':>9} {'bound ms':>9} {'gap':>6} "
          f"{'x fill':>7} {'x equal':>7}  method", flush=True)  # fmt: skip
    for case in CASES:
        if options.only in case.name:
            print(row(case, options.graphs, contiguous=options.contiguous, effort=options.effort), flush=True)
    return 0


def row(case: Case, keep: Path | None, **asked: Any) -> str:
    """One line of the table."""
    cluster = parse_cluster(case.devices)
    graph = graph_of(case, cluster, keep)
    head = f"{case.name:16} {case.devices:14} {case.mode:5} {len(graph):6}"
    began = time.thread_time()
    try:
        found = solve(graph, cluster, objective="throughput", **asked)
    except CapacityError as error:
        return f"{head} {time.thread_time() - began:6.2f} {str(error)[:90]}"
    seconds = time.thread_time() - began
    problem = Problem(graph, cluster, "throughput")
    blocks = blocks_of(problem, ordered=True)
    others = {name: problem.answer(blocks.labels(labels), name) for name, labels in plain_splits(blocks)}
    ratios = [
        f"{others[name].score.value / found.value:6.2f}x" if others[name].fits else f"{'-':>7}"
        for name in ("sequential fill", "equal compute")
    ]
    return (f"{head} {seconds:6.2f} {found.value / 1e6:9.3f} {found.bound / 1e6:9.3f} {found.gap:6.1%} "
            f"{ratios[0]} {ratios[1]}  {found.method}")  # fmt: skip


def graph_of(case: Case, cluster: Cluster, keep: Path | None) -> CostGraph:
    """The cost graph, from the file kept or by capture."""
    path = keep / f"{case.name}-{case.mode}-{case.devices}.json".replace(",", "+") if keep else None
    if path is not None and path.exists():
        return CostGraph.from_json(path.read_bytes())
    import torch
    from zoo_models.entry import let_torchvision_load

    from autosplit.api.problem import Problem as Posed
    from autosplit.api.problem import Request
    from autosplit.capture import Frontend, climb
    from autosplit.device import HOST

    if importlib.util.find_spec("torchvision"):
        let_torchvision_load()
    with torch.device("meta"):
        model, kwargs = case.build()
    model.train(case.mode == "train")
    captured = climb(Frontend(model, type(model)), (), kwargs, case.mode)
    optimizer = "adamw" if case.mode == "train" else None
    graph = Posed(model, Request(cluster, case.mode, optimizer=optimizer, profile=False), captured, HOST).graph
    if path is not None:
        path.write_bytes(graph.to_json())
    return graph


def _llama(layers: int, hidden: int, inner: int, heads: int, kv: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=32000, max_position_embeddings=4096, dtype="bfloat16", use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": torch.zeros(1, 2048, dtype=torch.int64)}


def _llama_training(layers: int, hidden: int, inner: int, heads: int, kv: int) -> tuple[Any, dict[str, Any]]:
    model, kwargs = _llama(layers, hidden, inner, heads, kv)
    return model, {**kwargs, "labels": kwargs["input_ids"]}


def _mixtral() -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(dtype="bfloat16", use_cache=False, num_hidden_layers=32)
    return MixtralForCausalLM(config), {"input_ids": torch.zeros(1, 2048, dtype=torch.int64)}


def _unet() -> tuple[Any, dict[str, Any]]:
    import torch
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return model, {
        "sample": torch.zeros(4, 4, 64, 64),
        "timestep": torch.zeros(4, dtype=torch.int64),
        "encoder_hidden_states": torch.zeros(4, 77, 768),
    }


def _vit() -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    return ViTForImageClassification(config), {"pixel_values": torch.zeros(32, 3, 224, 224)}


def _t5() -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=1024, d_ff=4096, d_kv=64, num_layers=24, num_heads=16, use_cache=False)
    ids = torch.zeros(8, 512, dtype=torch.int64)
    return T5ForConditionalGeneration(config), {"input_ids": ids, "decoder_input_ids": ids}


CASES = (
    Case("llama-7b", "4xA100-40GB", "infer", lambda: _llama(32, 4096, 11008, 32, 32)),
    Case("llama-7b", "8xA100-40GB", "train", lambda: _llama_training(32, 4096, 11008, 32, 32)),
    Case("llama-70b", "8xA100-80GB", "infer", lambda: _llama(80, 8192, 28672, 64, 8)),
    Case("llama-70b", "8xMI300X", "train", lambda: _llama_training(80, 8192, 28672, 64, 8)),
    Case("mixtral-8x7b", "8xA100-40GB", "infer", _mixtral),
    Case("unet-sd", "4xA100-40GB", "infer", _unet),
    Case("vit-l", "4xA100-40GB", "train", _vit),
    Case("t5-large", "4xA100-40GB", "infer", _t5),
)

if __name__ == "__main__":
    sys.exit(main())
