"""A cluster of two devices, open for one test."""

import pytest

from autosplit import sim


@pytest.fixture
def two():
    with sim.cluster("2x1GiB") as cluster:
        yield cluster
