"""Near-copies of training images, by a threshold calibrated on held-out images."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Threshold:
    """A limit for ratios of distances, calibrated on control images.

    Attributes:
        limit: a ratio below it counts as a near-copy.
        rank: the limit is the rank-th smallest ratio of the control.
        control: number of control images.
    """

    limit: float
    rank: int
    control: int

    @property
    def rate(self) -> float:
        """The expected share of false alarms among images like the control's: rank / (control + 1)."""
        return self.rank / (self.control + 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval: the share below an order statistic is distributed as Beta(rank, control + 1 - rank)."""
        return _share_below(self.rank, self.control, 0.025), _share_below(self.rank, self.control, 0.975)

    def excess(self, alarms: int, images: int) -> float:
        """Return the probability of at least so many false alarms among so many images (beta-binomial, exact for images like the control's)."""
        a, b = self.rank, self.control + 1 - self.rank
        below = math.fsum(
            math.exp(_log_choose(images, x) + _log_beta(x + a, images - x + b) - _log_beta(a, b)) for x in range(alarms)
        )
        return min(1.0, max(0.0, 1 - below))


def ratios(nearest: Tensor, other: Tensor) -> Tensor:
    """Return the distance to the nearest image of one kind over that to the nearest of the other kind; 1 where both are 0.

    The ratio, unlike the distance, does not fall for images that are near to everything, such as blurred ones.

    Args:
        nearest, other: (N,) float64.
    """
    return torch.where((nearest == 0) & (other == 0), 1.0, nearest / other)


def calibrated(control: Tensor, share: float) -> Threshold:
    """Return the threshold below which about this share of the control's ratios lie, one of them at least.

    Args:
        control: (M,) float64 ratios of images that the set's maker cannot have seen.
        share: wanted share of false alarms.
    """
    rank = max(1, math.floor(share * len(control)))
    return Threshold(float(control.sort().values[rank - 1]), rank, len(control))


def _share_below(rank: int, count: int, level: float) -> float:
    """Return a quantile of Beta(rank, count + 1 - rank), by bisection: P(share < x) = P(Binomial(count, x) >= rank)."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        below = math.fsum(
            math.exp(_log_choose(count, x) + x * math.log(middle) + (count - x) * math.log1p(-middle)) for x in range(rank)
        )
        if 1 - below < level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: int, b: int) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
