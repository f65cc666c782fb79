"""Estimated phases of a fine-tuning."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from clusterq_common.progress.time_budget import Phase
from clusterq_common.quant.sensitivity import passes
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.real import ValidationImages
from clusterq_finetune.data.resident import TrainingBatches
from clusterq_finetune.data.shard_batches import ShardDataset
from clusterq_finetune.recipes.chosen_bits import MOST_TRIED
from clusterq_finetune.speed import Rehearsal, Speed
from clusterq_report.measure.analysis import report_seconds

# A run of so many steps, or so many pixels of images, takes about a minute on two CPU cores. Longer ones are estimated unasked.
LONG_STEPS, LONG_PIXELS = 150, 20_000_000


class Sizes(NamedTuple):
    """Sizes of set, evaluation and network.

    Attributes:
        samples, heldout: images of the set, for training and held out.
        real_images: images of the evaluation; 0 for none.
        layers: number of quantizable layers.
        resident: whether the training images are read once and kept in memory.
    """

    samples: int
    heldout: int
    real_images: int
    layers: int
    resident: bool


class Timed:
    """A fine-tuning whose phases are timed when they are first asked for, on a discarded copy of its student.

    See `Rehearsal` for what is left out: with compiled networks and CUDA graphs a run is faster than its estimate. Several processes have
    the same speed, that of the slowest one.

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

    @property
    def known(self) -> bool:
        """True once the steps were timed."""
        return self._speed is not None

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes of set, evaluation and network."""
        train = ShardDataset(self._shards, "train")
        heldout = self._shards.manifest.splits.get("heldout")
        layers = quantizable_layers(self._teacher.model, self._teacher.spec.example().to(self._device))
        resident = TrainingBatches(train, self._device).small
        real_images = 0 if self._images is None else len(self._images)
        return Sizes(len(train), 0 if heldout is None else heldout.samples, real_images, len(layers), resident)

    def phases(self, config: FinetuneConfig) -> list[Phase]:
        """Return the estimated phases under `config`, all of whose plans have the phases of the first one that was asked for.

        Raises:
            ClusterqError: what the run itself would raise.
        """
        if self._speed is None:
            self.measure(config)
        assert self._speed is not None
        return phases(config, self.sizes, self._speed)

    def measure(self, config: FinetuneConfig) -> Speed:
        """Time the steps of a configuration, once more if they were timed before. Returns the speed, the faster one of each time.

        Raises:
            ClusterqError: what the run itself would raise.
        """
        measured = self._measure(config)
        self._speed = measured if self._speed is None else self._speed.fastest(measured)
        return self._speed

    def _measure(self, config: FinetuneConfig) -> Speed:
        rehearsal = Rehearsal(config, self._student, self._teacher, self._shards, self._device, self._stored_logits)
        return rehearsal.speed(self._images)


def phases(config: FinetuneConfig, sizes: Sizes, speed: Speed) -> list[Phase]:
    """Return the estimated phases of a fine-tuning."""
    recipe, choice, expected = config.recipe, config.choice, []
    samples = sizes.samples
    calibration = speed.ranges + min(recipe.calibration_images, samples) * speed.calibrated
    heldout = sizes.heldout * (speed.student_forward + speed.read)
    if choice.active:
        count = passes(sizes.layers, weights=choice.weights, inputs=choice.average_input_bits is not None)
        seconds = count * min(choice.sensitivity_images, samples) * speed.forward
        if choice.max_drop is not None:
            seconds += MOST_TRIED * (calibration + heldout)
        expected.append(Phase("choice of bits", seconds))
    expected.append(Phase("calibration", calibration))
    if recipe.reconstruct != "none":
        images = min(recipe.reconstruct_images, samples)
        seconds = images * speed.block_images + recipe.reconstruct_steps * speed.block_step
        expected.append(Phase("reconstruction", seconds))
    if recipe.epochs:
        steps = recipe.epochs * recipe.steps_of_epoch(samples)
        read = samples if sizes.resident else steps * recipe.batch_size / max(1, recipe.workers)
        # What guards or selects measures the student before the first epoch, too.
        measured = recipe.epochs + (recipe.select != "last")
        expected.append(Phase("fine-tuning", steps * speed.step + measured * heldout + read * speed.read))
    if sizes.real_images:
        # The teacher, the student after calibration, and the trained one.
        expected.append(Phase("evaluation", sizes.real_images * (speed.decoded + speed.forward + 2 * speed.student_forward)))
    if config.output.report:
        expected.append(Phase("report", report_seconds(samples, speed.forward, speed.student_forward)))
    return expected


def is_worth_measuring(config: FinetuneConfig, spec: InputSpec, samples: int) -> bool:
    """Return whether a fine-tuning is so long that its estimate, which takes some steps itself, is worth its time."""
    recipe = config.recipe
    blocks = (recipe.reconstruct != "none") * recipe.reconstruct_steps
    steps = recipe.epochs * recipe.steps_of_epoch(samples)
    images = steps * recipe.batch_size + blocks * recipe.reconstruct_batch_size + min(recipe.calibration_images, samples)
    return steps + blocks >= LONG_STEPS or images * spec.height * spec.width >= LONG_PIXELS
