"""The Frechet distance between two sets of features, each taken for a normal distribution."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Rows that are decomposed at once.
BLOCK = 4096


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features.

    Attributes:
        count: n, how many there were.
        mean: (D,) float64.
        root: (r, D) float64 with root^T root the unbiased covariance; r is the smaller of n and D.
    """

    count: int
    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Of features (n, D), n at least 2. The covariance is never formed: its root is the R of a QR decomposition of the centred
        features, taken block by block."""
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
        """The trace of the covariance."""
        return float(self.root.square().sum())


def squared_frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """d^2 = ||mu_a - mu_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau, 1982), in squared units of the features.

    With C = R^T R, the eigenvalues of C_a C_b are the squared singular values of R_a R_b^T, so that the trace of the root is their
    sum. No root of a matrix that is not symmetric is taken and nothing is inverted: fewer samples than dimensions do no harm to the
    numerics. They do to the estimate: two samples of one distribution are apart, too,
    the farther the smaller they are, so compare at equal counts.

    This is the formula of the FID, but on the features of the teacher at hand, not of Inception: its values are not FIDs and
    compare with none, nor with those on another teacher's features.
    """
    shared = float(torch.linalg.svdvals(a.root @ b.root.T).sum())
    found = float((a.mean - b.mean).square().sum()) + a.variance + b.variance - 2 * shared
    return max(0.0, found)
