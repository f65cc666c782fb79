"""Fake-quantizer module: real values rounded to an integer grid, with a clipped straight-through gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clusterq_common.device.setup import at_least_float32
from clusterq_common.quant.config import Scheme
from clusterq_common.quant.fake_quantize import broadcast_shape, fake_quantize
from clusterq_common.quant.grid import MIN_SCALE, Grid


class Quantized(NamedTuple):
    """Integers (int32, shape of the input) with scale (float32) and zero-point (int32), (1,) or (channels,).

    The real value is `(integers - zero_point) * scale`.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None

    def dequantize(self) -> Tensor:
        """Return the real values, float32."""
        shape = broadcast_shape(self.integers, self.axis)
        return (self.integers - self.zero_point.view(shape)).float() * self.scale.view(shape)


class FakeQuantizer(nn.Module):
    """Quantizer that rounds a tensor to its grid, once a range has been set.

    It works per tensor, or per channel of dimension 0 (weights). The range is stored in buffers (`scale`, `zero_point`, `limits`),
    so that it is saved and loaded with the model. With `learned`, `scale` is a parameter that is trained as in LSQ (Esser et al.,
    2020). Computation is at least in float32, because bf16 cannot represent the products.
    """

    scale: Tensor
    zero_point: Tensor
    limits: Tensor

    def __init__(self, grid: Grid, *, channels: int | None = None, learned: bool = False) -> None:
        super().__init__()
        self.bits = grid.bits
        self.scheme: Scheme = grid.scheme
        self.axis = None if channels is None else 0
        size = channels or 1
        scale = torch.ones(size)
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(size, dtype=torch.int32))
        # Integer limits of the grid; [0, 0] until a range is set. Copied as Python numbers, which kernels need.
        self.register_buffer("limits", torch.zeros(2, dtype=torch.int32))
        self._grid: Grid | None = None
        # While set, it is called with the values, which pass unchanged (calibration).
        self.observer: Callable[[Tensor], None] | None = None
        # Whether quantized values are recomputed for the gradient instead of kept: less memory, more time.
        self.recompute = False

    @property
    def grid(self) -> Grid:
        """Current grid.

        Raises:
            RuntimeError: no range has been set yet.
        """
        if self._grid is None:
            raise RuntimeError("this quantizer has no range yet: calibrate the student, or load a calibrated one")
        return self._grid

    @property
    def calibrated(self) -> bool:
        return self._grid is not None

    @torch.no_grad()
    def set_range(self, grid: Grid, low: Tensor, high: Tensor) -> None:
        """Set the grid and its range `[low, high]`, each (1,) or (channels,)."""
        scale, zero_point = grid.parameters(low.to(self.scale.device), high.to(self.scale.device))
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.limits.copy_(torch.tensor([grid.low, grid.high], dtype=torch.int32))
        self._grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Return fake-quantized `x`, float32; equals `to_int(x).dequantize()` exactly."""
        if self.observer is not None:
            self.observer(x)
            return x
        grid = self.grid
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            return fake_quantize(x, self.step(), self.zero_point, self.axis, grid, recompute=self.recompute)

    def step(self) -> Tensor:
        """Return the scale in use, float32, (1,) or (channels,), with a lower bound, because a step of training may pass zero.

        A scale below the bound still learns: gradients that would raise it pass.
        """
        bounded: Tensor = _LowerBound.apply(self.scale, MIN_SCALE)
        return bounded

    @torch.no_grad()
    def settle(self) -> int:
        """Set scales below the lower bound to it, as `forward` uses them, and return how many there were."""
        below = self.scale < MIN_SCALE
        self.scale.clamp_(min=MIN_SCALE)
        return int(below.sum())

    @torch.no_grad()
    def to_int(self, x: Tensor) -> Quantized:
        """Return the integers of `forward`, by the same float32 arithmetic (multiply by 1 / scale, round half to even)."""
        grid = self.grid
        scale = self.step().detach()
        shape = broadcast_shape(x, self.axis)
        rounded = torch.round(x.float() * (1.0 / scale).view(shape)) + self.zero_point.view(shape)
        return Quantized(rounded.clamp(grid.low, grid.high).to(torch.int32), scale, self.zero_point, self.axis)

    def extra_repr(self) -> str:
        granularity = "per tensor" if self.axis is None else f"per channel ({self.scale.numel()})"
        learned = ", learned scale" if isinstance(self.scale, nn.Parameter) else ""
        limits = f"{self._grid.low}..{self._grid.high}" if self._grid else "no range yet"
        return f"{self.bits} bits {self.scheme}, {granularity}{learned}, {limits}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        low, high = (int(limit) for limit in self.limits)
        self._grid = Grid(self.bits, self.scheme, signed=low < 0, narrow=low == -high) if high > low else None


class _LowerBound(torch.autograd.Function):
    """`x.clamp_min(bound)` whose gradient also passes below the bound where descent would raise `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None
