"""Confidence intervals of an accuracy and of a difference of two, and p-values of many tests. Free of torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Bools = np.ndarray[Any, np.dtype[np.bool_]]
# The normal distribution's 97.5 % point.
Z = 1.959964


@dataclass(frozen=True)
class Interval:
    """A mean difference in percentage points, and its 95 % confidence interval over images."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def wilson_interval(hits: float, count: float) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion, in percent (Wilson, 1927).

    `count` may be an effective number of observations, and then both are no whole numbers.
    """
    share, spread = hits / count, Z * Z / count
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return 100 * max(0.0, (middle - half) / (1 + spread)), 100 * min(1.0, (middle + half) / (1 + spread))


def paired(first: Bools, second: Bools) -> Interval:
    """Return first minus second, (seeds, images) each, in points: the mean over images of the difference of the seeds' means.

    The interval covers the choice of images only. The spread over seeds is reported separately.
    """
    apart = 100 * (first.mean(0) - second.mean(0))
    half = Z * float(apart.std(ddof=1)) / math.sqrt(len(apart)) if len(apart) > 1 else float("nan")
    middle = float(apart.mean())
    return Interval(middle, middle - half, middle + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of tests (Holm, 1979), in the order given."""
    largest, corrected = 0.0, [0.0] * len(p_values)
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected
