"""Random exchanges of training and held-out images within classes, and draws of equally many of both."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from clusterq_common.run.seeding import stream

# A list of neighbours is so long that none of it is drawn with a probability below e^-32.
RARE, SPARE = 32, 8
# Draws, of all assignments together, that are evaluated at once.
AT_ONCE = 64
TRAIN, HELD, NEITHER = 1, -1, 0


class Arrangements:
    """Assignments of a pool's images to training and held-out ones: the true one first, then random ones.

    If the set were made without knowledge of the training images, then training and held-out images of a class could be exchanged
    without anyone noticing. So each random assignment exchanges them within classes, and the place of the true one among these
    is an exact test.

    Nearest neighbours get nearer with more images. So in each assignment, equally many of both are drawn from each class: several
    times if there are more of one, and always by the same places, so that the draws are exchangeable, too.

    Args:
        labels: (N,) int64 class of each image of the pool.
        trained: (N,) bool, whether it is a training image.
        permutations: number of random assignments.
        subsamples: number of draws, one if all classes have equally many of both.
        seed: seed of all draws.
    """

    def __init__(self, labels: Tensor, trained: Tensor, permutations: int, subsamples: int, seed: int) -> None:
        self.labels, self.trained, self.permutations, self.seed = labels, trained, permutations, seed
        classes = int(labels.max()) + 1
        self.of_train = torch.bincount(labels[trained], minlength=classes)
        self.of_held = torch.bincount(labels[~trained], minlength=classes)
        self.equal = torch.minimum(self.of_train, self.of_held)
        even = bool((self.of_train == self.of_held).all())
        self.draws = torch.stack([self._draw(number) for number in range(1 if even else subsamples)])
        # By class, to which the order of random keys is then applied.
        self._by_class = labels.argsort(stable=True)

    def _draw(self, number: int) -> Tensor:
        """Return (N,) int8: TRAIN and HELD for those drawn of each class, NEITHER for the others."""
        drawn = torch.full((len(self.labels),), NEITHER, dtype=torch.int8)
        for label in self.equal.nonzero()[:, 0].tolist():
            for kind, own in ((TRAIN, self.trained), (HELD, ~self.trained)):
                places = ((self.labels == label) & own).nonzero()[:, 0]
                order = torch.randperm(len(places), generator=stream(self.seed, "leakage draw", number, label, kind))
                drawn[places[order[: int(self.equal[label])]]] = kind
        return drawn

    @property
    def list_length(self) -> int:
        """Number of nearest neighbours that decide, in every draw, which kind is nearest, but for a probability of e^-32."""
        total = self.of_train + self.of_held
        there = total > 0
        share = float((2 * self.equal[there] / total[there]).min())
        length = SPARE if share >= 1 else SPARE + math.ceil(-RARE / math.log1p(-share)) if share > 0 else len(self.labels)
        return min(length, len(self.labels))

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the true assignment and then the random ones, some at a time: (B, N) int64, whose place in it each image takes."""
        together = max(1, AT_ONCE // len(self.draws))
        for start in range(0, 1 + self.permutations, together):
            numbers = range(start, min(start + together, 1 + self.permutations))
            yield torch.stack([self._place(number) for number in numbers])

    def _place(self, number: int) -> Tensor:
        if number == 0:
            return torch.arange(len(self.labels))
        keys = torch.rand(len(self.labels), generator=stream(self.seed, "leakage permutation", number), dtype=torch.float64)
        place = torch.empty(len(self.labels), dtype=torch.int64)
        place[self._by_class] = (self.labels + keys).argsort()
        return place


def p_value(statistics: Tensor) -> float:
    """Return the share of assignments whose statistic is at least that of the first, the true one.

    Args:
        statistics: (1 + permutations,).
    """
    return float((statistics >= statistics[0]).double().mean())


def corrected_for_many(statistics: Tensor) -> Tensor:
    """Return p-values corrected for the number of statistics (Westfall and Young's single-step max-T).

    Each is standardised over all assignments. A corrected p-value is the share of assignments whose largest statistic is at least
    this one's true value; so it accounts for how the statistics depend on each other.

    Args:
        statistics: (1 + permutations, K).

    Returns:
        (K,) float64; 1 for a statistic that is the same in all assignments.
    """
    spread = statistics.std(0, correction=0)
    usual = (statistics - statistics.mean(0)) / spread
    usual[:, spread == 0] = -torch.inf
    # Rounding must not part equal ones.
    return (usual.amax(1)[:, None] >= usual[0] - 1e-9).double().mean(0).where(spread > 0, 1.0)
