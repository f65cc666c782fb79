"""Loss that matches the batch's BatchNorm statistics to the teacher's stored ones."""

from torch import Tensor

from clusterq_common.taps import Moments, StoredStatistics
from clusterq_gen.config import Units
from clusterq_gen.losses.batch import StepBatch
from clusterq_gen.losses.statistics_distance import Compared, apart, mean_over_layers


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
        stored = StoredStatistics.joined([batch.stored[layer.name] for layer in layers])
        compared: Compared = "variances" if self.units == "raw" else "relative stds"
        mean, spread = apart(Moments.joined(layers).batch(), stored, compared)
        squares = mean.square() + spread.square()
        return mean_over_layers(squares.split([layer.first.shape[1] for layer in layers]))
