"""What the caller of plan or partition asked for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import nn

from autosplit.api.batch import check_batch
from autosplit.api.problem import (
    BatchChoice,
    MicrobatchesChoice,
    ObjectiveChoice,
    Request,
    ScheduleChoice,
    StrategyChoice,
)
from autosplit.api.strategy import check_pipeline
from autosplit.api.timing import ProfileChoice
from autosplit.device import Cluster
from autosplit.errors import PlanError
from autosplit.graph import Mode
from autosplit.optimizers import OptimizerLike
from autosplit.placement import Rung
from autosplit.schedule import ScheduleName

CaptureChoice = Literal["auto", "graph", "graphs", "opaque", "modules"]


@dataclass(frozen=True)
class Asked:
    """What the caller of plan or partition asked for.

    Raises:
        PlanError: a choice that there is not, or choices that contradict each other.
    """

    cluster: Cluster
    mode: Mode | None
    strategy: StrategyChoice
    objective: ObjectiveChoice
    optimizer: OptimizerLike | None
    placement: Mapping[str, str] | None
    capture: CaptureChoice
    profile: ProfileChoice
    batch: BatchChoice
    microbatches: MicrobatchesChoice = "auto"
    schedule: ScheduleChoice = "auto"
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.batch not in (None, "max"):
            check_batch(self.batch)
        for name, value, known in (
            ("mode", self.mode, (None, *get_args(Mode))),
            ("strategy", self.strategy, get_args(StrategyChoice)),
            ("objective", self.objective, get_args(ObjectiveChoice)),
            ("capture", self.capture, ("auto", *get_args(Rung))),
            ("profile", self.profile, ("auto", True, False)),
            ("schedule", self.schedule, ("auto", *get_args(ScheduleName))),
        ):
            if value not in known:
                raise PlanError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")
        check_pipeline(self.strategy, self.microbatches, self.schedule)
        if type(self.accumulate) is not int or self.accumulate < 1:
            raise PlanError(f"accumulate={self.accumulate!r}: expected a number of calls before a step, 1 or more")

    def on(self, cluster: Cluster) -> Asked:
        """The same of other devices."""
        return replace(self, cluster=cluster)

    def request(self, model: nn.Module) -> Request:
        """The request for the mode that the model is in now."""
        mode: Mode = self.mode or ("train" if model.training else "infer")
        if self.accumulate > 1 and mode == "infer":
            raise PlanError(f"accumulate={self.accumulate} adds up gradients, and inference has none: leave it out")
        return Request(
            self.cluster,
            mode,
            self.strategy,
            self.objective,
            self.optimizer,
            self.placement,
            None if self.capture == "auto" else self.capture,
            profile=self.profile,
            batch=self.batch,
            microbatches=self.microbatches,
            schedule=self.schedule,
            accumulate=self.accumulate,
        )
