"""Test of nearness: are training images nearer to a set than held-out ones?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_report.leakage.arrangements import HELD, NEITHER, TRAIN, Arrangements
from clusterq_report.leakage.neighbours import Neighbours

# Neighbours looked at first, and by how many times more then.
FIRST, FACTOR = 4, 4


@dataclass(frozen=True)
class Nearness:
    """Share of Q queries whose nearest real image is a training image, ties counted half.

    Attributes:
        shares: (1 + permutations,) float64, mean over queries and draws; the true assignment's first. This is the AUC of paired
            distances: the probability that the nearest training image is nearer than the nearest held-out one.
        by_class: (1 + permutations, K) float64, the same of each class of queries; NaN for classes without any.
        effective: number of independent queries that the true share is worth: Q^2 / sum of w^2, where w queries have the same
            nearest image. Queries with the same nearest image are right or wrong together.
        effective_by_class: (K,) float64.
    """

    shares: Tensor
    by_class: Tensor
    effective: float
    effective_by_class: Tensor


class NearestKind:
    """Evaluation of one assignment after another.

    Args:
        neighbours: neighbours of Q queries among the pool, `Arrangements.list_length` or more of each.
        labels: (Q,) int64 class of each query.
        arrangements: assignments of the pool.
        classes: K.
    """

    def __init__(self, neighbours: Neighbours, labels: Tensor, arrangements: Arrangements, classes: int) -> None:
        self.neighbours, self.labels, self.draws, self.classes = neighbours, labels, arrangements.draws, classes
        self.counts = torch.bincount(labels, minlength=classes)
        self.totals: list[Tensor] = []
        self.first: tuple[float, Tensor] | None = None

    def add(self, places: Tensor) -> None:
        """Evaluate some assignments, (B, N): in each, every image takes this place."""
        kinds = self.draws[:, places]
        halves, at = self._halves(kinds.flatten(0, 1))
        # Whole numbers, so that equal assignments give equal statistics.
        sums = torch.zeros(len(places), self.classes, dtype=torch.int64)
        self.totals.append(sums.index_add_(1, self.labels, halves.view(*kinds.shape[:2], -1).sum(0)))
        if self.first is None:
            self.first = self._effective(at.view(*kinds.shape[:2], -1)[:, 0])

    def result(self) -> Nearness:
        """Return the statistics of all assignments so far."""
        assert self.first is not None, "no assignment was evaluated"
        totals = torch.cat(self.totals)
        most = 2 * len(self.draws)
        shares = totals.sum(1).double() / (most * len(self.labels))
        return Nearness(shares, totals.double() / (most * self.counts), *self.first)

    def _halves(self, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Return twice the score (2 train, 1 tie, 0 held-out), (R, Q) int64, and the number of the nearest image, (R, Q).

        Args:
            kinds: (R, N) int8, each draw's kind of each image.
        """
        distances, numbers = self.neighbours.distances, self.neighbours.numbers
        draws, queries = (
            axis.flatten() for axis in torch.meshgrid(torch.arange(len(kinds)), torch.arange(len(numbers)), indexing="ij")
        )
        halves = torch.empty(len(draws), dtype=torch.int64)
        at = torch.empty_like(halves)
        undecided = torch.arange(len(draws))
        seen = 0
        # Most are decided by the first few neighbours.
        while len(undecided):
            if seen == numbers.shape[1]:
                raise RuntimeError("a list of neighbours holds no drawn image; its length is wrong")
            seen = min(numbers.shape[1], max(FIRST, FACTOR * seen))
            near, listed = distances[queries[undecided], :seen], numbers[queries[undecided], :seen]
            kind = kinds[draws[undecided, None], listed]
            drawn = kind != NEITHER
            first = drawn.to(torch.uint8).argmax(1, keepdim=True)
            least = near.gather(1, first)
            alike = drawn & (near == least)
            train, held = ((alike & (kind == side)).any(1).long() for side in (TRAIN, HELD))
            halves[undecided], at[undecided] = 1 + train - held, listed.gather(1, first)[:, 0]
            # A tie may go on behind what was looked at.
            sure = drawn.any(1) & ((least[:, 0] < near[:, -1]) | (seen == numbers.shape[1]))
            undecided = undecided[~sure]
        return halves.view(len(kinds), -1), at.view(len(kinds), -1)

    def _effective(self, at: Tensor) -> tuple[float, Tensor]:
        """Return the effective numbers of queries, mean over draws, given each query's nearest image (R, Q)."""
        own = torch.stack([_kish(row) for row in at]).mean(0)
        by_class = torch.stack(
            [
                torch.stack([_kish(row[self.labels == label]) for row in at]).mean(0)
                if self.counts[label]
                else torch.tensor(0.0, dtype=torch.float64)
                for label in range(self.classes)
            ]
        )
        return float(own), by_class


def _kish(at: Tensor) -> Tensor:
    """Return n^2 / sum of squared cluster sizes (Kish's effective sample size), clusters being equal numbers."""
    sizes = at.unique(return_counts=True)[1].double()
    return sizes.sum().square() / sizes.square().sum()
