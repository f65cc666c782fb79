"""Speed of a fine-tuning on this machine, from a few steps on a discarded copy of the student."""

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clusterq_common.device.distributed import Ranks
from clusterq_common.device.setup import to_device
from clusterq_common.device.timing import each_image, seconds_of, slowest, steady_seconds
from clusterq_common.progress.console import send_messages_to
from clusterq_common.progress.time_budget import MeasuredTimes
from clusterq_common.run.kept import Records
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.calibration import first_pixels
from clusterq_finetune.data.few import FewImages
from clusterq_finetune.data.real import ValidationImages
from clusterq_finetune.recipes.calibrated import calibrate_student
from clusterq_finetune.recipes.distill import distill
from clusterq_finetune.recipes.reconstruct import reconstruct
from clusterq_finetune.step_times import StepTimes

# Pixels of the images that are measured with on a CPU, about, and the numbers of images. On a GPU whole batches are measured.
MEASURED_PIXELS = 100_000
LEAST_IMAGES, MOST_IMAGES = 2, 32
# Measured steps of an epoch and of each block. The first one is not counted.
STEPS, BLOCK_STEPS = 3, 2


@dataclass(frozen=True)
class Speed(MeasuredTimes):
    """Measured seconds.

    Attributes:
        forward: one image through the teacher.
        student_forward: one image through the student.
        ranges: the search for ranges, whatever the number of images.
        calibrated: one image of the calibration, with the correction of statistics.
        block_images: one image that all blocks are reconstructed on, whatever the number of steps; 0 without reconstruction.
        block_step: one step for each of the blocks; 0 without reconstruction.
        step: one step of the epochs; 0 without epochs.
        read: reading one image of the set.
        decoded: reading one real image; 0 without real images.
    """

    forward: float
    student_forward: float
    ranges: float
    calibrated: float
    block_images: float
    block_step: float
    step: float
    read: float
    decoded: float

    def __str__(self) -> str:
        times = {
            "calibrating on one image": self.calibrated,
            "a step of reconstruction in all blocks": self.block_step,
            "a step of fine-tuning": self.step,
        }
        return ", ".join(f"{what} {seconds:.2g} s" for what, seconds in times.items() if seconds)


class Rehearsal:
    """A fine-tuning of a few steps on a few images, whose student is discarded.

    Nothing is printed or written. Compiled networks and CUDA graphs are left out, since setting them up takes longer than the few steps.

    Args:
        config: settings of the fine-tuning.
        student: the student before its calibration; it stays as it is.
        teacher: the float network.
        shards: the set.
        device: device of the networks.
        stored_logits: whether the teacher's answers are read instead of computed.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        student: nn.Module,
        teacher: Teacher,
        shards: ShardSet,
        device: torch.device,
        stored_logits: bool,
    ) -> None:
        self._config, self._teacher, self._device, self._stored_logits = config, teacher, device, stored_logits
        self._cpu = device.type == "cpu"
        # Images in a measured step, and in a smaller one where the time of larger ones follows from both.
        pixels = teacher.spec.height * teacher.spec.width
        self._most = max(LEAST_IMAGES, MEASURED_PIXELS // pixels) if self._cpu else MOST_IMAGES
        self._less = max(1, self._most // 2)
        self._count = min(self._most, MOST_IMAGES, len(shards.split("train")))
        self._few = max(1, self._count // 2)
        self._shards = FewImages(shards, self._count)
        self._probe = copy.deepcopy(student)

    def speed(self, images: ValidationImages | None) -> Speed:
        """Measure; `images` are the real ones of the evaluation. Several processes have the same speed, the slowest one's."""
        teacher, device, recipe = self._teacher, self._device, self._config.recipe
        # On a GPU the first call of each kind takes seconds longer.
        before = int(not self._cpu)
        shown = next(iter(self._shards.images("train", self._count, batch_size=self._count))).to(device)
        with send_messages_to(None, None), torch.no_grad():
            forward = steady_seconds(lambda: teacher.model(shown), device, before=before) / len(shown)
            ranges, calibrated = self._calibration(before)
            student_forward = steady_seconds(lambda: self._probe(shown), device, before=before) / len(shown)
        block_images, block_step = self._reconstruction() if recipe.reconstruct != "none" else (0.0, 0.0)
        step = self._fine_tuning() if recipe.epochs else 0.0
        read = seconds_of(lambda: self._shards.split("train").read(0), device)
        decoded = 0.0 if images is None else _decoding(images)
        measured = (forward, student_forward, ranges, calibrated, block_images, block_step, step, read, decoded)
        return Speed(*map(slowest, measured))

    def _changed(self, **values: Any) -> FinetuneConfig:
        """Return the settings with a changed recipe, without what takes long to set up."""
        plain = {"compile": False, "cuda_graphs": False, **values}
        return self._config.model_copy(update={"recipe": self._config.recipe.model_copy(update=plain)})

    def _calibration(self, before: int) -> tuple[float, float]:
        """Calibrate. Returns the seconds of the search for ranges, and of each image."""

        def calibrate(images: int) -> float:
            config = self._changed(calibration_images=images)
            work = (self._probe, self._teacher, self._shards, config, self._device)
            return seconds_of(lambda: calibrate_student(*work), self._device, before=before)

        seconds_few, seconds_all = calibrate(self._few), calibrate(self._count)
        to_device(self._probe, self._device)
        each = each_image(self._few, seconds_few, self._count, seconds_all)
        return seconds_all - self._count * each, each

    def _reconstruction(self) -> tuple[float, float]:
        """Reconstruct. Returns the seconds of each image, and of a step for each of the blocks."""

        def rebuild(images: int, batch: int) -> StepTimes:
            config = self._changed(reconstruct_steps=BLOCK_STEPS, reconstruct_batch_size=batch)
            pixels = first_pixels(self._shards, config, images)
            work = (copy.deepcopy(self._probe), self._teacher, pixels, config, None, self._device)
            return StepTimes.of(lambda: reconstruct(*work), self._device, steps=BLOCK_STEPS)

        wanted = self._config.recipe.reconstruct_batch_size
        less, more = (wanted, wanted) if not self._cpu or wanted <= self._most else (self._less, self._most)
        if not self._cpu:
            rebuild(self._few, wanted)
        first, second = rebuild(self._few, less), rebuild(self._count, more)
        step = min(first.typical, second.typical) if less == more else second.typical
        step += each_image(less, first.typical, more, second.typical) * (wanted - more)
        return each_image(self._few, first.besides, self._count, second.besides), step

    def _fine_tuning(self) -> float:
        """Train. Returns the seconds of a step."""

        def train(batch: int) -> float:
            config = self._changed(epochs=1, steps_per_epoch=STEPS, batch_size=batch)
            work = (copy.deepcopy(self._probe), self._teacher, self._shards, config, self._device, Records())
            return StepTimes.of(lambda: distill(*work, stored_logits=self._stored_logits), self._device, steps=STEPS).typical

        if not self._cpu:
            train(self._config.recipe.batch_size)
        # A batch is that of all processes together.
        less, most = (Ranks.current().world * images for images in (self._less, self._most))
        wanted = self._config.recipe.batch_size
        if not self._cpu or wanted <= most:
            return train(wanted)
        seconds_less, seconds_most = train(less), train(most)
        return seconds_most + each_image(less, seconds_less, most, seconds_most) * (wanted - most)


def _decoding(images: ValidationImages) -> float:
    count = min(len(images), MOST_IMAGES)
    begin = time.perf_counter()
    for index in range(count):
        images[index]
    return (time.perf_counter() - begin) / max(1, count)
