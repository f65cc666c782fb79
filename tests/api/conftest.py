"""The digits' teacher and shards as a program of someone's own holds them."""

from pathlib import Path

import pytest

import clusterq as cq
from tests.conftest import FACTORY, DigitsTeacher


@pytest.fixture(scope="session")
def teacher(digits_teacher: DigitsTeacher) -> cq.Teacher:
    sizes = {"input_size": 8, "in_channels": 1, "num_classes": 10, "mean": (0.5,), "std": (0.5,)}
    return cq.load_teacher(FACTORY, weights=digits_teacher.weights, **sizes)


@pytest.fixture(scope="session")
def shards(digits_run: Path) -> cq.ShardSet:
    return cq.ShardSet.open(str(digits_run))
