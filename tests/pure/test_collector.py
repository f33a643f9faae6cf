"""The garbage collector looks less often for as long as anybody asks."""

from __future__ import annotations

import gc

from autosplit.collector import fewer_collections


def test_thresholds_come_back_when_the_last_has_left() -> None:
    before = gc.get_threshold()
    one, other = fewer_collections(), fewer_collections()
    one.__enter__()
    raised = gc.get_threshold()
    assert raised > before
    other.__enter__()
    one.__exit__(None, None, None)
    assert gc.get_threshold() == raised
    other.__exit__(None, None, None)
    assert gc.get_threshold() == before


def test_a_collector_that_is_off_stays_off() -> None:
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with fewer_collections():
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)
