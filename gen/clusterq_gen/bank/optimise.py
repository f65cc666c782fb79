"""Optimisation of a batch of images that starts from noise (a bank) or from a generator's images (refinement)."""

import math
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clusterq_common import schedules
from clusterq_common.capture import classifier_input
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.cuda_graph import Recorder
from clusterq_common.device.setup import training_autocast
from clusterq_common.images.normalise import normalise, pixel_bounds, to_pixels
from clusterq_common.run.seeding import stream
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.classes import Crop, margin_loss, random_crop
from clusterq_gen.bank.config import BankConfig
from clusterq_gen.bank.statistics import (
    LayerTarget,
    emphasis_loss,
    input_loss,
    layer_targets,
    statistics_loss,
)
from clusterq_gen.bank.steps import ImageSteps
from clusterq_gen.losses.classification import class_loss


class NotFiniteError(ArithmeticError):
    """Images or losses became non-finite. The caller turns it into an error that names the right setting."""


@dataclass(frozen=True)
class BankBatch:
    """A finished batch.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64, the requested classes, or the teacher's top-1 where none were requested.
        top1: (N,) int64, the teacher's top-1 on those pixels.
        losses: weighted terms, as `first/NAME` at the first step and `loss/NAME` at the last.
    """

    pixels: Tensor
    labels: Tensor
    top1: Tensor
    losses: dict[str, float]


@dataclass(frozen=True)
class Optimiser:
    """Optimiser of images for one teacher: loss settings, teacher and device.

    With a recorder, steps are recorded once and replayed for all batches. The resulting images are the same.
    """

    bank: BankConfig
    runtime: RuntimeConfig
    teacher: Teacher
    device: torch.device
    targets: list[LayerTarget]
    recorder: Recorder | None = None
    _steps: dict[tuple[torch.Size, bool], ImageSteps] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def start(
        cls,
        bank: BankConfig,
        runtime: RuntimeConfig,
        teacher: Teacher,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> "Optimiser":
        """Create an optimiser, and measure the margins if there are any."""
        return cls(bank, runtime, teacher, device, layer_targets(teacher, runtime.seed, bank.bank_slack), recorder)

    @torch.enable_grad()  # emission, which may be what asks, needs none
    def optimise(self, start: Tensor, labels: Tensor | None, number: int) -> BankBatch:
        """Optimise a batch of images with Adam. After each step they are clamped to the range of eight-bit pixels.

        The papers lower the learning rate when the loss stops falling. Here it follows half a cosine, which does not depend on
        the loss.

        Args:
            start: (N, C, H, W) normalised; not modified.
            labels: (N,) int64, the requested classes, or None.
            number: number of the batch. With the seed it keys the random draws of the steps.

        Raises:
            NotFiniteError: the images, or a loss, are no longer finite.
        """
        bank, spec = self.bank, self.teacher.spec
        steps = self.steps_for(start.shape, labelled=labels is not None)
        steps.begin(start, labels)
        first: dict[str, Tensor] = {}
        terms: dict[str, Tensor] = {}
        for step in range(bank.bank_steps):
            rate = bank.bank_lr * schedules.cosine(step, bank.bank_steps)
            terms = steps.take_step(rate, *self.draws(len(start), number, step))
            first = first or terms
        losses = {f"first/{name}": float(term) for name, term in first.items()}
        losses |= {f"loss/{name}": float(term) for name, term in terms.items()}
        images = steps.images.detach()
        if not (all(map(math.isfinite, losses.values())) and images.isfinite().all()):
            raise NotFiniteError(f"images are no longer finite ({losses})")
        pixels = to_pixels(images, spec)
        with torch.no_grad():
            top1 = self.teacher.model(normalise(pixels, spec).contiguous(memory_format=torch.channels_last)).argmax(1).cpu()
        return BankBatch(pixels.cpu().contiguous(), top1 if labels is None else labels.cpu(), top1, losses)

    def steps_for(self, shape: torch.Size, *, labelled: bool) -> ImageSteps:
        """Return the `ImageSteps` for images of shape (N, C, H, W). All batches share it, and so its recording."""
        if (shape, labelled) not in self._steps:
            bounds = pixel_bounds(self.teacher.spec)
            self._steps[shape, labelled] = ImageSteps(
                shape, self.terms, bounds, self.device, labelled=labelled, recorder=self.recorder
            )
        return self._steps[shape, labelled]

    def draws(self, count: int, number: int, step: int) -> tuple[Tensor | None, Crop | None]:
        """Draw the random values of one step on `count` images of batch `number`, on the host: `soft` and `crop` of `terms`."""
        bank, random = self.bank, stream(self.runtime.seed, "bank step", number, step)
        soft = torch.rand(count, generator=random) if bank.bank_class_loss == "soft" else None
        return soft, random_crop(self.teacher.spec.size, random, bank.bank_crop, bank.bank_crop_least)

    def terms(self, images: Tensor, labels: Tensor | None, soft: Tensor | None, crop: Crop | None) -> dict[str, Tensor]:
        """Return the weighted loss terms of one step by name, scalars. Their sum is minimised.

        Args:
            images: (N, C, H, W) normalised, with gradient. labels: (N,) int64.
            soft: (N,) in [0, 1), position of each image's target probability between the least one and 1; None: cross-entropy.
            crop: part of the images that the teacher sees; None: all.
        """
        bank, model = self.bank, self.teacher.model
        targets = None if soft is None else bank.bank_soft_least + (1 - bank.bank_soft_least) * soft
        with ExitStack() as hooks:
            taps = hooks.enter_context(batchnorm_taps(model))
            features = hooks.enter_context(classifier_input(model)) if bank.bank_margin_weight else None
            with training_autocast(self.runtime, self.device, images=True):
                logits = model(images if crop is None else crop.of(images))
        terms = {}
        if bank.bank_bns_weight:
            terms["bns"] = bank.bank_bns_weight * statistics_loss(taps.moments, self.targets)
        if bank.bank_emphasis:
            terms["emphasis"] = bank.bank_emphasis * emphasis_loss(taps.moments, self.targets)
        if bank.bank_input_weight:
            terms["input"] = bank.bank_input_weight * input_loss(images, len(self.targets))
        if labels is not None:
            terms["class"] = bank.bank_class_weight * class_loss(logits, labels, targets=targets, gamma=bank.bank_hard_gamma)
        if labels is not None and features is not None:
            apart = margin_loss(features.latest, labels, bank.bank_margin_least, bank.bank_margin_most)
            terms["margin"] = bank.bank_margin_weight * apart
        return terms
