"""Conversion of stored images to network inputs: normalised, and optionally low-pass filtered."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.images.normalise import normalise
from clusterq_common.teacher.spec import InputSpec


def to_network_input(pixels: Tensor, spec: InputSpec, low_pass: float = 0.0) -> Tensor:
    """Convert pixels, (N, C, H, W) uint8, to normalised float32 in channels_last order.

    Args:
        pixels: stored images.
        spec: input format of the teacher.
        low_pass: standard deviation, in pixels, of the Gaussian that blurs the images; 0: none. Generated images have high
            frequencies that real ones lack (SynQ filters them in the frequency domain, which is the same operation).
    """
    images = normalise(pixels, spec)
    if low_pass:
        images = _blurred(images, low_pass)
    return images.contiguous(memory_format=torch.channels_last)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    # Edges are repeated, because zero padding would add a dark rim.
    padded = F.pad(images, [radius] * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
