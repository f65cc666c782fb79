"""Upsampling and convolution in one layer, the most expensive part of a generator, with four ninths of the multiplications."""

import torch.nn.functional as F
from torch import Tensor, nn


class UpsampledConv2d(nn.Conv2d):
    """A 3x3 convolution of its input upsampled to twice the side by repetition, with zero padding.

    (N, C, H, W) -> (N, out, 2 H, 2 W). At most four of the nine pixels under the kernel differ. So the weights of equal pixels
    are added beforehand, and a transposed convolution with these sums gives `conv(upsample(x))`, except for the order of
    additions. The parameters are those of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # A pixel contributes to 4x4 outputs, each through the sum of the weights over its copies there.
        padded = F.pad(self.weight, (1, 1, 1, 1))
        rows = padded[:, :, 1:] + padded[:, :, :-1]
        reach = rows[..., 1:] + rows[..., :-1]
        return F.conv_transpose2d(x, reach.flip(2, 3).transpose(0, 1), self.bias, stride=2, padding=1)
