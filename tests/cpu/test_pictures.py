"""Plans of a real model hold the schedule that their step's time comes from, and can be drawn."""

import json

import pytest

import autosplit
from autosplit.cli import main
from autosplit.demo import GPT, example_batch
from autosplit.report.html import page
from autosplit.report.timeline import one_at_a_time


@pytest.fixture(scope="module")
def plans():
    given = {"kwargs": example_batch(), "mode": "train", "optimizer": "adamw"}
    return {
        "split": autosplit.plan(GPT(), "2x128MiB", strategy="split", **given),
        "pipeline": autosplit.plan(GPT(), "2x128MiB", strategy="pipeline", microbatches=2, **given),
    }


@pytest.mark.parametrize("strategy", ["split", "pipeline"])
def test_the_schedule_ends_when_the_step_does(plans, strategy):
    prediction = plans[strategy].prediction
    assert max(span.end_ns for span in prediction.spans) == pytest.approx(prediction.step_ns, rel=0.02)
    for name, device in prediction.devices.items():
        spent = sum(span.end_ns - span.start_ns for span in prediction.spans if (span.device, span.to) == (name, ""))
        assert spent == pytest.approx(device.busy_ns, rel=0.05)


def test_a_pipeline_has_every_pass_of_every_micro_batch(plans):
    plan = plans["pipeline"]
    passes = {(span.kind, span.stage, span.microbatch) for span in plan.prediction.spans if not span.to}
    assert passes == {(kind, s, m) for kind in ("forward", "backward") for s in (0, 1) for m in (0, 1)}
    assert {span.kind for span in plan.prediction.spans if span.to} == {"send", "return"}
    assert one_at_a_time(plan).total_ns > plan.prediction.step_ns


@pytest.mark.parametrize("strategy", ["split", "pipeline"])
def test_the_page_of_a_plan_has_its_figures(plans, strategy):
    text = page(plans[strategy])
    assert f'<span class="badge">{strategy}</span> training on 2 devices' in text
    assert "layers 0-3" in text or strategy == "pipeline"
    assert plans[strategy]._repr_html_().startswith("<div")


def test_plan_writes_pictures(tmp_path, capsys):
    out = tmp_path / "plan.html"
    graph = tmp_path / "plan.graph.json"
    words = "plan autosplit.demo:GPT --input tokens=i64:2x64 --input targets=i64:2x64 --devices 1x4GiB --json"
    assert main([*words.split(), "--html", str(out), "--model-explorer", str(graph)]) == 0
    plan = autosplit.Plan.from_json(capsys.readouterr().out)
    assert out.read_text(encoding="utf-8") == page(plan)
    assert len(json.loads(graph.read_text())["graphs"][0]["nodes"]) == len(plan.placement) + len(plan.transfers)
