"""Placement and Plan: what runs where, and what that is predicted to cost. No torch here."""

from autosplit.choices import Rung
from autosplit.placement.checks import check_placement, check_plan
from autosplit.placement.placed import DIRECT, CostModel, Objective, Placement, Stage
from autosplit.placement.plan import (
    MAX_PLAN_BYTES,
    PLAN_FORMAT,
    SAME,
    Option,
    Pipeline,
    Plan,
    StoredPlan,
    Strategy,
    Transfer,
    fingerprint,
)
from autosplit.placement.prediction import Breakdown, Count, DevicePrediction, Prediction, Span, Timeline, TimeSource
from autosplit.placement.renamed import renamed

__all__ = [
    "DIRECT",
    "MAX_PLAN_BYTES",
    "PLAN_FORMAT",
    "SAME",
    "Breakdown",
    "CostModel",
    "Count",
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
    "StoredPlan",
    "Strategy",
    "TimeSource",
    "Timeline",
    "Transfer",
    "check_placement",
    "check_plan",
    "fingerprint",
    "renamed",
]
