"""Prediction of a fine-tuning's time on this machine, from a few steps on a discarded copy of the student."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clusterq_common.device.setup import to_device
from clusterq_common.device.timing import seconds_of
from clusterq_common.progress.console import heard_by
from clusterq_common.progress.time_budget import Phase
from clusterq_common.quant.sensitivity import passes
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.run.kept import Records
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.calibration import first_pixels
from clusterq_finetune.data.real import ValidationImages
from clusterq_finetune.recipes.calibrated import calibrate_student
from clusterq_finetune.recipes.chosen_bits import MOST_TRIED
from clusterq_finetune.recipes.distill import distill
from clusterq_finetune.recipes.reconstruct import reconstruct

# Images and steps of the measurement.
IMAGES, FEW, MORE = 32, 1, 3
# Steps of a run that is estimated unasked.
LONG = 150


@dataclass(frozen=True)
class Speed:
    """Measured seconds.

    Attributes:
        forward: one image through the teacher.
        student_forward: one image through the student.
        calibrated: one image of the calibration, with the correction of statistics.
        block_images: one image that all blocks are reconstructed on, whatever the number of steps; 0 without reconstruction.
        block_step: one step for each of the blocks; 0 without reconstruction.
        step: one step of the epochs; 0 without epochs.
        epoch: the measurement on held-out images after an epoch.
        decoded: reading one real image; 0 without real images.
    """

    forward: float
    student_forward: float
    calibrated: float
    block_images: float
    block_step: float
    step: float
    epoch: float
    decoded: float


class Timed:
    """A fine-tuning whose phases are timed when they are first asked for, on a discarded copy of its student.

    Nothing is printed or written. Compiled networks and CUDA graphs are left out, since setting them up takes longer than the few steps:
    with them a run is faster than its estimate.

    Args:
        student: the student before its calibration; it stays as it is.
        teacher: the float network.
        shards: the set.
        device: device of the networks.
        images: real images of the evaluation; None for none.
        stored_logits: whether the teacher's answers are read instead of computed.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        shards: ShardSet,
        device: torch.device,
        images: ValidationImages | None,
        *,
        stored_logits: bool,
    ) -> None:
        self._student, self._teacher, self._shards, self._device = student, teacher, shards, device
        self._images, self._stored_logits = images, stored_logits
        self._speed: Speed | None = None
        self._layers = 0

    def phases(self, config: FinetuneConfig) -> list[Phase]:
        """Return the estimated phases under `config`, all of whose plans have the phases of the first one that was asked for.

        Raises:
            ClusterqError: what the run itself would raise.
        """
        if self._speed is None:
            self._speed = self._measure(config)
            self._layers = len(quantizable_layers(self._teacher.model, self._teacher.spec.example().to(self._device)))
        real_images = 0 if self._images is None else len(self._images)
        return phases(config, len(self._shards.split("train")), self._layers, real_images, self._speed)

    def _measure(self, config: FinetuneConfig) -> Speed:
        teacher, shards, device = self._teacher, self._shards, self._device
        probe = copy.deepcopy(self._student)
        # On a GPU the first call of each kind takes seconds longer.
        before = int(device.type != "cpu")

        def timed(action: Callable[[FinetuneConfig], object], **recipe: Any) -> float:
            plain = {"compile": False, "cuda_graphs": False, **recipe}
            changed = config.model_copy(update={"recipe": config.recipe.model_copy(update=plain)})
            return seconds_of(lambda: action(changed), device, before=before)

        def rebuilt(changed: FinetuneConfig) -> None:
            reconstruct(copy.deepcopy(probe), teacher, first_pixels(shards, changed, IMAGES), changed, None, device)

        def trained(changed: FinetuneConfig) -> None:
            kept = Records()
            distill(copy.deepcopy(probe), teacher, shards, changed, device, kept, stored_logits=self._stored_logits)

        with heard_by(None, None):
            calibrated = timed(
                lambda changed: calibrate_student(probe, teacher, shards, changed, device), calibration_images=IMAGES
            )
            to_device(probe, device)
            shown = next(iter(shards.images("train", IMAGES, batch_size=IMAGES))).to(device)
            with torch.no_grad():
                forward = seconds_of(lambda: teacher.model(shown), device, before=before)
                student_forward = seconds_of(lambda: probe(shown), device, before=before)
            few = more = 0.0
            if config.recipe.reconstruct != "none":
                few, more = (timed(rebuilt, reconstruct_steps=steps) for steps in (FEW, MORE))
            first = several = 0.0
            if config.recipe.epochs:
                first, several = (timed(trained, epochs=1, steps_per_epoch=steps) for steps in (FEW, MORE))
        block_step, step = (max(late - early, 0.0) / (MORE - FEW) for early, late in ((few, more), (first, several)))
        return Speed(
            forward / len(shown),
            student_forward / len(shown),
            calibrated / IMAGES,
            max(few - FEW * block_step, 0.0) / IMAGES,
            block_step,
            step,
            max(first - FEW * step, 0.0),
            0.0 if self._images is None else _decoding(self._images),
        )


def phases(config: FinetuneConfig, samples: int, layers: int, real_images: int, speed: Speed) -> list[Phase]:
    """Return the estimated phases of a fine-tuning.

    Args:
        config: the settings.
        samples: training images in the set.
        layers: number of quantizable layers.
        real_images: images of the evaluation; 0 for none.
        speed: what was measured.
    """
    recipe, choice, expected = config.recipe, config.choice, []
    if choice.active:
        count = passes(layers, weights=choice.weights, inputs=choice.average_input_bits is not None)
        seconds = count * min(choice.sensitivity_images, samples) * speed.forward
        if choice.max_drop is not None:
            seconds += MOST_TRIED * (min(recipe.calibration_images, samples) * speed.calibrated + speed.epoch)
        expected.append(Phase("choice of bits", seconds))
    expected.append(Phase("calibration", min(recipe.calibration_images, samples) * speed.calibrated))
    if recipe.reconstruct != "none":
        images = min(recipe.reconstruct_images, samples)
        seconds = images * speed.block_images + recipe.reconstruct_steps * speed.block_step
        expected.append(Phase("reconstruction", seconds))
    if recipe.epochs:
        seconds = recipe.epochs * (steps_of_epoch(config, samples) * speed.step + speed.epoch)
        expected.append(Phase("fine-tuning", seconds))
    if real_images:
        # The teacher, the student after calibration, and the trained one.
        expected.append(Phase("evaluation", real_images * (speed.decoded + speed.forward + 2 * speed.student_forward)))
    return expected


def is_worth_measuring(config: FinetuneConfig, samples: int) -> bool:
    """Return whether a fine-tuning is so long that its estimate, which takes some steps itself, is worth its time."""
    recipe = config.recipe
    steps = recipe.epochs * steps_of_epoch(config, samples) + (recipe.reconstruct != "none") * recipe.reconstruct_steps
    return steps >= LONG


def steps_of_epoch(config: FinetuneConfig, samples: int) -> int:
    """Return the number of steps in an epoch: those asked for, or one pass over the images."""
    return config.recipe.steps(samples) or -(-samples // config.recipe.batch_size)


def _decoding(images: ValidationImages) -> float:
    count = min(len(images), IMAGES)
    begin = time.perf_counter()
    for index in range(count):
        images[index]
    return (time.perf_counter() - begin) / max(1, count)
