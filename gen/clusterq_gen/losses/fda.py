"""Feature distribution alignment, and the distance that it shares with diversity enhancement."""

from typing import Literal

import torch
from torch import Tensor

from clusterq_gen.losses.batch import StepBatch
from clusterq_gen.training.centroids import Centroids, ClassFeatures

Reduction = Literal["sum", "mean"]


class FeatureAlignmentLoss:
    """L_FDA, ClusterQ Eq. 4: `sum_C sum_{l >= l_st} ||mu_hat - mu||^2 + ||sigma_hat - sigma||^2`.

    It is computed by class, without samples that the teacher misclassifies and without classes that have no centroid.

    Args:
        reduction: `sum` over present classes, semantic layers and channels, or `mean` over each of them.
    """

    def __init__(self, reduction: Reduction) -> None:
        self.reduction: Reduction = reduction

    def __call__(self, batch: StepBatch) -> Tensor:
        assert batch.features is not None
        assert batch.centroids is not None
        rows = batch.features.classes
        return distance_to(
            batch.features, batch.centroids, batch.centroids.mean[rows], batch.centroids.std[rows], self.reduction
        )


def distance_to(features: ClassFeatures, centroids: Centroids, mean: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """Return the squared distance of each present class's mean and std to targets (K, D), over classes that have a centroid."""
    taking_part = ((features.count > 0) & centroids.known[features.classes]).to(mean.dtype)
    squares = (features.mean - mean).square() + (features.std - std).square()
    if reduction == "sum":
        return torch.sum(squares.sum(1) * taking_part)
    return torch.sum(centroids.layers.layer_mean(squares) * taking_part) / taking_part.sum().clamp_min(1)
