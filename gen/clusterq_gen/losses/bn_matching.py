"""The batch's BatchNorm statistics must be those the teacher was trained with."""

import torch
from torch import Tensor

from clusterq_common.taps import Moments
from clusterq_gen.losses.batch import StepBatch


class BatchNormMatchingLoss:
    """L_BNS of ClusterQ Eq. 7: squared distance of mean and variance to the running statistics.

    Mean over each layer's channels, then over all layers, so that a wide layer counts no more than a narrow one.
    """

    def __call__(self, batch: StepBatch) -> Tensor:
        layers = list(batch.taps)
        channels = [layer.first.shape[1] for layer in layers]
        stored = [batch.stored[layer.name] for layer in layers]
        seen = Moments.joined(layers).batch()
        squares = (seen.mean - torch.cat([one.mean for one in stored])).square()
        squares = squares + (seen.var - torch.cat([one.var for one in stored])).square()
        return torch.stack([part.mean() for part in squares.split(channels)]).mean()
