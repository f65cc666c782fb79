"""Where bf16 is too coarse: statistics and losses."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is wider."""
    return x if x.dtype == torch.float64 else x.float()
