"""Upsampling and convolution in one: what costs a generator most, at four ninths of the products."""

import torch.nn.functional as F
from torch import Tensor, nn


class UpsampledConv2d(nn.Conv2d):
    """A 3x3 convolution of its input at twice the side, each pixel repeated in a square of four; zeros around.

    (N, C, H, W) -> (N, out, 2 H, 2 W). Of the nine pixels under the kernel at most four differ. What is added beforehand are the
    weights that meet the same pixel, and a transposed convolution with these sums gives the same: `conv(upsample(x))`, but for
    the order of additions. Parameters are those of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # A pixel reaches 4x4 outputs, each through the sum of the weights that lie over its copies there.
        padded = F.pad(self.weight, (1, 1, 1, 1))
        rows = padded[:, :, 1:] + padded[:, :, :-1]
        reach = rows[..., 1:] + rows[..., :-1]
        return F.conv_transpose2d(x, reach.flip(2, 3).transpose(0, 1), self.bias, stride=2, padding=1)
