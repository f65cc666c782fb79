"""Test of the means of synthetic classes: do they lie nearer to those of the training images?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_report.leakage.arrangements import Arrangements

BLOCK = 1024
# Fewer training or held-out images of a class than this have no spread.
FEWEST = 2


@dataclass(frozen=True)
class MeanShift:
    """Offset of training from held-out images, along the line from all real images of a class to the synthetic ones' mean.

    Attributes:
        classes: (K,) int64, classes that have synthetic, training and held-out images.
        by_class: (1 + permutations, K) float64, the difference of the two means in standard deviations of the class; positive: the
            training mean lies nearer. Unlike two distances it does not depend on how many images there are of each.
        overall: (1 + permutations,) float64, mean over classes.
        error: standard error of `overall` if there is no offset.
        errors: (K,) float64, likewise of each class.
    """

    classes: Tensor
    by_class: Tensor
    overall: Tensor
    error: float
    errors: Tensor


class MeanSide:
    """Evaluation of one assignment after another.

    For equally many images of both kinds, |s - h|^2 - |s - t|^2 = 2 (t - h) (s - p), where s, t, h and p are the means of synthetic,
    training, held-out and all real images: the projection's sign says which mean is nearer. p and s are the same in all
    assignments, so each image is projected once.

    Args:
        queries: (Q, D) vectors of synthetic images, any dtype.
        query_labels: (Q,) int64.
        pool: (N, D) vectors of real images.
        arrangements: assignments of the pool.
    """

    def __init__(self, queries: Tensor, query_labels: Tensor, pool: Tensor, arrangements: Arrangements) -> None:
        labels, trained = arrangements.labels, arrangements.trained
        count = len(arrangements.of_train)
        mine = torch.bincount(query_labels, minlength=count)[:count]
        usable = (mine > 0) & (torch.minimum(arrangements.of_train, arrangements.of_held) >= FEWEST)
        projected = torch.zeros(len(labels), dtype=torch.float64)
        for label in usable.nonzero()[:, 0].tolist():
            own = (labels == label).nonzero()[:, 0]
            middle = _mean(pool, own)
            line = _mean(queries, (query_labels == label).nonzero()[:, 0]) - middle
            along = torch.cat([(pool[rows].double() - middle) @ line for rows in own.split(BLOCK)])
            spread = float(along.std())
            projected[own] = along / spread if spread > 0 else 0.0
        self.labels, self.trained, self.projected = labels, trained, projected
        self.classes = usable.nonzero()[:, 0]
        self.of_train, self.of_held = arrangements.of_train.double(), arrangements.of_held.double()
        self.total = torch.zeros(count, dtype=torch.float64).index_add_(0, labels, projected)
        self.found: list[Tensor] = []

    def add(self, places: Tensor) -> None:
        """Evaluate some assignments, (B, N): in each, every image takes this place."""
        train = torch.zeros(len(places), len(self.total), dtype=torch.float64)
        train.index_add_(1, self.labels, self.projected * self.trained[places])
        self.found.append((train / self.of_train - (self.total - train) / self.of_held)[:, self.classes])

    def result(self) -> MeanShift | None:
        """Return the statistics of all assignments so far; None where no class can be compared."""
        if not len(self.classes):
            return None
        by_class = torch.cat(self.found)
        errors = (1 / self.of_train + 1 / self.of_held)[self.classes].sqrt()
        return MeanShift(self.classes, by_class, by_class.mean(1), float(errors.square().sum().sqrt()) / len(errors), errors)


def _mean(vectors: Tensor, rows: Tensor) -> Tensor:
    """Return the mean of these rows, (D,) float64."""
    total = torch.zeros(vectors.shape[1], dtype=torch.float64)
    for part in rows.split(BLOCK):
        total += vectors[part].double().sum(0)
    return total / len(rows)
