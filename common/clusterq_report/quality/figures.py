"""Figures of a quality report, computed from the collected measurements."""

import math
from collections import Counter

import torch
from torch import Tensor

from clusterq_report.quality.collect import Collected
from clusterq_report.quality.distances import Neighbours, Spread, nearest_neighbours, spread
from clusterq_report.quality.findings import (
    BINS,
    NEAR,
    ClassFigures,
    Contradiction,
    Distribution,
    Diversity,
    ImageFigures,
    LayerDistance,
    Pair,
)

MOST_PAIRS = 12


class Measured:
    """All data for the figures of one source.

    Args:
        collected: at least two images.
        classes: K, the number of the teacher's classes.
        seed: seed of the neighbours' draws.
    """

    def __init__(self, collected: Collected, classes: int, seed: int) -> None:
        self.collected, self.classes, labels = collected, classes, collected.labels
        self.entropy = collected.entropy / math.log(classes)
        self.right = collected.top1 == labels
        counts = Counter(collected.digests)
        self.copied = torch.tensor([counts[digest] > 1 for digest in collected.digests])
        self.pixels = spread(collected.small, labels, classes), nearest_neighbours(collected.small, labels, seed)
        self.features = spread(collected.features, labels, classes), nearest_neighbours(collected.features, labels, seed)
        self.near = self.pixels[1].within <= NEAR * self.pixels[0].between

    def summary(self) -> ImageFigures:
        """Return the figures over all images."""
        collected = self.collected
        per_value = collected.small.shape[1] ** 0.5
        return ImageFigures(
            images=len(collected.labels),
            classes=len(collected.labels.unique()),
            agreement=_mean(self.right),
            confidence=_distribution(collected.confidence),
            entropy=_distribution(self.entropy),
            clipped=_mean(collected.clipped),
            other=None if collected.other is None else _mean(collected.other == collected.labels),
            other_teacher=None if collected.other is None else _mean(collected.other == collected.top1),
            batchnorm=[LayerDistance(**row) for row in collected.batchnorm],
            pixels=_diversity(*self.pixels, per_value),
            features=_diversity(*self.features, 1.0),
            exact=int(self.copied.sum()),
            near=_mean(self.near),
        )

    def by_class(self) -> list[ClassFigures]:
        """Return the figures of each class that has images."""
        collected, made = self.collected, []
        (pixel_scale, pixels), (feature_scale, features) = self.pixels, self.features
        for label in collected.labels.unique().tolist():
            own = collected.labels == label
            taken = collected.top1[own & ~self.right]
            made.append(
                ClassFigures(
                    label=label,
                    images=int(own.sum()),
                    agreement=_mean(self.right[own]),
                    taken_for=int(taken.mode().values) if len(taken) else None,
                    confidence=_mean(collected.confidence[own]),
                    entropy=_mean(self.entropy[own]),
                    clipped=_mean(collected.clipped[own]),
                    other=None if collected.other is None else _mean(collected.other[own] == label),
                    exact=int(self.copied[own].sum()),
                    near=_mean(self.near[own]),
                    pixels_nearest=_median(pixels.within[own], pixel_scale.between),
                    features_nearest=_median(features.within[own], feature_scale.between),
                    features_nearest_other=_median(features.between[own], feature_scale.between),
                    features_within=_median(feature_scale.within[[label]], feature_scale.between),
                )
            )
        return made

    def pairs(self, numbers: list[int]) -> list[Pair]:
        """Return the closest pairs in pixels, closest first.

        Each image is in one pair at most. Each class's first pair comes before a second pair of any class.

        Args:
            numbers: numbers of the images in their split.
        """
        scale, neighbours = self.pixels
        order = neighbours.within.argsort(stable=True).tolist()
        candidates: list[Pair] = []
        used: set[int] = set()
        seen: Counter[int] = Counter()
        for first in order:
            second, label = int(neighbours.twin[first]), int(self.collected.labels[first])
            if second < 0 or first in used or second in used:
                continue
            used |= {first, second}
            distance = _ratio(float(neighbours.within[first]), scale.between)
            candidates.append(Pair(first=numbers[first], second=numbers[second], label=label, distance=distance or 0.0))
        turn = []
        for pair in candidates:
            turn.append((seen[pair.label], pair.distance, pair))
            seen[pair.label] += 1
        return [pair for _, _, pair in sorted(turn, key=lambda candidate: candidate[:2])[:MOST_PAIRS]]

    def contradicted(self, numbers: list[int], most: int) -> list[Contradiction]:
        """Return images whose label the teacher contradicts, sorted by confidence.

        One image of each class comes before a second one of any class. `numbers` as for `pairs`.
        """
        collected, wrong = self.collected, (~self.right).nonzero()[:, 0]
        order = wrong[collected.confidence[wrong].argsort(descending=True, stable=True)].tolist()
        seen: Counter[int] = Counter()
        turn = []
        for at in order:
            label = int(collected.labels[at])
            turn.append((seen[label], at))
            seen[label] += 1
        return [
            Contradiction(
                number=numbers[at],
                label=int(collected.labels[at]),
                named=int(collected.top1[at]),
                confidence=min(1.0, float(collected.confidence[at])),
            )
            for _, at in sorted(turn, key=lambda candidate: candidate[0])[:most]
        ]


def _mean(values: Tensor) -> float:
    """Return the mean of shares, limited to [0, 1] despite rounding."""
    return min(1.0, max(0.0, float(values.double().mean())))


def _distribution(values: Tensor) -> Distribution:
    """Return the distribution of (N,) values in [0, 1]."""
    exact = values.double().clamp(0, 1)
    low, median, high = torch.quantile(exact, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    bins = (exact * BINS).long().clamp(max=BINS - 1)
    shares = torch.bincount(bins, minlength=BINS).double() / len(values)
    return Distribution(mean=float(exact.mean()), median=median, low=low, high=high, shares=shares.tolist())


def _diversity(scale: Spread, neighbours: Neighbours, per_value: float) -> Diversity:
    return Diversity(
        typical=scale.between / per_value,
        within=_ratio(float(scale.within.nanmean()), scale.between),
        nearest=_median(neighbours.within, scale.between),
        nearest_other=_median(neighbours.between, scale.between),
    )


def _median(values: Tensor, unit: float) -> float | None:
    usable = values[values.isfinite()]
    return _ratio(float(usable.quantile(0.5)), unit) if len(usable) else None


def _ratio(value: float, unit: float) -> float | None:
    """Return `value / unit`, or None where `value` is not finite or `unit` is not positive."""
    return value / unit if math.isfinite(value) and unit > 0 else None
