"""Objective of a student, shared by the in-loop student and the fine-tuner."""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.setup import at_least_float32
from clusterq_common.distill.kl import distillation_kl


class Objective(Protocol):
    """Objective of a student, as weighted terms by name."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return scalars whose sum is the loss, from logits (N, classes) and labels: (N,) int64, or (N, classes) weights."""
        ...


@dataclass(frozen=True)
class StudentObjective:
    """ClusterQ Eq. 9: `L2 = w_ce * CE(student, y) + w_kl * T^2 KL(teacher || student)`; the paper has w_ce = w_kl = 1.

    With `min_confidence` above 0, the cross-entropy uses only images on which the teacher's confidence in the label is at least that, as
    SynQ uses hard labels for easy samples only. The mean is still over the whole batch.
    """

    ce_weight: float
    kl_weight: float
    temperature: float
    min_confidence: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the computed terms, whose weight is above zero."""
        return tuple(name for name, weight in (("ce", self.ce_weight), ("kl", self.kl_weight)) if weight)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms by name, scalars; their sum is the loss. Terms of weight zero are not computed.

        Args:
            student_logits: (N, classes).
            teacher_logits: (N, classes), without gradient.
            labels: (N,) int64, or (N, classes) weights whose rows sum to one.
        """
        terms = {}
        if self.ce_weight:
            losses = F.cross_entropy(at_least_float32(student_logits), labels, reduction="none")
            if self.min_confidence:
                confidence = teacher_logits.softmax(1).gather(1, labels[:, None])[:, 0]
                losses = losses * (confidence >= self.min_confidence)
            terms["ce"] = self.ce_weight * losses.mean()
        if self.kl_weight:
            terms["kl"] = self.kl_weight * distillation_kl(teacher_logits, student_logits, self.temperature)
        return terms
