"""A set, or held-out images in its place, beside training and held-out images in one space."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_report.leakage.arrangements import Arrangements
from clusterq_report.leakage.means import MeanShift, MeanSide
from clusterq_report.leakage.nearness import NearestKind
from clusterq_report.leakage.neighbours import Neighbours, nearest
from clusterq_report.leakage.spaces import Images, Space

Namer = Callable[[int], str]
Search = Callable[[Space, Images, Images, int], Neighbours]


@dataclass(frozen=True)
class Real:
    """Training and held-out images.

    Attributes:
        train, held: the images.
        train_name, held_name: name of an image by its number in the source.
    """

    train: Images
    held: Images
    train_name: Namer = str
    held_name: Namer = str


def search_space(space: Space, images: Images, candidates: Images, most: int) -> Neighbours:
    """Return the nearest candidates of each image in a space."""
    return nearest(space.versions(images), space.vectors(candidates), most, whole=space.whole)


@dataclass(frozen=True)
class Comparison:
    """Comparison of a set, or the control, with the real images in one space.

    Attributes:
        nearest: nearest training and held-out images of each image.
        kinds: counts how often the nearest real image is a training image, by arrangement.
        means: compares the classes' means; None for spaces without means.
    """

    nearest: tuple[Neighbours, Neighbours]
    kinds: NearestKind
    means: MeanSide | None

    @classmethod
    def begin(
        cls,
        space: Space,
        images: Images,
        real: Real,
        pool: Tensor | None,
        arrangements: Arrangements,
        classes: int,
        search: Search,
    ) -> "Comparison":
        """Search the nearest real images. No arrangement is counted yet.

        Args:
            space: where to search.
            images: the set or the control.
            real: training and held-out images.
            pool: vectors of both, or None for a space without means.
            arrangements: exchanges of training and held-out images.
            classes: K.
            search: finds neighbours.
        """
        # Of each kind as many as the list needs: the nearest of both together are among them.
        to_train, to_held = (search(space, images, part, arrangements.list_length) for part in (real.train, real.held))
        merged = _merged(to_train, to_held, len(real.train), arrangements.list_length)
        kinds = NearestKind(merged, images.labels, arrangements, classes)
        means = None if pool is None else MeanSide(space.vectors(images), images.labels, pool, arrangements)
        return cls((to_train, to_held), kinds, means)

    def add(self, places: Tensor) -> None:
        """Count some arrangements."""
        self.kinds.add(places)
        if self.means is not None:
            self.means.add(places)

    def mean_shift(self) -> MeanShift | None:
        """Return how far the classes' means lie towards training images; None for spaces without means."""
        return None if self.means is None else self.means.result()


def _merged(train: Neighbours, held: Neighbours, first_held: int, kept: int) -> Neighbours:
    """Return the nearest of both kinds, as many as each list has or would have; held-out images are numbered from `first_held`."""
    distances, order = torch.cat([train.distances, held.distances], 1).sort(dim=1, stable=True)
    numbers = torch.cat([train.numbers, held.numbers + first_held], 1).gather(1, order)
    return Neighbours(distances[:, :kept], numbers[:, :kept])
