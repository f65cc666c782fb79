"""The batch's BatchNorm statistics must be those the teacher was trained with."""

import torch
from torch import Tensor

from clusterq_gen.losses.batch import StepBatch


class BatchNormMatchingLoss:
    """L_BNS of ClusterQ Eq. 7: squared distance of mean and variance to the running statistics.

    Mean over each layer's channels, then over all layers, so that a wide layer counts no more than a narrow one.
    """

    def __call__(self, batch: StepBatch) -> Tensor:
        distances = []
        for moments in batch.taps:
            seen, stored = moments.batch(), batch.stored[moments.name]
            distances.append((seen.mean - stored.mean).square().mean() + (seen.var - stored.var).square().mean())
        return torch.stack(distances).mean()
