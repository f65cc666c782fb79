"""Light augmentation of synthetic images, on pixels, with explicit randomness."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.setup import to_device_async

Augmentation = Literal["none", "flip", "crop-flip"]
# The usual CIFAR crop: an eighth of the height at top and bottom, of the width left and right.
PADDING_SHARE = 8


def augment(pixels: Tensor, kind: Augmentation, random: torch.Generator, *, whole: int, own: slice) -> Tensor:
    """Flip each image left-right with probability one half; `crop-flip` also shifts it by up to an eighth, edges repeated.

    Args:
        pixels: (N, C, H, W) uint8.
        kind: `none` returns the pixels as they are.
        random: a CPU generator.
        whole: images in the whole batch, of all processes: draws are made for all of them.
        own: slice of those that `pixels` holds.
    """
    if kind == "none":
        return pixels
    count, _, *sides = pixels.shape
    flip = to_device_async(torch.rand(whole, generator=random)[own] < 0.5, pixels.device)
    pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
    if kind == "flip":
        return pixels
    down, across = (max(1, side // PADDING_SHARE) for side in sides)
    padded = F.pad(pixels.float(), [across, across, down, down], mode="replicate").to(torch.uint8)
    drawn = torch.stack([torch.randint(2 * margin + 1, (whole,), generator=random) for margin in (down, across)])
    top, left = to_device_async(drawn[:, own], pixels.device)
    row, column = (torch.arange(side, device=pixels.device) for side in sides)
    rows = (top[:, None] + row)[:, None, :, None]
    columns = (left[:, None] + column)[:, None, None, :]
    image = torch.arange(count, device=pixels.device)[:, None, None, None]
    channel = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None, None]
    return padded[image, channel, rows, columns]
