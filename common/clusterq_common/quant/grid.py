"""The integer grid: scale, zero-point and integer limits from bits and a range of real values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_common.quant.config import Scheme

# Lower bound of a scale. Values of a dead channel then quantize to zero, and 1 / scale does not overflow.
MIN_SCALE = 1e-9


@dataclass(frozen=True)
class Grid:
    """Integers `low..high` that represent a tensor.

    Symmetric signed, N bits: -2^(N-1) .. 2^(N-1)-1 (ClusterQ Eq. 3); symmetric unsigned and asymmetric: 0 .. 2^N-1. `narrow` leaves
    out a signed grid's lowest integer, so that each integer has its negative: -127..127 at 8 bits.
    """

    bits: int
    scheme: Scheme
    signed: bool
    narrow: bool = False

    @property
    def low(self) -> int:
        return int(self.narrow) - 2 ** (self.bits - 1) if self.signed else 0

    @property
    def high(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @classmethod
    def choose(cls, bits: int, scheme: Scheme, *, minimum: float, always_signed: bool = False, narrow: bool = False) -> "Grid":
        """Return the grid for values down to `minimum`. It is unsigned where no value is negative."""
        signed = scheme == "symmetric" and (always_signed or minimum < 0)
        return cls(bits, scheme, signed=signed, narrow=narrow and signed)

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale (float32) and zero-point (int32), both shaped like `low` and `high`, that cover `[low, high]`.

        Symmetric: S = 2a / (2^N - 1) with a = max(|low|, |high|) (Eq. 2), 2a / (2^N - 2) when narrow, or high / (2^N - 1) when
        unsigned; zero-point 0.
        Asymmetric: S = (high - low) / (2^N - 1) over a range widened to include zero, which is then exactly representable.
        """
        steps = self.high - self.low
        low, high = low.float(), high.float()
        if self.scheme == "asymmetric":
            low, high = low.clamp_max(0), high.clamp_min(0)
            scale = ((high - low) / steps).clamp_min(MIN_SCALE)
            return scale, (-low / scale).round().clamp(self.low, self.high).to(torch.int32)
        bound = torch.maximum(low.abs(), high.abs()) if self.signed else high
        scale = (bound * (2 if self.signed else 1) / steps).clamp_min(MIN_SCALE)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
