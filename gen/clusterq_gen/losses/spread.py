"""Spread within classes: a penalty where images of one class are too similar."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.reduce import mean_across
from clusterq_common.device.setup import at_least_float32
from clusterq_common.taps import Moments
from clusterq_gen.losses.batch import StepBatch

# Images are compared as square cells, about this many along the shorter side, each the mean of its pixels. Layout counts, single pixels do not.
CELLS = 8


class ClassSpreadLoss:
    """`relu(images - s_0) + mean over BatchNorm layers l of relu(layers - s_l)`, where s is the share of variance within classes.

    `s = W / T`: W is the variance around the class's mean, T that around the batch's mean, both unbiased and summed over values. For
    s_0 the values are an image's cells, for s_l the means of the channels that flow into layer l, in units of each channel's running
    std. So s is near 0 where every image of a class is the same, and 1 where classes do not differ. Real images of CIFAR-10 and
    CIFAR-100 have 0.89 and 0.86 as images, 0.6 to 0.7 in most layers of a ResNet-20, and 0.27 and 0.51 in the last.

    A generator that knows its classes soon draws one picture for each. FDA and DE compare whole classes, so they do not detect it.
    With one of the two terms alone, the generator satisfies it cheaply: as another tint in every layer, or as pixels that no layer
    reacts to.

    Images that mix classes are excluded. A batch with one image of each class has no spread within classes; the loss is 0 there.

    Args:
        images, layers: shares from which on the penalty is zero.
    """

    def __init__(self, images: float, layers: float) -> None:
        self.images, self.layers = images, layers

    def __call__(self, batch: StepBatch) -> Tensor:
        # Not adaptive pooling, whose backward pass on a GPU differs from run to run.
        side = max(1, min(batch.images.shape[-2:]) // CELLS)
        cells = F.avg_pool2d(at_least_float32(batch.images), side).flatten(1)
        parts = [cells, *(moments.first / batch.stored[moments.name].std for moments in batch.taps)]
        shares = _shares_within(parts, batch)
        return (self.images - shares[0]).relu() + (self.layers - shares[1:]).relu().mean()


def _shares_within(parts: list[Tensor], batch: StepBatch) -> Tensor:
    """Return W / T of each part, (parts,); infinite where no two images share a class. Parts are (N, values) each.

    This is a share, differentiable and over the images of all processes. Reports measure other quantities on stored images: the
    variance within classes itself (`clusterq_report.measure.within_classes`) and distances of pairs (`clusterq_report.quality.distances`).
    """
    keep = torch.ones_like(batch.labels, dtype=torch.bool) if batch.mixture is None else batch.mixture.amax(1) == 1
    values = torch.cat(parts, dim=1)
    # Class means over all processes' images; the second moments are unused.
    classes = Moments("spread", values, values.detach(), values.new_zeros(values.shape[1])).by_class(batch.groups, keep)
    images, present = classes.count.sum(), (classes.count > 0).sum()
    whole = (classes.mean * classes.count[:, None]).sum(0) / images.clamp_min(1)
    weight = keep.to(values.dtype)[:, None]
    # Means over the images of all processes: the number of images cancels, except for the degrees of freedom.
    squares = [(weight * (values - centre).square()).mean(0) for centre in (classes.mean[batch.groups.row], whole)]
    by_part = [part.sum(1) for part in mean_across(torch.stack(squares)).split([part.shape[1] for part in parts], dim=1)]
    within, total = torch.stack(by_part, dim=1).unbind()
    share = within / total.clamp_min(1e-12) * (images - 1) / (images - present).clamp_min(1)
    return torch.where(images > present, share, torch.inf)
