"""Statistics of stored images in the teacher: distance to the training data's statistics, and separation of classes."""

from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.taps import BatchNormTaps, Statistics, batchnorm_layers
from clusterq_report.measure.within_classes import around_class_means


class BatchNormDistances:
    """Accumulator of BatchNorm inputs over batches, for comparison with the running statistics.

    Moments are summed in float64, because there may be any number of batches; `taps` makes statistics of them.

    Attributes:
        scales: by layer, (C,) divisor of BatchNorm: sqrt(running var + eps). Distances are in these units.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = batchnorm_layers(model)
        self.scales: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}
        for name, layer in self._layers.items():
            assert layer.running_var is not None
            self.scales[name] = torch.sqrt(layer.running_var.double() + layer.eps)

    def add(self, taps: BatchNormTaps) -> None:
        """Add a batch. A layer that runs twice counts twice."""
        for moments in taps:
            both = torch.stack([moments.first.double().sum(0), moments.second.double().sum(0)])
            self._sums[moments.name] = self._sums.get(moments.name, 0) + both
            self._count[moments.name] = self._count.get(moments.name, 0) + len(moments.first)

    def result(self) -> list[dict[str, Any]]:
        """Return the distances by layer in order of execution.

        `mean` is the root mean square over channels of (mean - running mean) / scale. `std` is the mean over channels of
        |std / scale - 1|.
        """
        layers = []
        for name, sums in self._sums.items():
            # The moments are relative to the running mean, and so is this mean.
            statistics = Statistics.of_moments(*(sums / self._count[name]))
            std = torch.sqrt(statistics.var + self._layers[name].eps)
            mean = (statistics.mean / self.scales[name]).square().mean().sqrt()
            layers.append({"layer": name, "mean": float(mean), "std": float((std / self.scales[name] - 1).abs().mean())})
        return layers


class Scatter:
    """Accumulator of each image's channel means at every BatchNorm input, for the variance between and within classes."""

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, taps: BatchNormTaps) -> None:
        """Add the next images, in the order of the labels. For a layer that runs twice, the first pass counts."""
        seen: set[str] = set()
        for moments in taps:
            if moments.name not in seen:
                seen.add(moments.name)
                self._rows.setdefault(moments.name, []).append(moments.first.double())

    def result(self, scales: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return the variance components `between` and `within` by layer, mean over channels, in squared units of `scales`.

        They follow a one-way random effects model, so that few images of a class do not appear as distance between classes. The
        result is empty unless two classes have two images each.
        """
        count = torch.unique(self._labels, return_counts=True)[1]
        classes, images = len(count), len(self._labels)
        if classes < 2 or images <= classes:
            return []
        # Effective number of images of a class for classes of unequal size (Searle, 1971).
        each = (images - float(count.double().square().sum()) / images) / (classes - 1)
        layers = []
        for name, batches in self._rows.items():
            values = torch.cat(batches) / scales[name]
            around = around_class_means(values, self._labels)
            within = around.deviations.square().sum(0) / (images - classes)
            between = (count[:, None] * (around.means - values.mean(0)).square()).sum(0) / (classes - 1)
            between = ((between - within) / each).clamp_min(0)
            layers.append({"layer": name, "between": float(between.mean()), "within": float(within.mean())})
        return layers
