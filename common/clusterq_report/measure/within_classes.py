"""Deviations of vectors from the mean of their class."""

from dataclasses import dataclass

from torch import Tensor, unique


@dataclass(frozen=True)
class AroundClassMeans:
    """N vectors of C values by class, for K classes in ascending order.

    Attributes:
        means: (K, C) mean of each class.
        count: (K,) int64, vectors of each class.
        row: (N,) int64, index of each vector's class.
        deviations: (N, C), each vector minus the mean of its class.
    """

    means: Tensor
    count: Tensor
    row: Tensor
    deviations: Tensor

    def variances(self) -> Tensor:
        """Return the unbiased variance within each class, (K, C); NaN for a class with a single vector."""
        squares = self.means.new_zeros(self.means.shape).index_add(0, self.row, self.deviations.square())
        return squares / (self.count - 1)[:, None]


def around_class_means(values: Tensor, labels: Tensor) -> AroundClassMeans:
    """Return the deviations of vectors from the mean of their class.

    Args:
        values: (N, C) float64.
        labels: (N,) int64.
    """
    _, row, count = unique(labels, return_inverse=True, return_counts=True)
    means = values.new_zeros(len(count), values.shape[1]).index_add(0, row, values) / count[:, None]
    return AroundClassMeans(means, count, row, values - means[row])
