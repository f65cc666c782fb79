"""How far a batch's BatchNorm statistics are from those that the teacher was trained with: ZeroQ's distance, and DSG's.

Every distance is a mean over a layer's channels and then over layers. The papers sum over layers, and ZeroQ over channels, too;
Adam does not see the factor, but a wide layer would count more than a narrow one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_common.images import pixel_bounds
from clusterq_common.run.seeding import stream
from clusterq_common.taps import Moments, Statistics, batchnorm_taps, stored_statistics
from clusterq_common.teacher.load import Teacher

# DSG measures its margins on as many noise images.
NOISE_IMAGES = 1024
NOISE_CHUNK = 64


@dataclass(frozen=True)
class LayerTarget:
    """What one BatchNorm layer's input should look like, in the units of that input.

    Attributes:
        mean, std: (C,) float32, the running mean and `sqrt(running variance + eps)`.
        eps: (C,) the layer's own; it keeps a dead channel's gradient finite.
        mean_slack, std_slack: distances up to these cost nothing.
    """

    mean: Tensor
    std: Tensor
    eps: Tensor
    mean_slack: float = 0.0
    std_slack: float = 0.0

    def distance(self, seen: Statistics) -> Tensor:
        """`relu(|m - mu| - delta)^2 + relu(|s - sigma| - gamma)^2`, mean over channels; (C,) -> scalar, (N, C) -> (N,)."""
        mean, std = self.apart(seen)
        mean, std = (mean - self.mean_slack).relu(), (std - self.std_slack).relu()
        return (mean.square() + std.square()).mean(-1)

    def apart(self, seen: Statistics) -> tuple[Tensor, Tensor]:
        """Absolute differences of mean and of standard deviation, by channel."""
        return (seen.mean - self.mean).abs(), ((seen.var + self.eps).sqrt() - self.std).abs()


def statistics_loss(moments: Sequence[Moments], targets: Sequence[LayerTarget]) -> Tensor:
    """ZeroQ Eq. 3 for i >= 1: `sum_i ||mu_hat_i - mu_i||^2 + ||sigma_hat_i - sigma_i||^2`; with margins, DSG's slack alignment.

    Args:
        moments: what flowed into each BatchNorm layer, in the order of execution.
        targets: as many, in that order.
    """
    return torch.stack([target.distance(one.own()) for one, target in zip(moments, targets, strict=True)]).mean()


def emphasis_loss(moments: Sequence[Moments], targets: Sequence[LayerTarget]) -> Tensor:
    """DSG's layerwise enhancement: image n counts layer n mod L once more, by its own statistics.

    In the paper each image's loss over all layers is reinforced at one layer, the identity matrix added to one of ones. Here
    the ones are `statistics_loss`, over the batch, as BatchNorm's statistics are; the identity is this term: the
    distance of single images to their layer, mean over images, in the units of one layer of L. The paper does not say over
    what its single image's statistics run: here over its positions, with the batch's margins.
    """
    layers = len(targets)
    apart = moments[0].first.new_zeros(())
    for number, (one, target) in enumerate(zip(moments, targets, strict=True)):
        rows = slice(number, None, layers)
        mine = Moments(one.name, one.first[rows], one.second[rows], one.shift)
        apart = apart + target.distance(mine.by_sample()).sum()
    return apart / (len(moments[0].first) * layers)


def input_loss(images: Tensor, layers: int) -> Tensor:
    """ZeroQ Eq. 3 for i = 0: the normalised images' own mean should be 0 and deviation 1 in each channel.

    Args:
        images: (N, C, S, S).
        layers: BatchNorm layers of the teacher; the images count as one more.
    """
    mean, var = images.mean((0, 2, 3)), images.var((0, 2, 3), correction=0)
    return (mean.square() + ((var + 1e-8).sqrt() - 1).square()).mean() / layers


def layer_targets(teacher: Teacher, seed: int, slack: float) -> list[LayerTarget]:
    """The teacher's targets in the order of execution; a layer that runs twice has two.

    Args:
        seed: keys the noise images that margins are measured on.
        slack: DSG's epsilon in [0, 1): each layer's margins are this quantile, over its channels, of the absolute differences
            on standard normal noise (clamped to what pixels can hold, as all images are); 0: no margins, no noise.
    """
    device = next(teacher.model.parameters()).device
    stored = stored_statistics(teacher.model)
    # Without margins one chunk still tells the order of the layers.
    chunks = NOISE_IMAGES // NOISE_CHUNK if slack else 1
    seen: list[list[Moments]] = []
    with torch.no_grad(), batchnorm_taps(teacher.model) as taps:
        for number in range(chunks):
            teacher.model(noise_images(teacher, NOISE_CHUNK, stream(seed, "slack", number)).to(device))
            seen.append(list(taps))
    targets = []
    for parts in zip(*seen, strict=True):
        first = parts[0]
        statistics = stored[first.name]
        target = LayerTarget(statistics.mean, statistics.std, statistics.eps)
        if slack:
            whole = Moments(first.name, torch.cat([p.first for p in parts]), torch.cat([p.second for p in parts]), first.shift)
            mean, std = (torch.quantile(apart, slack).item() for apart in target.apart(whole.own()))
            target = LayerTarget(target.mean, target.std, target.eps, mean, std)
        targets.append(target)
    return targets


def noise_images(teacher: Teacher, count: int, random: torch.Generator) -> Tensor:
    """Standard normal noise as normalised images (N, C, S, S), clamped to what eight-bit pixels can hold."""
    spec = teacher.spec
    low, high = pixel_bounds(spec)
    noise = torch.randn(count, spec.channels, spec.size, spec.size, generator=random).clamp(low, high)
    return noise.contiguous(memory_format=torch.channels_last)
