"""Loss that matches the batch's BatchNorm statistics to the teacher's stored ones."""

import torch
from torch import Tensor

from clusterq_common.taps import Moments
from clusterq_gen.config import Units
from clusterq_gen.losses.batch import StepBatch


class BatchNormMatchingLoss:
    """L_BNS of ClusterQ Eq. 7: squared distance of mean and variance to the running statistics.

    Mean over each layer's channels, then over all layers, so that a wide layer counts no more than a narrow one.

    Args:
        units: `raw` as in the paper, where a layer whose inputs are twice as large weighs 4 (mean) and 16 times (variance) as much;
            `std`: squared distance of mean and standard deviation, sqrt(var + eps), in units of the running standard deviation.
    """

    def __init__(self, units: Units = "raw") -> None:
        self.units: Units = units

    def __call__(self, batch: StepBatch) -> Tensor:
        layers = list(batch.taps)
        channels = [layer.first.shape[1] for layer in layers]
        stored = [batch.stored[layer.name] for layer in layers]
        seen = Moments.joined(layers).batch()
        off = seen.mean - torch.cat([statistics.mean for statistics in stored])
        if self.units == "raw":
            squares = off.square() + (seen.var - torch.cat([statistics.var for statistics in stored])).square()
        else:
            std, unit = (
                torch.sqrt(seen.var + torch.cat([statistics.eps for statistics in stored])),
                torch.cat([statistics.std for statistics in stored]),
            )
            squares = (off / unit).square() + (std / unit - 1).square()
        return torch.stack([part.mean() for part in squares.split(channels)]).mean()
