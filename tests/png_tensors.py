"""PNG bytes of image tensors, for tests."""

import torch
from torch import Tensor

from clusterq_common.images import png
from clusterq_common.images.normalise import to_array
from clusterq_common.teacher.spec import InputSpec


def encode_png(pixels: Tensor) -> bytes:
    """One image (C, H, W) uint8, one or three channels, as PNG."""
    return png.encode(to_array(pixels))


def decode_png(data: bytes, spec: InputSpec) -> Tensor:
    """PNG bytes as (C, H, W) uint8."""
    return torch.from_numpy(png.decode(data, (spec.height, spec.width), spec.channels)).permute(2, 0, 1).contiguous()
