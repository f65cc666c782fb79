"""Frechet distance between two sets of features, each modelled by a normal distribution."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Number of rows that are decomposed at once.
BLOCK = 4096


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features.

    Attributes:
        count: n, the number of features.
        mean: (D,) float64.
        root: (r, D) float64 with root^T root the unbiased covariance; r is the smaller of n and D.
    """

    count: int
    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Return mean and covariance of features (n, D), n at least 2.

        The covariance is never formed. Its root is the R of a QR decomposition of the centred features, computed block by block.
        """
        count, width = features.shape
        mean = sum((part.double().sum(0) for part in features.split(BLOCK)), torch.zeros(width, dtype=torch.float64)) / count
        root = torch.zeros(0, width, dtype=torch.float64)
        for part in features.split(BLOCK):
            root = torch.cat([root, part.double() - mean])
            if len(root) > width:
                root = torch.linalg.qr(root, mode="r").R
        return cls(count, mean, root / (count - 1) ** 0.5)

    @property
    def variance(self) -> float:
        """Trace of the covariance."""
        return float(self.root.square().sum())


def squared_frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return d^2 = ||mu_a - mu_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau, 1982), in squared feature units.

    With C = R^T R, the eigenvalues of C_a C_b are the squared singular values of R_a R_b^T, so the trace of the root is the sum of
    the singular values. No root of an asymmetric matrix is taken, and nothing is inverted, so fewer samples than dimensions do not
    harm the numerics. They do bias the estimate: two samples of one distribution have a distance, too, which grows as they get
    smaller. So compare at equal counts.

    This is the formula of the FID, but on the features of the present teacher, not of Inception. Its values are not FIDs and are
    not comparable with them, nor with values on another teacher's features.
    """
    shared = float(torch.linalg.svdvals(a.root @ b.root.T).sum())
    squared = float((a.mean - b.mean).square().sum()) + a.variance + b.variance - 2 * shared
    return max(0.0, squared)
