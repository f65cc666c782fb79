"""Distance of a batch's BatchNorm statistics to the stored ones, shared by all losses that match them."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from clusterq_common.taps import Statistics, StoredStatistics

# Variances: means and variances. Stds: means and standard deviations. Relative: the same in each channel's running std.
Compared = Literal["variances", "stds", "relative stds"]


def apart(seen: Statistics, stored: StoredStatistics, compared: Compared) -> tuple[Tensor, Tensor]:
    """Return the differences of mean and of spread from the stored ones by channel, with sign.

    A standard deviation is `sqrt(var + eps)` on both sides. The layer's eps keeps the gradient of a dead channel finite.

    Args:
        seen: (C,) or (N, C).
        stored: (C,).
    """
    mean = seen.mean - stored.mean
    if compared == "variances":
        return mean, seen.var - stored.var
    std, unit = torch.sqrt(seen.var + stored.eps), stored.std
    return (mean, std - unit) if compared == "stds" else (mean / unit, std / unit - 1)


def mean_over_layers(by_channel: Iterable[Tensor]) -> Tensor:
    """Return the mean over each layer's channels, (C,), then over layers, so that a wide layer counts no more than a narrow one."""
    return torch.stack([layer.mean(-1) for layer in by_channel]).mean()
