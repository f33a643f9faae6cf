"""Schedules: every pass once, after what it waits for; as many micro-batches in flight as they promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosplit.schedule import Pass, in_turn, orders

SCHEDULES = st.sampled_from(["gpipe", "1f1b"])


@given(SCHEDULES, st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_every_pass_runs_once_and_after_what_it_waits_for(schedule, stages, microbatches, trains):
    issued = in_turn(orders(schedule, stages, microbatches, trains=trains))
    assert len(issued) == len(set(issued)) == stages * microbatches * (1 + trains)
    at = {one: i for i, one in enumerate(issued)}
    for stage, kind, i in issued:
        if kind == "F" and stage:
            assert at[Pass(stage - 1, "F", i)] < at[Pass(stage, "F", i)]
        if kind == "B":
            assert at[Pass(stage, "F", i)] < at[Pass(stage, "B", i)]
            assert stage == stages - 1 or at[Pass(stage + 1, "B", i)] < at[Pass(stage, "B", i)]


@given(SCHEDULES, st.integers(1, 6), st.integers(1, 9))
def test_micro_batches_in_flight(schedule, stages, microbatches):
    for stage, order in enumerate(orders(schedule, stages, microbatches, trains=True)):
        held = most = 0
        for one in order:
            held += 1 if one.kind == "F" else -1
            most = max(most, held)
        assert held == 0
        assert most == (microbatches if schedule == "gpipe" else min(stages - stage, microbatches))


def test_in_turn_refuses_orders_that_wait_in_a_circle():
    with pytest.raises(ValueError, match="circle"):
        in_turn([[Pass(0, "B", 0), Pass(0, "F", 0)], [Pass(1, "F", 0), Pass(1, "B", 0)]])


def test_schedules_of_several_stages_a_device_are_not_ordered_here():
    with pytest.raises(ValueError, match="across processes only"):
        orders("zbvzerobubble", 2, 2, trains=True)
