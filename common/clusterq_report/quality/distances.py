"""Similarity of images: nearest neighbours in blocks, and mean distances within and between classes in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_common.run.seeding import stream

# Number of rows and columns of distances that are held at once.
BLOCK = 1024


@dataclass(frozen=True)
class Neighbours:
    """Nearest neighbours of N points.

    Attributes:
        within: (N,) float64, distance to the nearest other point of the same class; infinite where a class has one point.
        twin: (N,) int64, index of that neighbour; -1 where there is none.
        between: (N,) float64, distance to the nearest of equally many points drawn from other classes, or of all of these where
            they are fewer. The number is equal because a nearest neighbour among few is farther than among many. Infinite where
            there is none.
    """

    within: Tensor
    twin: Tensor
    between: Tensor


def nearest_neighbours(points: Tensor, labels: Tensor, seed: int) -> Neighbours:
    """Return the Euclidean nearest neighbours, exact in float64.

    Args:
        points: (N, D), any dtype.
        labels: (N,) int64.
        seed: seed of the draw of points from other classes.
    """
    within = torch.full((len(points),), torch.inf, dtype=torch.float64)
    between, twin = within.clone(), torch.full((len(points),), -1)
    for label in labels.unique().tolist():
        own, others = (labels == label).nonzero()[:, 0], (labels != label).nonzero()[:, 0]
        order = torch.randperm(len(others), generator=stream(seed, "quality neighbours", label))
        drawn = others[order[: len(own) - 1]]
        for rows in own.split(BLOCK):
            within[rows], twin[rows] = _nearest(points, rows, own)
            between[rows], _ = _nearest(points, rows, drawn)
    return Neighbours(within, twin, between)


def _nearest(points: Tensor, rows: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each row, distance and index of the nearest candidate other than the row itself; infinite and -1 without any."""
    best = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    which = torch.full((len(rows),), -1)
    mine = points[rows].double()
    # An empty tensor would still split into one empty part.
    for columns in candidates.split(BLOCK) if len(candidates) else ():
        theirs = points[columns].double()
        squares = mine.square().sum(1)[:, None] + theirs.square().sum(1) - 2 * mine @ theirs.T
        squares[rows[:, None] == columns] = torch.inf
        least, at = squares.min(1)
        nearer = least < best
        best, which = torch.where(nearer, least, best), torch.where(nearer, columns[at], which)
    # Recomputed by differences, because the expanded square of two equal points leaves a rounding error with a large root.
    exact = (mine - points[which].double()).square().sum(1).sqrt()
    return torch.where(which >= 0, exact, torch.inf), which


@dataclass(frozen=True)
class Spread:
    """Root mean square distances between two points.

    `between` is over all pairs of different classes (of all pairs where there is only one class). `within` (K,) float64 is over
    the pairs of each class 0..K-1, NaN for fewer than two points.
    """

    between: float
    within: Tensor


def spread(points: Tensor, labels: Tensor, classes: int) -> Spread:
    """Return the mean over all pairs, by sums: sum over ordered pairs of ||x - y||^2 = 2 (n sum ||x||^2 - ||sum x||^2).

    These are distances between two points, summed over the coordinates. `measure.within_classes` has the variance of each coordinate.

    Args:
        points: (N, D), any dtype, at least two.
        labels: (N,) int64, below `classes`.
        classes: K.
    """
    width = points.shape[1]
    middle = sum((part.double().sum(0) for part in points.split(BLOCK)), torch.zeros(width, dtype=torch.float64)) / len(points)
    count = torch.bincount(labels, minlength=classes).double()
    sums, squares = torch.zeros(classes, width, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    for part, own in zip(points.split(BLOCK), labels.split(BLOCK), strict=True):
        centred = part.double() - middle
        sums.index_add_(0, own, centred)
        squares.index_add_(0, own, centred.square().sum(1))
    of_class = 2 * (count * squares - sums.square().sum(1)).clamp_min(0)
    of_all = 2 * (len(points) * squares.sum() - sums.sum(0).square().sum()).clamp_min(0)
    pairs, pairs_of_class = float(len(points)) ** 2 - float(count.square().sum()), count * (count - 1)
    # With a single class there are no pairs of different classes.
    between = (of_all - of_class.sum()).clamp_min(0) / pairs if pairs else of_all / pairs_of_class.sum()
    return Spread(float(between.sqrt()), (of_class / pairs_of_class).sqrt())
