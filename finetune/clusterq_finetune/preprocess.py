"""A real image as its teacher wants it, as published accuracies were measured."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clusterq_common.png import MODES
from clusterq_common.teacher.spec import InputSpec

# Up to this size images are used whole (CIFAR, digits); above, resized and centre-cropped (ImageNet).
LARGEST_WHOLE_IMAGE = 64
CROP_SHARE = 0.875


def preprocess(image: Image.Image, spec: InputSpec) -> Tensor:
    """A decoded image as (C, S, S) uint8.

    Up to 64 pixels: as it is, resized bilinearly where its size differs. Above: the shorter side resized to S / 0.875
    (256 for 224), bilinear with antialiasing, then the centre cropped.
    """
    image = image.convert(MODES[spec.channels])
    if spec.size <= LARGEST_WHOLE_IMAGE:
        if image.size != (spec.size, spec.size):
            image = image.resize((spec.size, spec.size), Image.Resampling.BILINEAR)
    else:
        shorter = round(spec.size / CROP_SHARE)
        scale = shorter / min(image.size)
        width, height = (max(shorter, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - spec.size) // 2, (height - spec.size) // 2
        image = image.crop((left, top, left + spec.size, top + spec.size))
    array = np.array(image).reshape(spec.size, spec.size, spec.channels)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def describe_preprocessing(spec: InputSpec) -> str:
    """The same in words, for the result."""
    if spec.size <= LARGEST_WHOLE_IMAGE:
        geometry = f"whole image at {spec.size}x{spec.size}"
    else:
        geometry = f"shorter side to {round(spec.size / CROP_SHARE)} (bilinear, antialiased), centre crop {spec.size}"
    return f"{geometry}; (pixels / 255 - {list(spec.mean)}) / {list(spec.std)}"
