"""One batch of a bank: from noise to images, a function of the seed and the batch's number alone."""

import math
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_common.images import normalise, pixel_bounds, to_pixels
from clusterq_common.runtime.device import send, training_autocast
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.seeding import stream
from clusterq_common.taps import BatchNormTaps, batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.classes import ClassifierInputs, class_loss, classifier_inputs, margin_loss, random_crop
from clusterq_gen.bank.layout import BankLayout
from clusterq_gen.bank.statistics import (
    LayerTarget,
    emphasis_loss,
    input_loss,
    layer_targets,
    noise_images,
    statistics_loss,
)
from clusterq_gen.config import GenConfig


@dataclass(frozen=True)
class BankBatch:
    """A finished batch.

    Attributes:
        pixels: (N, C, S, S) uint8.
        labels: (N,) int64, the class asked for; where none was, the teacher's top-1.
        top1: (N,) int64, the teacher's on those pixels.
        losses: weighted terms, as `first/NAME` at the first step and `loss/NAME` at the last.
    """

    pixels: Tensor
    labels: Tensor
    top1: Tensor
    losses: dict[str, float]


@dataclass(frozen=True)
class BankRun:
    """What all batches of a bank share."""

    config: GenConfig
    teacher: Teacher
    device: torch.device
    layout: BankLayout
    targets: list[LayerTarget]

    @classmethod
    def start(cls, config: GenConfig, teacher: Teacher, device: torch.device) -> "BankRun":
        """Measure the margins, if there are any, and lay the bank out."""
        targets = layer_targets(teacher, config.runtime.seed, config.bank.bank_slack)
        return cls(config, teacher, device, BankLayout.of(config, teacher.spec.num_classes), targets)

    def optimise(self, number: int) -> BankBatch:
        """Make one batch. Adam on the images themselves; after each step they are clamped to what eight-bit pixels can hold.

        The papers lower the rate when the loss stops falling; here it falls on half a cosine, which needs no look at the loss.

        Raises:
            ClusterqError: the images, or a loss, are no longer finite.
        """
        bank, seed, spec, model = self.config.bank, self.config.runtime.seed, self.teacher.spec, self.teacher.model
        labels = self.layout.labels(number)
        labels = None if labels is None else labels.to(self.device)
        low, high = (bound.to(self.device) for bound in pixel_bounds(spec))
        noise = noise_images(self.teacher, self.layout.batch_size, stream(seed, "bank", number))
        images = noise.to(self.device).requires_grad_()
        optimizer = torch.optim.Adam([images], lr=bank.bank_lr, fused=True)
        first: dict[str, Tensor] = {}
        terms: dict[str, Tensor] = {}
        with ExitStack() as taps_end:
            taps = taps_end.enter_context(batchnorm_taps(model))
            features = taps_end.enter_context(classifier_inputs(model)) if bank.bank_margin_weight else None
            for step in range(bank.bank_steps):
                optimizer.param_groups[0]["lr"] = bank.bank_lr * 0.5 * (1 + math.cos(math.pi * step / bank.bank_steps))
                terms = self.terms(images, labels, stream(seed, "bank step", number, step), taps, features)
                optimizer.zero_grad(set_to_none=True)
                torch.stack(list(terms.values())).sum().backward()
                optimizer.step()
                with torch.no_grad():
                    images.clamp_(low, high)
                first = first or {name: term.detach() for name, term in terms.items()}
        losses = {f"first/{name}": float(term) for name, term in first.items()}
        losses |= {f"loss/{name}": float(term.detach()) for name, term in terms.items()}
        if not (all(map(math.isfinite, losses.values())) and images.isfinite().all()):
            raise ClusterqError(
                f"batch {number} of the bank is no longer finite ({losses}); finished batches are kept: try a smaller --bank-lr in a new "
                "run."
            )
        pixels = to_pixels(images.detach(), spec)
        with torch.no_grad():
            top1 = model(normalise(pixels, spec).contiguous(memory_format=torch.channels_last)).argmax(1)
        return BankBatch(pixels.cpu().contiguous(), (top1 if labels is None else labels).cpu(), top1.cpu(), losses)

    def terms(
        self,
        images: Tensor,
        labels: Tensor | None,
        random: torch.Generator,
        taps: BatchNormTaps,
        features: ClassifierInputs | None,
    ) -> dict[str, Tensor]:
        """Weighted terms of one step by name, scalars; their sum is what is minimised.

        Args:
            images: (N, C, S, S) normalised, with gradient. labels: (N,) int64.
            random: what this step draws from.
            taps, features: hooks on the teacher.
        """
        bank = self.config.bank
        targets = None
        if bank.bank_class_loss == "soft":
            draw = send(torch.rand(len(images), generator=random), images.device, images.dtype)
            targets = bank.bank_soft_least + (1 - bank.bank_soft_least) * draw
        seen = random_crop(images, random, bank.bank_crop, bank.bank_crop_least)
        with training_autocast(self.config.runtime, self.device, images=True):
            logits = self.teacher.model(seen)
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
