"""Images for tests of leakage: smooth random pictures."""

import torch
from torch import Tensor

from clusterq_report.leakage.spaces import Images, spaces

# The spaces that need no network.
FEW = spaces(None)[:2]


def pictures(count: int, seed: int, side: int = 8) -> Tensor:
    """(N, 2, side, side) uint8: noise, smoothed, so that a shift by a pixel keeps much."""
    noise = torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    return (128 + 150 * smooth).clamp(0, 255).to(torch.uint8)


def images_of(small: Tensor, labels: Tensor) -> Images:
    return Images(torch.arange(len(labels)), labels, small, {}, {}, {})
