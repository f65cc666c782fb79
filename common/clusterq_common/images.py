"""Pixels and tensors: eight-bit images as they are stored, normalised images as a teacher sees them."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.teacher.spec import InputSpec

MODES = {1: "L", 3: "RGB"}
# A fixed level: another one would give other bytes for the same pixels.
PNG_LEVEL = 6


def normalise(pixels: Tensor, spec: InputSpec) -> Tensor:
    """(N, C, H, W) uint8 -> float32, `(pixels / 255 - mean) / std` per channel."""
    mean, std = _statistics(spec, pixels.device)
    return (pixels.float() / 255 - mean) / std


def to_pixels(images: Tensor, spec: InputSpec) -> Tensor:
    """Normalised (N, C, H, W) float32 -> uint8: rounded to the nearest of 256 levels, cut off at both ends."""
    mean, std = _statistics(spec, images.device)
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def clipped_fraction(images: Tensor, spec: InputSpec) -> float:
    """Share of values that lie more than half a level outside what a pixel can hold."""
    mean, std = _statistics(spec, images.device)
    levels = (images.float() * std + mean) * 255
    return float(((levels < -0.5) | (levels > 255.5)).float().mean())


def pixel_bounds(spec: InputSpec) -> tuple[Tensor, Tensor]:
    """The normalised values of pixel 0 and pixel 255, each (1, C, 1, 1) float32."""
    mean, std = _statistics(spec, torch.device("cpu"))
    return -mean / std, (1 - mean) / std


def encode_png(pixels: Tensor) -> bytes:
    """One image (C, H, W) uint8, one or three channels, as PNG: the same bytes each time."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def decode_png(data: bytes, spec: InputSpec) -> Tensor:
    """PNG bytes as (C, S, S) uint8.

    The header is compared with `spec` before anything is decompressed, so that a small file cannot ask for a huge image.

    Raises:
        ClusterqError: no PNG, another size or mode than `spec` says, or broken data.
    """
    expected = f"expected a {MODES.get(spec.channels, '?')} PNG of {spec.size}x{spec.size}; write the shards again"
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.size != (spec.size, spec.size) or image.mode != MODES.get(spec.channels):
            raise ClusterqError(f"an image is {image.mode} {image.size[0]}x{image.size[1]}, {expected}.")
        array = np.array(image)
    except ClusterqError:
        raise
    except Exception as error:  # a decoder may raise anything on bytes made to confuse it
        raise ClusterqError(f"an image cannot be decoded ({type(error).__name__}: {error}), {expected}.") from error
    return torch.from_numpy(array.reshape(spec.size, spec.size, spec.channels)).permute(2, 0, 1).contiguous()


def _statistics(spec: InputSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([spec.mean, spec.std], device=device).view(2, 1, -1, 1, 1)
    return mean, std
