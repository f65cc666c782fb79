"""A real image as its teacher wants it, as published accuracies were measured."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clusterq_common.png import MODES
from clusterq_common.teacher.spec import Geometry, InputSpec
from clusterq_finetune.data.pixels import PixelRange, eight_bits

# Pixels of a resized photograph. One of 1 x 20,000 pixels would have billions, its shorter side at 256.
LARGEST_RESIZED = 1 << 26
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(image: Image.Image, spec: InputSpec, geometry: Geometry, pixel_range: PixelRange | None = None) -> Tensor:
    """A decoded image as (C, S, S) uint8.

    With a crop share: the shorter side resized to ceil(S / share) (256 for 224 at 0.875), antialiased, then the centre cropped;
    what torchvision's Resize and CenterCrop do to a PIL image, pixel by pixel. Without: the whole image, resized where its size
    differs. Images of more than eight bits are scaled before that, by their depth or by `pixel_range`. EXIF's rotation is not
    applied and an alpha channel is dropped, as where torchvision's ImageFolder reads.

    Raises:
        ClusterqError: an image of 32 bits or floats without a range.
        ValueError: it is so long and narrow that resizing it would fill the memory.
    """
    target = (spec.size, spec.size)
    if geometry.crop_share is not None:
        target = resized(image.size, shorter_side(spec.size, geometry.crop_share))
        if target[0] * target[1] > LARGEST_RESIZED:
            raise ValueError(f"it is {image.size[0]}x{image.size[1]}, which is {target[0]}x{target[1]} after resizing")
    image = eight_bits(image, pixel_range, "an image").image.convert(MODES[spec.channels])
    resampling = RESAMPLING[geometry.interpolation]
    if geometry.crop_share is None:
        if image.size != target:
            image = image.resize(target, resampling)
    else:
        image = image.resize(target, resampling)
        # To the nearest, halves to the even number: where both sides cannot lose the same, torchvision chooses so.
        left, top = (round((side - spec.size) / 2) for side in image.size)
        image = image.crop((left, top, left + spec.size, top + spec.size))
    array = np.array(image).reshape(spec.size, spec.size, spec.channels)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def shorter_side(size: int, crop_share: float) -> int:
    """Of the resized image, in pixels. A share that divides the size evenly must not be one pixel more by rounding."""
    return math.ceil(size / crop_share - 1e-9)


def resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height with the shorter one at `shorter`; the longer one keeps the proportions, cut off to a whole number."""
    width, height = size
    return (shorter, shorter * height // width) if width <= height else (shorter * width // height, shorter)


def describe_preprocessing(spec: InputSpec, geometry: Geometry) -> str:
    """The same in words, for the result."""
    if geometry.crop_share is None:
        words = f"whole image at {spec.size}x{spec.size} ({geometry.interpolation}, antialiased, where its size differs)"
    else:
        shorter = shorter_side(spec.size, geometry.crop_share)
        words = f"shorter side to {shorter} ({geometry.interpolation}, antialiased), centre crop {spec.size}"
    return f"{words}; (pixels / 255 - {list(spec.mean)}) / {list(spec.std)}"
