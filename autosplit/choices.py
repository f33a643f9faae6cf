"""What a caller chooses from by name: words that the command line, a plan file and the passes share. No torch here."""

from __future__ import annotations

from typing import Literal

Mode = Literal["infer", "train"]
"""Forward only; or forward, backward and the optimizer's step."""

Rung = Literal["graph", "graphs", "opaque", "modules"]
"""How far up the ladder of captures a model goes, the best first."""

OptimizerName = Literal["sgd", "momentum", "adam", "adamw", "adafactor", "adagrad", "rmsprop"]
"""Optimizers that training memory can be planned for by name; "momentum" is SGD with it."""
