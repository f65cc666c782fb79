"""A batch of images, optimised: from noise (one of a bank), or from what a generator drew."""

import math
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_common.images import normalise, pixel_bounds, to_pixels
from clusterq_common.runtime.config import RuntimeConfig
from clusterq_common.runtime.device import send, training_autocast
from clusterq_common.runtime.seeding import stream
from clusterq_common.taps import BatchNormTaps, batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.classes import ClassifierInputs, class_loss, classifier_inputs, margin_loss, random_crop
from clusterq_gen.bank.config import BankConfig
from clusterq_gen.bank.statistics import (
    LayerTarget,
    emphasis_loss,
    input_loss,
    layer_targets,
    statistics_loss,
)


class NotFiniteError(ArithmeticError):
    """Optimising went astray; who asked for it knows which setting to name."""


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
class Optimiser:
    """Makes images out of others: what is to be minimised, for which teacher, where."""

    bank: BankConfig
    runtime: RuntimeConfig
    teacher: Teacher
    device: torch.device
    targets: list[LayerTarget]

    @classmethod
    def start(cls, bank: BankConfig, runtime: RuntimeConfig, teacher: Teacher, device: torch.device) -> "Optimiser":
        """Measure the margins, if there are any."""
        return cls(bank, runtime, teacher, device, layer_targets(teacher, runtime.seed, bank.bank_slack))

    @torch.enable_grad()  # emission, which may be what asks, needs none
    def optimise(self, start: Tensor, labels: Tensor | None, number: int) -> BankBatch:
        """Adam on the images themselves; after each step they are clamped to what eight-bit pixels can hold.

        The papers lower the rate when the loss stops falling; here it falls on half a cosine, which needs no look at the loss.

        Args:
            start: (N, C, S, S) normalised; left as it is.
            labels: (N,) int64, the classes asked for, or None.
            number: of the batch; with the seed it keys what steps draw at random.

        Raises:
            NotFiniteError: the images, or a loss, are no longer finite.
        """
        bank, seed, spec, model = self.bank, self.runtime.seed, self.teacher.spec, self.teacher.model
        labels = None if labels is None else labels.to(self.device)
        low, high = (bound.to(self.device) for bound in pixel_bounds(spec))
        images = start.to(self.device, torch.float32, memory_format=torch.channels_last, copy=True).clamp_(low, high)
        images.requires_grad_()
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
            raise NotFiniteError(f"images are no longer finite ({losses})")
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
        bank = self.bank
        targets = None
        if bank.bank_class_loss == "soft":
            draw = send(torch.rand(len(images), generator=random), images.device, images.dtype)
            targets = bank.bank_soft_least + (1 - bank.bank_soft_least) * draw
        seen = random_crop(images, random, bank.bank_crop, bank.bank_crop_least)
        with training_autocast(self.runtime, self.device, images=True):
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
