"""Gradient accumulation, micro-batches in flight and KV caches: predicted against tracked on one virtual device."""

from __future__ import annotations

import gc
from collections import deque

import pytest
import torch
from torch import nn

import autosplit
from autosplit import sim
from autosplit.api.problem import Problem, Request
from autosplit.api.search import search
from autosplit.capture import Frontend, climb
from autosplit.errors import PlanError
from autosplit.hardware import resolve
from autosplit.predict import Footprint, Workload

BATCH, WIDTH = 64, 128


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(6)))


def predicted(devices: list[str] | str, workload: Workload | None, io_device: str) -> dict[str, Footprint]:
    made = model().train()
    captured = climb(Frontend(made, type(made)), (torch.randn(BATCH, WIDTH),), {}, "train")
    request = Request(resolve(devices), "train", optimizer="adamw", strategy="single", workload=workload)
    return search(Problem(made, request, captured, io_device)).footprints


def tracked(microbatches: int, in_flight: int) -> tuple[int, int]:
    """Peak of steps that keep so many forwards before the oldest one's backward; a batch for each that is held."""
    with sim.cluster(["1GiB"]) as cluster:
        first = torch.randn(BATCH, WIDTH, device="sim:0")
        split = autosplit.partition(
            model(), cluster.devices, (first,), mode="train", strategy="single", optimizer="adamw"
        )
        optimizer = torch.optim.AdamW(split.parameters(), foreach=True)
        gc.collect()
        cluster.reset_peaks()
        for _ in range(2):
            waiting: deque[list[torch.Tensor]] = deque()
            done: list[torch.Tensor] = []
            for i in range(microbatches):
                done.clear()
                batch = torch.randn(BATCH, WIDTH, device="sim:0") if i and in_flight > 1 else first
                out = split(batch)
                waiting.append([out.sum(), out, batch])
                del out, batch
                if len(waiting) == in_flight:
                    done = waiting.popleft()
                    done[0].backward()
            while waiting:
                done.clear()
                done = waiting.popleft()
                done[0].backward()
            optimizer.step()
            optimizer.zero_grad()
            done.clear()
        return cluster.peak_bytes("sim:0"), cluster.peak_reserved_bytes("sim:0")


@pytest.mark.parametrize(("microbatches", "in_flight"), [(1, 1), (2, 1), (6, 1), (4, 4), (2, 2), (6, 2), (8, 3)])
def test_micro_batches_are_predicted_to_the_byte(microbatches: int, in_flight: int) -> None:
    with sim.cluster(["1GiB"]):
        footprint = predicted(["sim:0"], Workload(microbatches, in_flight), "sim:0")["sim:0"]
    assert (footprint.peak_bytes, footprint.reserved_bytes) == tracked(microbatches, in_flight)


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_calls_before_a_step_are_predicted_to_the_byte(calls: int) -> None:
    with sim.cluster(["1GiB"]):
        x = torch.randn(BATCH, WIDTH, device="sim:0")
        asked = {"mode": "train", "strategy": "single", "optimizer": "adamw", "accumulate": calls}
        plan = autosplit.plan(model(), ["sim:0"], (x,), **asked)
    device = plan.prediction.devices["sim:0"]
    assert (device.peak_bytes, device.reserved_bytes) == tracked(calls, 1)
    assert plan.accumulate == calls
    assert any("calls are added up" in words for words in plan.assumptions) == (calls > 1)


def test_calls_before_a_step_are_of_training_and_counted() -> None:
    for asked, said in (
        ({"mode": "train", "accumulate": 0}, "accumulate=0: expected a number of calls"),
        ({"mode": "infer", "accumulate": 2}, "accumulate=2 adds up gradients, and inference has none"),
    ):
        with pytest.raises(PlanError, match=said):
            autosplit.plan(model(), "1x1GiB", (torch.randn(BATCH, WIDTH),), **asked)


def test_an_applied_plan_keeps_its_calls(tmp_path) -> None:
    x, peaks = torch.randn(BATCH, WIDTH), {}
    for calls in (1, 3):
        path = tmp_path / f"{calls}.json"
        autosplit.plan(model(), "1x1GiB", (x,), mode="train", optimizer="sgd", accumulate=calls).save(path)
        with sim.cluster(["1GiB"]):
            split = autosplit.partition(model().train(), ["sim:0"], (x[: BATCH // 2].to("sim:0"),), plan=path)
        assert split.plan.accumulate == calls
        peaks[calls] = split.plan.prediction.devices["sim:0"].peak_bytes
    assert peaks[3] > peaks[1]


def test_each_micro_batch_in_flight_holds_its_own_activations() -> None:
    peaks = [
        predicted("1x1GiB", Workload(8, held), "gpu:0")["gpu:0"].breakdown.activations_bytes for held in (2, 3, 4, 8)
    ]
    step = peaks[1] - peaks[0]
    assert step >= 12 * BATCH * WIDTH * 4  # what the twelve layers save
    assert peaks[2] - peaks[1] == step
    assert peaks[3] >= peaks[2] + 3 * step  # at the peak the first may be gone, as the gradients are there


def test_1f1b_holds_fewer_on_later_stages_and_gpipe_all_everywhere() -> None:
    names = ["gpu:0", "gpu:1"]
    stages = {"0": "gpu:0", "1": "gpu:0", "2": "gpu:0", "3": "gpu:1", "4": "gpu:1", "5": "gpu:1"}
    made = model().train()
    captured = climb(Frontend(made, type(made)), (torch.randn(BATCH, WIDTH),), {}, "train")

    def peaks(workload: Workload | None) -> list[int]:
        request = Request(resolve("2x1GiB"), "train", optimizer="sgd", placement=stages, workload=workload)
        found = search(Problem(made, request, captured, "gpu:0")).footprints
        return [found[name].breakdown.activations_bytes for name in names]

    one_f_one_b = peaks(Workload(4, {"gpu:0": 2, "gpu:1": 1}))
    gpipe = peaks(Workload(4, 4))
    assert one_f_one_b[0] == peaks(Workload(4, 2))[0]
    assert one_f_one_b[1] == peaks(Workload(4, 1))[1]
    assert one_f_one_b[0] < gpipe[0]
    assert 2 * one_f_one_b[1] < gpipe[1]


def test_accumulation_keeps_the_gradients() -> None:
    once, often = (predicted("1x1GiB", Workload(count), "gpu:0")["gpu:0"] for count in (1, 4))
    weights = once.weight_bytes
    assert often.peak_bytes >= once.peak_bytes
    assert often.breakdown.gradients_bytes >= weights


@pytest.mark.parametrize(("microbatches", "in_flight"), [(0, 1), (2, 3), (2, 0), (2, {"gpu:0": 3})])
def test_a_workload_that_cannot_be_is_refused(microbatches: int, in_flight: int | dict[str, int]) -> None:
    with pytest.raises(PlanError, match="micro-batches, of which"):
        Workload(microbatches, in_flight)


# ---------------------------------------------------------------- caches

LAYERS, HEADS, HEAD, PROMPT, TOTAL, REQUESTS = 3, 4, 32, 12, 32, 4


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        num_hidden_layers=LAYERS, hidden_size=HEADS * HEAD, intermediate_size=64, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, vocab_size=4096,  # the peak is at the logits, after all layers
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def cache_bytes(length: int) -> int:
    return 2 * LAYERS * REQUESTS * length * HEADS * HEAD * 4


def run_cached(length: int, cached: int) -> tuple[int, int, int]:
    """Cache bytes predicted, and the peak predicted and tracked, of a call with ``length`` new tokens."""
    from transformers import DynamicCache

    with sim.cluster(["1GiB"]) as cluster, torch.no_grad():
        made = llama().to("sim:0")

        def prompt(size: int) -> torch.Tensor:
            return torch.randint(3, 100, (REQUESTS, size), device="sim:0")

        cache = DynamicCache()
        if cached:
            made(input_ids=prompt(cached), past_key_values=cache)
        inputs = {"input_ids": prompt(length), "past_key_values": cache}
        split = autosplit.partition(made, cluster.devices, kwargs=inputs, strategy="single")
        gc.collect()
        cluster.reset_peaks()
        split(**inputs)
        device = split.plan.prediction.devices["sim:0"]
        return device.breakdown.cache_bytes, device.peak_bytes, cluster.peak_bytes("sim:0")


def test_the_cache_of_a_prompt_is_what_the_formula_says() -> None:
    held, peak, seen = run_cached(PROMPT, 0)
    assert held == cache_bytes(PROMPT)
    assert peak == seen


def test_the_last_step_of_decoding_holds_the_whole_cache() -> None:
    """A dynamic cache is held twice in the call that makes it longer: the old one until its end, and the new one."""
    held, peak, seen = run_cached(1, TOTAL - 1)
    assert peak == seen
    assert held == cache_bytes(TOTAL - 1) + cache_bytes(TOTAL)


def test_a_static_cache_is_held_once_at_its_full_length() -> None:
    from transformers import StaticCache

    made = llama()
    cache = StaticCache(config=made.config, max_cache_len=TOTAL)
    tokens = torch.ones(REQUESTS, 1, dtype=torch.int64)
    with torch.no_grad():
        made(input_ids=tokens, past_key_values=cache)
    plan = autosplit.plan(made, "2x1GiB", kwargs={"input_ids": tokens, "past_key_values": cache}, strategy="split")
    assert plan.capture == "graph"
    held = sum(device.breakdown.cache_bytes for device in plan.prediction.devices.values())
    assert cache_bytes(TOTAL) <= held <= cache_bytes(TOTAL) + LAYERS * 512  # and how far each layer's is filled


def test_passes_that_a_prediction_runs() -> None:
    """Once for each number in flight, and two micro-batches more; never more than there are."""
    assert Workload().passes == 1
    assert Workload(microbatches=32).passes == 3
    assert Workload(microbatches=32, in_flight={"a": 4, "b": 3, "c": 2, "d": 1}).passes == 6 + 5 + 4 + 3
    assert Workload(microbatches=4, in_flight={"a": 4, "b": 4}).passes == 4
