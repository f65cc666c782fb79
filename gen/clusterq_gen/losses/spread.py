"""Spread within classes: a penalty where images of one class are too much alike."""

import torch
from torch import Tensor

from clusterq_common.runtime.reduce import mean_across
from clusterq_common.taps import Moments
from clusterq_gen.losses.batch import StepBatch


class ClassSpreadLoss:
    """`mean over BatchNorm layers l of relu(least - W_l / T_l)`, from 0 to `least`.

    W is the variance of images' channel means around their class's mean, T that around the batch's mean, both unbiased, summed over
    channels in units of each channel's running variance. So W / T is the share of the variance that lies within classes: near 0
    where every image of a class is the same, near 1 where classes do not differ. Of real images it is 0.6 to 0.7 in nearly all
    layers, with 10 and with 100 classes (docs/results.md). FDA and DE compare whole classes, so neither sees whether the images of
    one differ.

    Images that mix classes take no part. A batch with one image of each class has no spread within: the loss is 0 there.

    Args:
        least: the share from which on nothing is asked.
    """

    def __init__(self, least: float) -> None:
        self.least = least

    def __call__(self, batch: StepBatch) -> Tensor:
        keep = torch.ones_like(batch.labels, dtype=torch.bool) if batch.mixture is None else batch.mixture.amax(1) == 1
        parts = list(batch.taps)
        moments = Moments.joined(parts)
        classes = moments.by_class(batch.groups, keep)
        count = classes.count[:, None]
        whole = (classes.mean * count).sum(0) / count.sum().clamp_min(1)
        means, weight = moments.by_sample().mean, keep.to(classes.mean.dtype)[:, None]
        unit = torch.cat([batch.stored[part.name].std for part in parts]).square()
        # Means over all processes' images; the numbers of images cancel but for the degrees of freedom.
        squares = mean_across(
            torch.stack([(weight * (means - centre).square()).mean(0) for centre in (classes.mean[batch.groups.row], whole)])
        )
        by_layer = [part.sum(1) for part in (squares / unit).split([part.first.shape[1] for part in parts], dim=1)]
        within, total = torch.stack(by_layer, dim=1).unbind()
        images, present = count.sum(), (count > 0).sum()
        share = within / total.clamp_min(1e-12) * (images - 1) / (images - present).clamp_min(1)
        return torch.where(images > present, (self.least - share).relu().mean(), 0.0)
