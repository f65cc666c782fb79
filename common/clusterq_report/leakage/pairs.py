"""Pairs of a set's images and the training images that they are most alike."""

from torch import Tensor

from clusterq_report.leakage.beside import Real
from clusterq_report.leakage.findings import Pair
from clusterq_report.leakage.neighbours import Neighbours
from clusterq_report.leakage.spaces import Images, Space

MOST_PAIRS = 12


def most_alike(
    space: Space, made: Images, real: Real, searched: tuple[Neighbours, Neighbours], own: Tensor, limit: float
) -> list[Pair]:
    """Return the pairs with the lowest ratios, each training image in one pair at most.

    Args:
        space: where they were compared.
        made: the set's images.
        real: training and held-out images.
        searched: nearest training and held-out images of each of the set's images.
        own: (N,) the ratio of each of the set's images; see `ratios`.
        limit: ratio below which a pair counts as near-copies.
    """
    unit = space.vectors(real.train).shape[1] ** 0.5 if space.whole else 1.0
    to_train, to_held = searched
    pairs: list[Pair] = []
    seen: set[int] = set()
    for at in own.argsort(stable=True).tolist():
        place = int(to_train.numbers[at, 0])
        if place in seen:
            continue
        seen.add(place)
        train, held = int(real.train.numbers[place]), int(real.held.numbers[int(to_held.numbers[at, 0])])
        ratio = float(own[at])
        pairs.append(
            Pair(
                number=int(made.numbers[at]),
                label=int(made.labels[at]),
                train=train,
                train_name=real.train_name(train),
                held=held,
                held_name=real.held_name(held),
                distance=float(to_train.distances[at, 0]) / unit,
                # The nearest held-out image may be at no distance, too.
                ratio=min(ratio, 1e9),
                near=ratio < limit,
            )
        )
        if len(pairs) == MOST_PAIRS:
            break
    return pairs
