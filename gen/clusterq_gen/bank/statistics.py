"""Distances between a batch's BatchNorm statistics and the teacher's stored ones: ZeroQ's and DSG's.

Every distance is a mean over a layer's channels and then over layers. The papers sum over layers, and ZeroQ over channels, too.
Adam is insensitive to a constant factor, but with a sum a wide layer would count more than a narrow one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_common.images.normalise import pixel_bounds
from clusterq_common.run.seeding import stream
from clusterq_common.taps import Moments, Statistics, StoredStatistics, batchnorm_taps, stored_statistics
from clusterq_common.teacher.load import Teacher
from clusterq_gen.losses.statistics_distance import apart, mean_over_layers

# Number of noise images on which DSG measures its margins.
NOISE_IMAGES = 1024
NOISE_CHUNK = 64
# Added to the images' variance, as a BatchNorm layer does.
IMAGE_EPS = 1e-8


@dataclass(frozen=True)
class LayerTarget:
    """Target statistics of one BatchNorm layer's input, in the units of that input.

    Attributes:
        stored: the layer's running statistics.
        mean_slack, std_slack: margins; distances up to these cost nothing.
    """

    stored: StoredStatistics
    mean_slack: float = 0.0
    std_slack: float = 0.0

    def squares(self, seen: Statistics) -> Tensor:
        """Return `relu(|m - mu| - delta)^2 + relu(|s - sigma| - gamma)^2` by channel, in the shape of `seen`, (C,) or (N, C)."""
        mean, std = self.apart(seen)
        mean, std = (mean - self.mean_slack).relu(), (std - self.std_slack).relu()
        return mean.square() + std.square()

    def apart(self, seen: Statistics) -> tuple[Tensor, Tensor]:
        """Return the absolute differences of mean and of standard deviation, by channel."""
        mean, std = apart(seen, self.stored, "stds")
        return mean.abs(), std.abs()


def statistics_loss(moments: Sequence[Moments], targets: Sequence[LayerTarget]) -> Tensor:
    """Return ZeroQ Eq. 3 for i >= 1: `sum_i ||mu_hat_i - mu_i||^2 + ||sigma_hat_i - sigma_i||^2`.

    With margins it is DSG's slack alignment.

    Args:
        moments: moments of each BatchNorm layer's input, in the order of execution.
        targets: one for each of them, in the same order.
    """
    return mean_over_layers(target.squares(layer.own()) for layer, target in zip(moments, targets, strict=True))


def emphasis_loss(moments: Sequence[Moments], targets: Sequence[LayerTarget]) -> Tensor:
    """Return DSG's layerwise enhancement: image n emphasises layer n mod L, by its own statistics.

    In the paper each image's loss over all layers is reinforced at one layer: the identity matrix is added to a matrix of ones.
    Here the ones are `statistics_loss` over the batch, as BatchNorm's statistics are. The identity is this term: the distance of
    single images to their layer, mean over images, scaled to one layer of L. The paper does not say over what a single image's
    statistics are computed. Here they are computed over its positions, with the batch's margins.
    """
    layers = len(targets)
    whole = moments[0].first.new_zeros(())
    for number, (layer, target) in enumerate(zip(moments, targets, strict=True)):
        rows = slice(number, None, layers)
        mine = Moments(layer.name, layer.first[rows], layer.second[rows], layer.shift)
        whole = whole + target.squares(mine.by_sample()).mean(-1).sum()
    return whole / (len(moments[0].first) * layers)


def input_loss(images: Tensor, layers: int) -> Tensor:
    """Return ZeroQ Eq. 3 for i = 0: the distance of the normalised images to mean 0 and deviation 1 in each channel.

    Args:
        images: (N, C, H, W).
        layers: number of the teacher's BatchNorm layers. The images count as one more.
    """
    seen = Statistics(images.mean((0, 2, 3)), images.var((0, 2, 3), correction=0))
    wanted = StoredStatistics(torch.zeros_like(seen.mean), torch.ones_like(seen.var), torch.full_like(seen.var, IMAGE_EPS))
    return LayerTarget(wanted).squares(seen).mean() / layers


def layer_targets(teacher: Teacher, seed: int, slack: float) -> list[LayerTarget]:
    """Return the teacher's targets in the order of execution. A layer that runs twice has two.

    Args:
        seed: keys the noise images on which margins are measured.
        slack: DSG's epsilon in [0, 1). A layer's margins are this quantile, over its channels, of the absolute differences on
            standard normal noise, clamped to the range of pixels as all images are. 0: no margins, no noise.
    """
    device = next(teacher.model.parameters()).device
    stored = stored_statistics(teacher.model)
    # Without margins, one chunk is still needed for the order of the layers.
    chunks = NOISE_IMAGES // NOISE_CHUNK if slack else 1
    seen: list[list[Moments]] = []
    with torch.no_grad(), batchnorm_taps(teacher.model) as taps:
        for number in range(chunks):
            teacher.model(noise_images(teacher, NOISE_CHUNK, stream(seed, "slack", number)).to(device))
            seen.append(list(taps))
    targets = []
    for parts in zip(*seen, strict=True):
        first = parts[0]
        target = LayerTarget(stored[first.name])
        if slack:
            whole = Moments(first.name, torch.cat([p.first for p in parts]), torch.cat([p.second for p in parts]), first.shift)
            mean, std = (torch.quantile(distances, slack).item() for distances in target.apart(whole.own()))
            target = LayerTarget(target.stored, mean, std)
        targets.append(target)
    return targets


def noise_images(teacher: Teacher, count: int, random: torch.Generator) -> Tensor:
    """Return standard normal noise as normalised images (N, C, H, W), clamped to the range of eight-bit pixels."""
    spec = teacher.spec
    low, high = pixel_bounds(spec)
    noise = torch.randn(count, *spec.shape, generator=random).clamp(low, high)
    return noise.contiguous(memory_format=torch.channels_last)
