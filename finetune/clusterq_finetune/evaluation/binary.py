"""Figures of a classifier with two classes: AUROC, sensitivity and specificity, with 95 % intervals. Free of torch."""

import math
from typing import Any

import numpy as np

from clusterq_common.intervals import Z, wilson_interval
from clusterq_common.settings import Settings

Scores = np.ndarray[Any, np.dtype[np.float64]]


class BinaryResult(Settings):
    """Figures of a classifier of two classes; class 1 is the positive one. None where a class has too few images for a figure.

    Attributes:
        auroc: area under the ROC curve, from 0 to 1: how often an image of class 1 gets a higher score than one of class 0.
        auroc_interval: its 95 % confidence interval (DeLong, 1988); None also where every pair of images is in order, or none: the method knows no
            spread there.
        sensitivity: percent of class 1 that is named 1.
        sensitivity_interval: its 95 % confidence interval (Wilson, 1927).
        specificity: percent of class 0 that is named 0.
        specificity_interval: likewise.
    """

    auroc: float | None
    auroc_interval: tuple[float, float] | None
    sensitivity: float | None
    sensitivity_interval: tuple[float, float] | None
    specificity: float | None
    specificity_interval: tuple[float, float] | None


def binary_result(confusion: list[list[int]], scores: Scores, labels: Scores) -> BinaryResult:
    """The figures of one classifier.

    Args:
        confusion: [label][predicted] images.
        scores: (N,) how much each image speaks for class 1; the logits' difference, say.
        labels: (N,) 0 or 1.
    """
    (true_negative, false_positive), (false_negative, true_positive) = confusion
    positives, negatives = true_positive + false_negative, true_negative + false_positive
    area, interval = auroc(scores[labels == 1], scores[labels == 0])
    return BinaryResult(
        auroc=area,
        auroc_interval=interval,
        sensitivity=100 * true_positive / positives if positives else None,
        sensitivity_interval=wilson_interval(true_positive, positives) if positives else None,
        specificity=100 * true_negative / negatives if negatives else None,
        specificity_interval=wilson_interval(true_negative, negatives) if negatives else None,
    )


def auroc(positive: Scores, negative: Scores) -> tuple[float | None, tuple[float, float] | None]:
    """Area under the ROC curve, and its 95 % confidence interval.

    The area is the Mann-Whitney statistic with ties counted half. Its variance is that of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988),
    computed from mid-ranks as Sun and Xu do (IEEE Signal Processing Letters 21, 2014); the interval is the normal distribution's, cut off at 0
    and 1.

    Args:
        positive: (M,) scores of class 1.
        negative: (N,) scores of class 0.

    Returns:
        The area, None without images of both classes; the interval, None for fewer than two images of a class or an area of 0 or 1.
    """
    if not len(positive) or not len(negative):
        return None, None
    # Sorted, so that the sums' rounding does not depend on the order of the images.
    positive, negative = np.sort(positive), np.sort(negative)
    above, below = placements(positive, negative)
    area = float(above.mean())
    if min(len(positive), len(negative)) < 2 or area in (0.0, 1.0):
        return area, None
    half = Z * math.sqrt(float(above.var(ddof=1)) / len(positive) + float(below.var(ddof=1)) / len(negative))
    return area, (max(0.0, area - half), min(1.0, area + half))


def placements(positive: Scores, negative: Scores) -> tuple[Scores, Scores]:
    """Return each image's placement: the share of the other class that it outranks; ties count half.

    Args:
        positive: (M,) scores of class 1.
        negative: (N,) scores of class 0.

    Returns:
        (M,) and (N,), in the images' order.
    """
    low, high = np.sort(positive), np.sort(negative)
    above = (np.searchsorted(high, positive, "left") + np.searchsorted(high, positive, "right")) / (2 * len(high))
    below = 1 - (np.searchsorted(low, negative, "left") + np.searchsorted(low, negative, "right")) / (2 * len(low))
    return above, below
