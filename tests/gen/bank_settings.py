"""Settings of banks that are made in seconds."""

from clusterq_common.teacher.spec import TeacherConfig
from clusterq_gen.config import GenConfig
from clusterq_gen.presets import resolve

# Small enough for seconds: three batches of forty images or so.
SMALL = ("--bank-steps", 25, "--batch-size", 40, "--per-class", 8, "--heldout-per-class", 2, "--threads", 1)


def settings(teacher: TeacherConfig, method: str, **sections: dict[str, object]) -> GenConfig:
    """Of a bank of eight and two images a class; `sections` go on top."""
    emit = {"per_class": 8, "heldout_per_class": 2, **sections.pop("emit", {})}
    train = {"batch_size": 40, **sections.pop("train", {})}
    flags = {"teacher": teacher.model_dump(), "method": {"method": method}, "train": train, "emit": emit, **sections}
    return resolve(flags, "quick", imagenet_sized=False)
