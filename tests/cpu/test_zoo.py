"""A sample of the zoo, over three devices: the forward and a training step are the unsplit model's.

`python tests/bench/zoo.py` does this for the whole zoo, and more.
"""

from __future__ import annotations

import pytest
from zoo_models import ENTRIES
from zoo_models.compare import compare

SAMPLE = [
    "gpt2",
    "bloom",
    "falcon",
    "llama",
    "bert",
    "deberta_v2",
    "t5",
    "vit",
    "convnext",
    "whisper",
    "mamba",
    "mixtral",
    "clip",
    "paligemma",
    "nn-encoder",
    "nn-lstm-cells",
    "nn-convolutions",
    "py-tree",
    "py-dicts",
    "py-batch-norm",
]
BY_NAME = {entry.name: entry for entry in ENTRIES}


# Dynamo's own: it makes an instance of a custom function (BLOOM), and traces through a cache (Mamba).
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize("name", SAMPLE)
def test_split_is_as_unsplit(name: str) -> None:
    row = compare(BY_NAME[name], ("forward", "steps"), steps=1)
    assert row.good, (row.used, row.verdicts)


def test_there_are_models_of_every_kind() -> None:
    assert len(BY_NAME) == len(ENTRIES) >= 64
    assert len({entry.family for entry in ENTRIES}) >= 10
