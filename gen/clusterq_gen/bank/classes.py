"""IntraQ's additions to an image's class: features apart from the others of the class, and crops."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.setup import at_least_float32
from clusterq_common.teacher.size import Size, sides


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
    """A crop of an image, in pixels: its corner and its sides."""

    top: int
    left: int
    height: int
    width: int

    def of(self, images: Tensor) -> Tensor:
        """Return the crop of all images (N, C, H, W), resized to full size; bilinear."""
        part = images[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return F.interpolate(part, size=images.shape[-2:], mode="bilinear", align_corners=False)


def random_crop(size: Size, random: torch.Generator, probability: float, least: float) -> Crop | None:
    """Draw a crop for IntraQ's local object reinforcement: with some probability one for the whole batch, else None.

    The crop has the image's proportions and keeps a share of the area drawn uniformly from [least, 1], at a random position.
    This makes objects of the class appear at several places and sizes.

    Args:
        size: of the images: the side of squares, or (height, width).
        random: the step's random generator.
    """
    draw = torch.rand(4, generator=random).tolist()
    if draw[0] >= probability:
        return None
    kept = (least + (1 - least) * draw[1]) ** 0.5
    height, width = (max(1, round(side * kept)) for side in sides(size))
    top, left = (
        int(place * (whole - part + 1)) for place, whole, part in zip(draw[2:], sides(size), (height, width), strict=True)
    )
    return Crop(top, left, height, width)
