"""Class centroids: statistics of each class in the teacher's deep BatchNorm layers, and their exponential moving average."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clusterq_common.taps import BatchNormTaps, ClassGroups, Moments, StoredStatistics
from clusterq_gen.config import Units


@dataclass(frozen=True)
class SemanticLayers:
    """The deep BatchNorm layers, whose statistics separate classes, with concatenated channels: D in all.

    Attributes:
        names: layers in the order of execution.
        channels: channels of each.
        eps: (D,) BatchNorm's own eps for each channel: sqrt(var + eps) keeps the gradient of dead channels finite.
        unit: (D,) divisor of means and stds; None for the units of the BatchNorm inputs.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    eps: Tensor
    unit: Tensor | None = None

    @classmethod
    def choose(
        cls, moments: list[Moments], stored: dict[str, StoredStatistics], start: int | None, units: Units = "raw"
    ) -> "SemanticLayers":
        """Return the layers from number `start` on (in order of execution), or the deep half when None.

        In units of `std`, values are divided by a channel's own std, sqrt(running var + eps). BatchNorm divides by the same value,
        so distances are comparable across channels and teachers.

        Raises:
            ValueError: there is no such layer.
        """
        first = len(moments) // 2 if start is None else start
        if first >= len(moments):
            raise ValueError(f"start_layer {first}, but the teacher has BatchNorm layers 0 to {len(moments) - 1}")
        deep = moments[first:]
        channels = tuple(moment.first.shape[1] for moment in deep)
        like = deep[0].first
        eps = torch.cat([stored[moment.name].eps for moment in deep]).to(like)
        unit = torch.cat([stored[moment.name].std for moment in deep]).to(like) if units == "std" else None
        return cls(tuple(moment.name for moment in deep), channels, eps, unit)

    def statistics(self, taps: BatchNormTaps, groups: ClassGroups, keep: Tensor) -> "ClassFeatures":
        """Return the class-wise mean and std of a batch in these layers, over the samples for which `keep` holds."""
        by_class = Moments.joined(taps.moments[-len(self.names) :]).by_class(groups, keep)
        mean, std = by_class.mean, torch.sqrt(by_class.var + self.eps)
        if self.unit is not None:
            mean, std = mean / self.unit, std / self.unit
        return ClassFeatures(groups.classes, mean, std, by_class.count)

    def layer_mean(self, values: Tensor) -> Tensor:
        """Return the mean over each layer's channels, then over layers: (K, D) -> (K,). A layer's width has no influence."""
        return values @ self.shares.to(values)

    @cached_property
    def shares(self) -> Tensor:
        """(D,) weight of each channel in that mean; they sum to one."""
        return torch.cat([self.eps.new_full((width,), 1 / (width * len(self.channels))) for width in self.channels])


@dataclass(frozen=True)
class ClassFeatures:
    """Statistics of the classes in a batch: classes (K,), mean and std (K, D), number of samples count (K,)."""

    classes: Tensor
    mean: Tensor
    std: Tensor
    count: Tensor


class Centroids:
    """Mean and std of each class in the semantic layers, (classes, D) float32, and whether it has a centroid yet, (classes,)."""

    def __init__(self, num_classes: int, layers: SemanticLayers) -> None:
        self.layers = layers
        self.mean = layers.eps.new_zeros(num_classes, layers.eps.numel())
        self.std = torch.zeros_like(self.mean)
        self.known = torch.zeros(num_classes, dtype=torch.bool, device=self.mean.device)

    @torch.no_grad()
    def update(self, features: ClassFeatures, rate: float) -> Tensor:
        """Update the centroids by Eq. 5: `mu <- (1 - b) mu + b mu_hat`, likewise sigma.

        Absent classes keep their centroid. A new class takes its first statistics.

        Returns:
            Distance of `mu` and `mu_hat` before the update, a scalar: root mean square over channels and layers, mean over the
            present classes that had a centroid; 0 where there is none.
        """
        rows = features.classes
        seen = (features.count > 0)[:, None]
        met = seen[:, 0] & self.known[rows]
        apart = self.layers.layer_mean((features.mean.detach() - self.mean[rows]).square()).sqrt()
        drift = (apart * met).sum() / met.sum().clamp_min(1)
        share = torch.where(self.known[rows], rate, 1.0).to(self.mean)[:, None] * seen
        self.mean[rows] = torch.lerp(self.mean[rows], features.mean.detach(), share)
        self.std[rows] = torch.lerp(self.std[rows], features.std.detach(), share)
        self.known[rows] |= seen[:, 0]
        return drift

    @torch.no_grad()
    def drift(self, features: ClassFeatures, stored: dict[str, StoredStatistics]) -> Tensor:
        """Return the distance of `mu` and `mu_hat` in each semantic layer, (L,) in running stds, which makes layers comparable.

        It is the root mean square over a layer's channels, mean over the present classes that have a centroid, and 0 where there is
        none.

        Args:
            features: statistics of a batch, before `update` has used them.
            stored: the layers' running statistics.
        """
        rows, layers = features.classes, self.layers
        met = (features.count > 0) & self.known[rows]
        squares = (features.mean.detach() - self.mean[rows]).square()
        if layers.unit is None:
            squares = squares / torch.cat([stored[name].std for name in layers.names]).to(squares).square()
        apart = torch.stack([own.mean(1) for own in squares.split(layers.channels, dim=1)], dim=1).sqrt()
        return (apart * met[:, None]).sum(0) / met.sum().clamp_min(1)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""
        return {"mean": self.mean, "std": self.std, "known": self.known}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a checkpoint's tensors."""
        self.mean, self.std, self.known = state["mean"], state["std"], state["known"]
