"""Shared fixtures of the generator's tests: the loaded teacher, and settings of a very short run."""

import pytest
import torch

from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_gen.config import GenConfig
from clusterq_gen.presets import resolve
from tests.conftest import FACTORY, DigitsTeacher

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def teacher(digits_teacher: DigitsTeacher) -> Teacher:
    """The demo's classifier, loaded."""
    return load_teacher(teacher_config(digits_teacher))


def teacher_config(digits_teacher: DigitsTeacher) -> TeacherConfig:
    sizes = {"input_size": 8, "in_channels": 1, "num_classes": 10, "mean": "0.5", "std": "0.5"}
    return TeacherConfig(arch=FACTORY, weights=str(digits_teacher.weights), **sizes)


def small(teacher: Teacher, **sections: dict[str, object]) -> GenConfig:
    """Settings of a run of twelve steps, four of them in warm-up; `sections` go on top."""
    train = {"epochs": 3, "warmup_epochs": 1, "steps_per_epoch": 4, "batch_size": 20, "checkpoint_seconds": 0.0}
    train |= sections.pop("train", {})
    # float32, whatever the CPU: some tests compare digits that bf16 does not have.
    runtime = {"amp": "off"} | sections.pop("runtime", {})
    flags = {"teacher": teacher.config.model_dump(), "train": train, "generator": {"width": 16}, "runtime": runtime, **sections}
    return resolve(flags, "quick", imagenet_sized=False)
