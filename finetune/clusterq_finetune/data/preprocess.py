"""A real image as its teacher wants it, as published accuracies were measured."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clusterq_common.images.png import MODES
from clusterq_common.teacher.size import Size, show_size, sides
from clusterq_common.teacher.spec import Geometry, InputSpec
from clusterq_finetune.data.pixels import eight_bits

# Pixels of a resized photograph. One of 1 x 20,000 pixels would have billions, its shorter side at 256.
LARGEST_RESIZED = 1 << 26
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(image: Image.Image, spec: InputSpec, geometry: Geometry) -> Tensor:
    """Return a decoded image as (C, H, W) uint8.

    With a crop share: the image is resized in its own proportions, antialiased, until it just covers ceil(H / share) x
    ceil(W / share); then the centre is cropped. Pixels are those of torchvision's Resize and CenterCrop of a PIL image. For a square
    the shorter side becomes ceil(H / share), 256 for 224 at 0.875. Without a share: the whole image, resized where its size
    differs. Images of more than eight bits are scaled before that, by their depth. EXIF's rotation is not
    applied and an alpha channel is dropped, as where torchvision's ImageFolder reads.

    Raises:
        ClusterqError: an image of 32 bits or floats without a range.
        ValueError: it is so long and narrow that resizing it would fill the memory.
    """
    target = (spec.width, spec.height)
    if geometry.crop_pct is not None:
        target = resized(image.size, covered(spec.size, geometry.crop_pct))
        if target[0] * target[1] > LARGEST_RESIZED:
            raise ValueError(f"it is {image.size[0]}x{image.size[1]}, which is {target[0]}x{target[1]} after resizing")
    image = eight_bits(image, None, "an image").image.convert(MODES[spec.channels])
    resampling = RESAMPLING[geometry.interpolation]
    if geometry.crop_pct is None:
        if image.size != target:
            image = image.resize(target, resampling)
    else:
        image = image.resize(target, resampling)
        # To the nearest, halves to the even number: where both sides cannot lose the same, torchvision chooses so.
        left, top = round((target[0] - spec.width) / 2), round((target[1] - spec.height) / 2)
        image = image.crop((left, top, left + spec.width, top + spec.height))
    array = np.array(image).reshape(spec.height, spec.width, spec.channels)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def covered(size: Size, crop_pct: float) -> tuple[int, int]:
    """Height and width in pixels that the resized image covers, so that the crop of `size` is that share of them.

    A share that divides a side evenly must not be one pixel more by rounding.
    """
    height, width = (math.ceil(side / crop_pct - 1e-9) for side in sides(size))
    return height, width


def resized(size: tuple[int, int], cover: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image that just covers `cover`, (height, width).

    One side fits; the other one keeps the image's proportions, cut off to a whole number.
    """
    width, height = size
    down, across = cover
    return (across, across * height // width) if down * width <= across * height else (down * width // height, down)


def describe_preprocessing(spec: InputSpec, geometry: Geometry) -> str:
    """The same in words, for the result."""
    if geometry.crop_pct is None:
        words = f"whole image at {spec.shown_size} ({geometry.interpolation}, antialiased, where its size differs)"
    else:
        height, width = covered(spec.size, geometry.crop_pct)
        to = f"shorter side to {height}" if spec.square else f"resized to cover {height}x{width}"
        words = f"{to} ({geometry.interpolation}, antialiased), centre crop {show_size(spec.size)}"
    return f"{words}; (pixels / 255 - {list(spec.mean)}) / {list(spec.std)}"
