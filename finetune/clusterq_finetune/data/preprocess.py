"""Preprocessing of a real image for the teacher, as published accuracies were measured."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clusterq_common.png import MODES
from clusterq_common.teacher.spec import Geometry, InputSpec

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(image: Image.Image, spec: InputSpec, geometry: Geometry) -> Tensor:
    """Convert a decoded image to (C, S, S) uint8.

    With a crop share, the shorter side is resized to ceil(S / share) (256 for 224 at 0.875), antialiased, and then the centre is
    cropped. This equals torchvision's Resize and CenterCrop on a PIL image, pixel by pixel. Without a crop share, the whole image
    is used, resized where its size differs.
    """
    image = image.convert(MODES[spec.channels])
    resampling = RESAMPLING[geometry.interpolation]
    if geometry.crop_share is None:
        if image.size != (spec.size, spec.size):
            image = image.resize((spec.size, spec.size), resampling)
    else:
        image = image.resize(resized(image.size, shorter_side(spec.size, geometry.crop_share)), resampling)
        # Rounded to the nearest, halves to even, as torchvision does where both sides cannot be cropped equally.
        left, top = (round((side - spec.size) / 2) for side in image.size)
        image = image.crop((left, top, left + spec.size, top + spec.size))
    array = np.array(image).reshape(spec.size, spec.size, spec.channels)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def shorter_side(size: int, crop_share: float) -> int:
    """Return the shorter side of the resized image, in pixels.

    A share that divides the size evenly must not give one pixel more by rounding.
    """
    return math.ceil(size / crop_share - 1e-9)


def resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return width and height for a shorter side of `shorter`; the longer one keeps the proportions, rounded down."""
    width, height = size
    return (shorter, shorter * height // width) if width <= height else (shorter * width // height, shorter)


def describe_preprocessing(spec: InputSpec, geometry: Geometry) -> str:
    """Return the preprocessing in words, for the result."""
    if geometry.crop_share is None:
        words = f"whole image at {spec.size}x{spec.size} ({geometry.interpolation}, antialiased, where its size differs)"
    else:
        shorter = shorter_side(spec.size, geometry.crop_share)
        words = f"shorter side to {shorter} ({geometry.interpolation}, antialiased), centre crop {spec.size}"
    return f"{words}; (pixels / 255 - {list(spec.mean)}) / {list(spec.std)}"
