"""What IntraQ adds to an image's class: features apart from the others of the class, and crops."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.setup import at_least_float32


def margin_loss(features: Tensor, labels: Tensor, least: float, most: float) -> Tensor:
    """Return IntraQ's marginal distance constraint: `relu(least - d) + relu(d - most)`, mean over the batch.

    d is the cosine distance `1 - cos` between an image's features and the mean of its class's features in the batch. The lower
    bound keeps the images of a class from becoming one, the upper bound keeps them within the class. The class mean moves with
    the images, and the gradient runs through it.

    Args:
        features: (N, D), input of the classifier's last layer. labels: (N,) int64.
        least, most: ends of the range, in [0, 2].
    """
    features = at_least_float32(features)
    # Pairwise, because the number of distinct classes would need a synchronisation with a GPU.
    same = (labels[:, None] == labels).to(features)
    apart = 1 - F.cosine_similarity(features, same @ features / same.sum(1, keepdim=True), dim=1)
    return ((least - apart).relu() + (apart - most).relu()).mean()


class Crop(NamedTuple):
    """A square crop of an image, in pixels: its corner and its side."""

    top: int
    left: int
    side: int

    def of(self, images: Tensor) -> Tensor:
        """Return the crop of all images (N, C, S, S), resized to full size; bilinear."""
        size = images.shape[-1]
        square = images[..., self.top : self.top + self.side, self.left : self.left + self.side]
        return F.interpolate(square, size=(size, size), mode="bilinear", align_corners=False)


def random_crop(size: int, random: torch.Generator, probability: float, least: float) -> Crop | None:
    """Draw a crop for IntraQ's local object reinforcement: with some probability one square for the whole batch, else None.

    The square keeps a share of the area drawn uniformly from [least, 1], at a random position. This makes objects of the class
    appear at several places and sizes.

    Args:
        size: S, a side of the images.
        random: the step's random generator.
    """
    draw = torch.rand(4, generator=random).tolist()
    if draw[0] >= probability:
        return None
    side = max(1, round(size * (least + (1 - least) * draw[1]) ** 0.5))
    top, left = (int(place * (size - side + 1)) for place in draw[2:])
    return Crop(top, left, side)
