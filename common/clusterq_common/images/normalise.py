"""Conversion between stored eight-bit images and normalised images for a teacher."""

from functools import lru_cache

import torch
from torch import Tensor

from clusterq_common.images.png import Array
from clusterq_common.teacher.spec import InputSpec


def normalise(pixels: Tensor, spec: InputSpec) -> Tensor:
    """Convert (N, C, H, W) uint8 to float32, `(pixels / 255 - mean) / std` per channel."""
    mean, std = _statistics(spec, pixels.device)
    return (pixels.float() / 255 - mean) / std


def to_pixels(images: Tensor, spec: InputSpec) -> Tensor:
    """Convert normalised (N, C, H, W) float32 to uint8, rounded to the nearest of 256 levels and clamped at both ends."""
    mean, std = _statistics(spec, images.device)
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def pixel_bounds(spec: InputSpec) -> tuple[Tensor, Tensor]:
    """Return the normalised values of pixel 0 and pixel 255, each (1, C, 1, 1) float32."""
    mean, std = _statistics(spec, torch.device("cpu"))
    return -mean / std, (1 - mean) / std


def to_array(pixels: Tensor) -> Array:
    """Convert a (C, H, W) uint8 tensor to an (H, W, C) array for `png.encode`."""
    return pixels.permute(1, 2, 0).contiguous().numpy()


def _statistics(spec: InputSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    return _on_device(tuple(spec.mean), tuple(spec.std), device)


# Cached for each device: a copy from the host waits for all work queued there, and a CUDA graph cannot record it.
@lru_cache(maxsize=16)
def _on_device(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # the cached tensors may later be used with gradients
        values = torch.tensor([mean, std], device=device).view(2, 1, -1, 1, 1)
    return values[0], values[1]
