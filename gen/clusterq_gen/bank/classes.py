"""What makes an image one of its class, and images of a class unlike each other: IntraQ's terms, and HAST's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterq_common.device.setup import at_least_float32


def class_loss(logits: Tensor, labels: Tensor, *, targets: Tensor | None = None, gamma: float = 0.0) -> Tensor:
    """How far each image is from its class, weighed, mean over the batch.

    Args:
        logits: (N, classes). labels: (N,) int64.
        targets: None for cross-entropy `-log p_y`; (N,) probabilities for IntraQ's soft inception loss `(p_y - target)^2`.
        gamma: HAST's weight `(1 - p_y)^gamma` on each image, after the focal loss; the gradient runs through it, too.
            0: every image counts alike.
    """
    log_p = F.log_softmax(at_least_float32(logits), dim=1).gather(1, labels[:, None])[:, 0]
    loss = -log_p if targets is None else (log_p.exp() - targets).square()
    if gamma:
        # Away from zero: the power of a fraction has an infinite slope there.
        loss = loss * (1 - log_p.exp()).clamp_min(1e-6) ** gamma
    return loss.mean()


def margin_loss(features: Tensor, labels: Tensor, least: float, most: float) -> Tensor:
    """IntraQ's marginal distance constraint: `relu(least - d) + relu(d - most)`, mean over the batch.

    d is the cosine distance `1 - cos` of an image's features to the mean of its class's features in the batch: not so near
    that all images of a class are one, not so far that they leave it. The centre moves with the images, and the gradient
    runs through it.

    Args:
        features: (N, D), what the classifier's last layer sees. labels: (N,) int64.
        least, most: ends of the range, in [0, 2].
    """
    features = at_least_float32(features)
    # By pairs: how many classes there are would have to be waited for on a GPU.
    same = (labels[:, None] == labels).to(features)
    apart = 1 - F.cosine_similarity(features, same @ features / same.sum(1, keepdim=True), dim=1)
    return ((least - apart).relu() + (apart - most).relu()).mean()


class Crop(NamedTuple):
    """A square of an image, in pixels: where it begins and how long its sides are."""

    top: int
    left: int
    side: int

    def of(self, images: Tensor) -> Tensor:
        """That square of all images (N, C, S, S), at full size again; bilinear."""
        size = images.shape[-1]
        square = images[..., self.top : self.top + self.side, self.left : self.left + self.side]
        return F.interpolate(square, size=(size, size), mode="bilinear", align_corners=False)


def random_crop(size: int, random: torch.Generator, probability: float, least: float) -> Crop | None:
    """IntraQ's local object reinforcement: with some probability, one square for all images of the batch; else None.

    The square keeps a share of the area drawn uniformly from [least, 1] and lies anywhere. So objects of the class come out at
    several places and sizes.

    Args:
        size: S, a side of the images.
        random: what the step draws from.
    """
    draw = torch.rand(4, generator=random).tolist()
    if draw[0] >= probability:
        return None
    side = max(1, round(size * (least + (1 - least) * draw[1]) ** 0.5))
    top, left = (int(place * (size - side + 1)) for place in draw[2:])
    return Crop(top, left, side)


class ClassifierInputs:
    """What the latest forward pass gave to the last layer with weights: `latest`, (N, D) with gradient."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None

    @property
    def latest(self) -> Tensor:
        assert self._seen is not None, "no forward pass yet"
        return self._seen if self._seen.dim() == 2 else self._seen.flatten(2).mean(2)

    def see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A layer with weights is about to run; the last one to do so is the classifier."""
        self._seen = inputs[0]


@contextmanager
def classifier_inputs(model: nn.Module) -> Iterator[ClassifierInputs]:
    """Tap the classifier's input for the length of the block: features, mean over positions where the classifier is a convolution."""
    features = ClassifierInputs()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_pre_hook(features.see) for layer in layers]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
