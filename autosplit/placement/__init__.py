"""Placement and Plan: what runs where, and what that is predicted to cost. No torch here."""

from autosplit.placement.checks import check_placement, check_plan
from autosplit.placement.placed import DIRECT, CostModel, Objective, Placement, Stage
from autosplit.placement.plan import (
    MAX_PLAN_BYTES,
    PLAN_FORMAT,
    Option,
    Pipeline,
    Plan,
    Rung,
    Strategy,
    Transfer,
    fingerprint,
)
from autosplit.placement.prediction import Breakdown, DevicePrediction, Prediction, Span, Timeline, TimeSource

__all__ = [
    "DIRECT",
    "MAX_PLAN_BYTES",
    "PLAN_FORMAT",
    "Breakdown",
    "CostModel",
    "DevicePrediction",
    "Objective",
    "Option",
    "Pipeline",
    "Placement",
    "Plan",
    "Prediction",
    "Rung",
    "Span",
    "Stage",
    "Strategy",
    "TimeSource",
    "Timeline",
    "Transfer",
    "check_placement",
    "check_plan",
    "fingerprint",
]
