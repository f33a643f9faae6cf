"""The options of a plan in words: why this strategy, why not another."""

import pytest
from msgspec import structs

import autosplit
from autosplit.device import parse_cluster
from autosplit.errors import PlanError
from autosplit.placement import DevicePrediction, Option, Pipeline, Plan, Prediction
from autosplit.placement.options import STRATEGIES, figures, idle
from autosplit.placement.plan import Strategy

GIB = 2**30
USED = DevicePrediction(peak_bytes=1, reserved_bytes=1, weight_bytes=1, busy_ns=1)
MS = 10**6

PIPELINE = Option(
    strategy="pipeline", words="4 stages x 8 micro-batches, GPipe", devices=4, step_ns=20 * MS, samples=64,
    busy_ns=60 * MS, needs_bytes=3 * GIB, has_bytes=4 * GIB,
)  # fmt: skip
REPLICATE = Option(
    strategy="replicate", words="a copy on each of 4 devices", devices=4, step_ns=160 * MS, samples=256,
    busy_ns=160 * MS, needs_bytes=3 * GIB, has_bytes=4 * GIB,
)  # fmt: skip
SINGLE = Option(strategy="single", words="does not fit one device", devices=1, needs_bytes=6 * GIB, has_bytes=4 * GIB)
SPLIT = Option(strategy="split", words="not weighed: one device holds the model", devices=4)


def made(*options: Option, **changes) -> Plan:
    plan = Plan(
        strategy="pipeline",
        mode="train",
        cluster=parse_cluster("4x4GiB"),
        io_device="host",
        placement={"a": "gpu:0", "b": "gpu:1"},
        weights={},
        transfers=(),
        objective="throughput",
        value=1,
        bound=1,
        prediction=Prediction(devices={"gpu:0": USED, "gpu:1": USED}, step_ns=20 * MS, transfer_ns=0),
        reason="it is faster",
        pipeline=Pipeline(microbatches=8, schedule="gpipe", stages=(("a",), ("b",))),
        options=options,
    )
    return structs.replace(plan, **changes)


def test_why_has_a_line_for_each_option_and_marks_the_chosen_one():
    lines = made(PIPELINE, REPLICATE, SINGLE, SPLIT).why().splitlines()
    assert lines == [
        "pipeline: it is faster",
        "* pipeline   20.0 ms a step, 3,200 samples/s, 3.0 GiB of 4.0 GiB, 25% idle: 4 stages x 8 micro-batches, GPipe",
        "  replicate  160.0 ms a step, 1,600 samples/s, 3.0 GiB of 4.0 GiB, 75% idle: a copy on each of 4 devices",
        "  single     does not fit one device (6.0 GiB estimated, has 4.0 GiB)",
        "  split      not weighed: one device holds the model",
    ]


def test_why_not_says_which_figure_loses_and_by_what_factor():
    plan = made(PIPELINE, REPLICATE, SINGLE, SPLIT)
    said = plan.why_not("replicate")
    assert said.endswith("it takes 2.00x what pipeline takes for a sample (625.0 us against 312.5 us)")
    assert "\n" not in said
    assert plan.why_not("single") == "single: does not fit one device (6.0 GiB estimated, has 4.0 GiB)"
    assert plan.why_not("split") == "split: not weighed: one device holds the model"
    assert (
        plan.why_not("hybrid")
        == "hybrid was not weighed against pipeline: it is faster; strategy='auto' weighs them all"
    )
    assert plan.why_not("pipeline") == "pipeline is what was chosen: it is faster"


def test_steps_are_compared_where_that_was_asked():
    options = [structs.replace(option, by="step") for option in (PIPELINE, REPLICATE)]
    said = made(*options).why_not("replicate")
    assert said.endswith("it takes 8.00x what pipeline takes for a step (160.0 ms against 20.0 ms)")


def test_one_that_is_kept_within_the_error_of_estimates_says_so():
    near = structs.replace(REPLICATE, step_ns=78 * MS)
    said = made(PIPELINE, near).why_not("replicate")
    assert said.endswith(
        "it would take 1.03x less for a sample than pipeline, which is kept: the difference is within what an "
        "estimate can err"
    )


def test_nothing_was_weighed():
    plan = made()
    assert plan.why().splitlines() == [
        "pipeline: it is faster",
        "  no other strategy was weighed: strategy='auto' weighs them all",
    ]
    assert "was not weighed" in plan.why_not("single")


@pytest.mark.parametrize("name", ["fsdp", "", None])
def test_an_unknown_strategy_is_named_with_those_that_are_known(name):
    with pytest.raises(PlanError, match="'single', 'replicate', 'split', 'pipeline', 'hybrid'"):
        made(PIPELINE).why_not(name)


def test_figures_of_what_has_few():
    bare = Option(strategy="single", words="all on gpu:0", devices=1, step_ns=MS)
    assert figures(bare) == "1.0 ms a step: all on gpu:0"
    assert idle(bare) is None
    assert idle(PIPELINE) == pytest.approx(0.25)


def test_the_words_are_those_of_a_plan():
    assert set(STRATEGIES) == set(Strategy.__args__)


def test_options_are_in_the_file():
    plan = made(PIPELINE, REPLICATE)
    assert autosplit.Plan.from_json(plan.to_json()).why() == plan.why()
