"""Spread within classes: a penalty where images of one class are too much alike."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.runtime.precision import at_least_float32
from clusterq_common.runtime.reduce import mean_across
from clusterq_common.taps import Moments
from clusterq_gen.losses.batch import StepBatch

# Images are compared as about so many cells a side, each the mean of its pixels: what is where counts, single pixels do not.
CELLS = 8


class ClassSpreadLoss:
    """`relu(least - W / T)`, from 0 to `least`.

    W is the variance of images' cells around their class's mean image, T that around the batch's mean image, both unbiased, summed
    over cells and channels. So W / T is the share of the variance that lies within classes: near 0 where every image of a class is
    the same, near 1 where classes do not differ. Real images have 0.89 (CIFAR-10) and 0.86 (CIFAR-100). A generator that
    knows its classes soon draws one picture for each; FDA and DE compare whole classes, so they do not see it.

    Images that mix classes take no part. A batch with one image of each class has no spread within: the loss is 0 there.

    Args:
        least: the share from which on nothing is asked.
    """

    def __init__(self, least: float) -> None:
        self.least = least

    def __call__(self, batch: StepBatch) -> Tensor:
        keep = torch.ones_like(batch.labels, dtype=torch.bool) if batch.mixture is None else batch.mixture.amax(1) == 1
        # Not adaptive pooling, whose backward pass on a GPU differs from run to run.
        side = max(1, min(batch.images.shape[-2:]) // CELLS)
        cells = F.avg_pool2d(at_least_float32(batch.images), side).flatten(1)
        classes = Moments("images", cells, cells.square(), cells.new_zeros(cells.shape[1])).by_class(batch.groups, keep)
        images, present = classes.count.sum(), (classes.count > 0).sum()
        whole = (classes.mean * classes.count[:, None]).sum(0) / images.clamp_min(1)
        weight = keep.to(cells.dtype)[:, None]
        # Means over the images of all processes: how many there are cancels, but for the degrees of freedom.
        within, total = mean_across(
            torch.stack(
                [(weight * (cells - centre).square()).sum(1).mean() for centre in (classes.mean[batch.groups.row], whole)]
            )
        ).unbind()
        share = within / total.clamp_min(1e-12) * (images - 1) / (images - present).clamp_min(1)
        return torch.where(images > present, (self.least - share).relu(), 0.0)
