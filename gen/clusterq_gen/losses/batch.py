"""Inputs of the losses in one generator step."""

from dataclasses import dataclass

from torch import Tensor

from clusterq_common.taps import BatchNormTaps, ClassGroups, StoredStatistics
from clusterq_gen.training.centroids import Centroids, ClassFeatures
from clusterq_gen.training.step_random import StepRandom


@dataclass(frozen=True)
class StepBatch:
    """One batch of generated images after the teacher has seen it.

    Attributes:
        draws: random draws of the losses in this step.
        images: (N, C, H, W), normalised, with gradient.
        labels: (N,) int64, the requested classes.
        groups: the labels grouped by class.
        teacher_logits: (N, classes), with gradient to the images.
        taps: moments at every BatchNorm layer of the teacher, with gradient.
        stored: the teacher's running statistics by layer.
        features: class-wise statistics in the semantic layers, with gradient; None during warm-up.
        centroids: None during warm-up.
        student_logits: (N, classes), with gradient to the images and none to the student; None during warm-up, and for methods
            without a term that uses them.
        mixture: (N, classes) shares of the classes in each image, rows sum to one; None where no image is mixed. Class features
            cover unmixed images only.
    """

    draws: StepRandom
    images: Tensor
    labels: Tensor
    groups: ClassGroups
    teacher_logits: Tensor
    taps: BatchNormTaps
    stored: dict[str, StoredStatistics]
    features: ClassFeatures | None
    centroids: Centroids | None
    student_logits: Tensor | None = None
    mixture: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """Targets of a cross-entropy: labels (N,), or shares (N, classes) where images are mixed."""
        return self.labels if self.mixture is None else self.mixture
