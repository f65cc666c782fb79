"""Class centroids: where each class lies in the teacher's deep BatchNorm layers, and their exponential mean."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clusterq_common.taps import BatchNormTaps, ClassGroups, Moments, StoredStatistics
from clusterq_gen.config import Units


@dataclass(frozen=True)
class SemanticLayers:
    """The deep BatchNorm layers whose statistics separate classes, laid side by side: D channels in all.

    Attributes:
        names: layers in the order of execution.
        channels: channels of each.
        eps: (D,) BatchNorm's own eps for each channel: sqrt(var + eps) keeps the gradient of dead channels finite.
        unit: (D,) what means and stds are divided by; None for the units of the BatchNorm inputs.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    eps: Tensor
    unit: Tensor | None = None

    @classmethod
    def choose(
        cls, moments: list[Moments], stored: dict[str, StoredStatistics], start: int | None, units: Units = "raw"
    ) -> "SemanticLayers":
        """Layers from number `start` on (in order of execution), the deep half when None.

        In units of `std` everything is counted in a channel's own std, sqrt(running var + eps): what BatchNorm divides by, so that
        distances mean the same in every channel and for every teacher.

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
        """Class-wise mean and std of a batch in these layers, over the samples for which `keep` holds."""
        found = Moments.joined(taps.moments[-len(self.names) :]).by_class(groups, keep)
        mean, std = found.mean, torch.sqrt(found.var + self.eps)
        if self.unit is not None:
            mean, std = mean / self.unit, std / self.unit
        return ClassFeatures(groups.classes, mean, std, found.count)

    def layer_mean(self, values: Tensor) -> Tensor:
        """Mean over each layer's channels, then over layers: (K, D) -> (K,), no matter how wide a layer is."""
        return values @ self.shares.to(values)

    @cached_property
    def shares(self) -> Tensor:
        """(D,) what each channel counts in that mean; they sum to one."""
        return torch.cat([self.eps.new_full((width,), 1 / (width * len(self.channels))) for width in self.channels])


@dataclass(frozen=True)
class ClassFeatures:
    """Statistics of the classes in a batch: classes (K,), mean and std (K, D), count (K,) of samples behind each."""

    classes: Tensor
    mean: Tensor
    std: Tensor
    count: Tensor


class Centroids:
    """Mean and std of each class in the semantic layers, (classes, D) float32, and which classes have any yet, (classes,)."""

    def __init__(self, num_classes: int, layers: SemanticLayers) -> None:
        self.layers = layers
        self.mean = layers.eps.new_zeros(num_classes, layers.eps.numel())
        self.std = torch.zeros_like(self.mean)
        self.known = torch.zeros(num_classes, dtype=torch.bool, device=self.mean.device)

    @torch.no_grad()
    def update(self, features: ClassFeatures, rate: float) -> Tensor:
        """Eq. 5: `mu <- (1 - b) mu + b mu_hat`, likewise sigma. Absent classes keep theirs; a new class takes its first.

        Returns how far apart `mu` and `mu_hat` were before: root mean square over channels and layers, mean over the classes that had
        a centroid and are present, scalar; 0 where there is none.
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
        """How far apart `mu` and `mu_hat` are in each semantic layer, (L,) in running stds, so that layers compare.

        Root mean square over a layer's channels, mean over the classes that have a centroid and are present; 0 where there is none.

        Args:
            features: of a batch, before `update` has taken them in.
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
        """The tensors of a checkpoint."""
        return {"mean": self.mean, "std": self.std, "known": self.known}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a checkpoint's tensors."""
        self.mean, self.std, self.known = state["mean"], state["std"], state["known"]
