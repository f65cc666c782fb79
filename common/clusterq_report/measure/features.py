"""What stored images do inside the teacher: how far from the training data's statistics, and how far apart by class."""

from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.taps import BatchNormTaps, batchnorm_layers


class BatchNormDistances:
    """Sums up BatchNorm inputs over batches and compares them with the running statistics.

    Attributes:
        scales: by layer, (C,) what BatchNorm divides by: sqrt(running var + eps). Distances are in these units.
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
        """Take in a batch; a layer that runs twice counts twice."""
        for moments in taps:
            both = torch.stack([moments.first.double().sum(0), moments.second.double().sum(0)])
            self._sums[moments.name] = self._sums.get(moments.name, 0) + both
            self._count[moments.name] = self._count.get(moments.name, 0) + len(moments.first)

    def result(self) -> list[dict[str, Any]]:
        """By layer in order of execution: `mean`, root mean square over channels of (mean - running mean) / scale; `std`, mean over
        channels of |std / scale - 1|."""
        found = []
        for name, sums in self._sums.items():
            first, second = sums / self._count[name]
            # The moments are relative to the running mean already.
            std = torch.sqrt((second - first.square()).clamp_min(0) + self._layers[name].eps)
            mean = (first / self.scales[name]).square().mean().sqrt()
            found.append({"layer": name, "mean": float(mean), "std": float((std / self.scales[name] - 1).abs().mean())})
        return found


class Scatter:
    """Collects each image's mean over positions in every BatchNorm input, and splits its variance into between and within classes."""

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, taps: BatchNormTaps) -> None:
        """Take in the next images, in the order of the labels; of a layer that runs twice the first pass counts."""
        seen: set[str] = set()
        for moments in taps:
            if moments.name not in seen:
                seen.add(moments.name)
                self._rows.setdefault(moments.name, []).append(moments.first.double())

    def result(self, scales: dict[str, Tensor]) -> list[dict[str, Any]]:
        """By layer: `between` and `within`, variance components (one-way random effects, so that few images of a class do not pass for
        distance between classes), mean over channels, in squared units of `scales`; empty unless two classes have two images each."""
        _, group, count = torch.unique(self._labels, return_inverse=True, return_counts=True)
        classes, images = len(count), len(self._labels)
        if classes < 2 or images <= classes:
            return []
        # Images of a class, were they all equally many (Searle, 1971).
        each = (images - float(count.double().square().sum()) / images) / (classes - 1)
        found = []
        for name, batches in self._rows.items():
            values = torch.cat(batches) / scales[name]
            means = values.new_zeros(classes, values.shape[1]).index_add(0, group, values) / count[:, None]
            within = (values - means[group]).square().sum(0) / (images - classes)
            between = (count[:, None] * (means - values.mean(0)).square()).sum(0) / (classes - 1)
            between = ((between - within) / each).clamp_min(0)
            found.append({"layer": name, "between": float(between.mean()), "within": float(within.mean())})
        return found
