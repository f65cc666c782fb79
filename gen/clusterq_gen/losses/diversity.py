"""Diversity enhancement: a random target around each centroid, so that a class does not collapse onto the centroid."""

from typing import Literal

import torch
from torch import Tensor

from clusterq_common.run.seeding import stream
from clusterq_gen.losses.batch import StepBatch
from clusterq_gen.losses.fda import Reduction, distance_to


class DiversityLoss:
    """L_DE, ClusterQ Eq. 6: as FDA, but with targets `N(mu, lambda_mu)` and `N(sigma, lambda_sigma)`, drawn anew in each step.

    Its expected gradient is FDA's. It adds noise around the centroid.

    Args:
        noise: gaussian with the given standard deviations (Eq. 6), or uniform within plus/minus them (the paper's setup).
        mean_std: lambda_mu, in the units of the centroids: those of the BatchNorm inputs, or their running stds.
        std_std: lambda_sigma, likewise.
        reduction: as for FDA.
        seed: with the step, it determines the targets.
    """

    def __init__(
        self, noise: Literal["gaussian", "uniform"], mean_std: float, std_std: float, reduction: Reduction, seed: int
    ) -> None:
        self.noise = noise
        self.mean_std, self.std_std = mean_std, std_std
        self.reduction: Reduction = reduction
        self.seed = seed

    def __call__(self, batch: StepBatch) -> Tensor:
        assert batch.features is not None
        assert batch.centroids is not None
        rows = batch.features.classes
        mean, std = batch.centroids.mean[rows], batch.centroids.std[rows]
        shape = mean.shape
        noise = batch.draws.take("diversity", lambda step: self._noise(step, shape), mean.dtype)
        mean, std = mean + self.mean_std * noise[0], std + self.std_std * noise[1]
        return distance_to(batch.features, batch.centroids, mean, std, self.reduction)

    def _noise(self, step: int, shape: torch.Size) -> Tensor:
        """Draw the noise for means and for stds, (2, *shape)."""
        random = stream(self.seed, "diversity", step)
        if self.noise == "gaussian":
            return torch.stack([torch.randn(shape, generator=random) for _ in range(2)])
        return torch.stack([torch.rand(shape, generator=random) * 2 - 1 for _ in range(2)])
