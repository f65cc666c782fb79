"""Calibration of a student before training: activation ranges, BatchNorm statistics and biases."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks
from clusterq_common.progress.console import progress
from clusterq_common.quant.calibrate import calibrate, float_activations
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.calibration import calibration_images
from clusterq_finetune.recipes.correct import correct_channels
from clusterq_finetune.recipes.recalibrate import recalibrate_batchnorm

# Passes over the images, by what is done about BatchNorm statistics.
PASSES = {"frozen": 1, "recalibrated": 2, "corrected": 3}


def calibrate_student(
    student: nn.Module,
    teacher: Teacher,
    shards: ShardSet,
    config: FinetuneConfig,
    device: torch.device,
    *,
    phase: str = "calibration",
) -> None:
    """Set the ranges of activations from synthetic images, and BatchNorm statistics as the recipe says.

    Statistics are corrected twice. The first time is before the ranges, so that rounded weights do not distort the ranges. The
    second time is after them, for the shifts caused by rounded activations.

    Args:
        student: not calibrated; changed in place.
        teacher: the float network.
        shards: the set.
        config: settings of the run.
        device: device of the teacher.
        phase: phase of the run that this is a part of, for its progress.

    Raises:
        ClusterqError: see `calibrate`.
    """
    ranks, way = Ranks.current(), config.recipe.batchnorm

    count = min(config.recipe.calibration_images, len(shards.split("train")))
    with progress("calibrating", PASSES[way] * count, images=1, phase=phase) as ticker:

        def images() -> Iterator[Tensor]:
            for batch in calibration_images(shards, config, teacher.spec):
                yield batch
                ticker.advance(len(batch))

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            return ((batch, batch) for batch in (part.to(device) for part in images()))

        if way == "corrected":
            with float_activations(student):
                correct_channels(student, teacher.model, pairs(), ranks)
        calibrate(student, images(), config.quant, seed=config.runtime.seed)
        if way == "corrected":
            correct_channels(student, teacher.model, pairs(), ranks)
        elif way == "recalibrated":
            recalibrate_batchnorm(student, images(), device)
