"""Learned weight rounding: up or down for each weight, instead of to the nearest grid point."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clusterq_common.quant.fake_quantize import broadcast_shape
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.grid import MIN_SCALE
from clusterq_common.quant.modules import QuantConv2d, QuantLinear

# Zeta and gamma of AdaRound. The sigmoid is stretched beyond 0 and 1, so that both are reached at a finite V.
STRETCH_HIGH, STRETCH_LOW = 1.1, -0.1


class LearnedRounding(nn.Module):
    """Replacement of a weight's quantizer while its rounding is learned (AdaRound, Nagel et al., 2020, Eq. 21-24).

    `w = s (clip(floor(w0 / s0) + zero_point + h(V), low, high) - zero_point)` with `h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)`. At the
    start h is the fraction that the floor removed, so `w` is the float weight where that lies inside the grid. The floor is
    computed once, so that the step s may be learned without changing an integer (Genie, Jeon et al., 2023, section 4.2). The step
    is stored as `s = s0 exp(log_growth)`, so that one learning rate serves channels of any size, including dead ones.

    Attributes:
        variable: V, float32, shape of the weight.
        log_growth: float32, shape of the quantizer's scale; zeros.
    """

    def __init__(self, weight: Tensor, quantizer: FakeQuantizer) -> None:
        super().__init__()
        shape = broadcast_shape(weight, quantizer.axis)
        self.low, self.high, self.shape = quantizer.grid.low, quantizer.grid.high, shape
        self.first_step = quantizer.scale.detach().clamp_min(MIN_SCALE)
        self.zero_point = quantizer.zero_point.view(shape)
        scaled = weight.detach().float() / self.first_step.view(shape)
        self.floor = scaled.floor()
        fraction = scaled - self.floor
        # The inverse of h.
        self.variable = nn.Parameter(torch.logit((fraction - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)))
        self.log_growth = nn.Parameter(torch.zeros_like(self.first_step))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the softly rounded weight, float32; the argument `weight` is ignored."""
        return self._on_grid(self.up())

    def up(self) -> Tensor:
        """Return h(V) in [0, 1], shape of the weight: the degree to which each weight is rounded up."""
        return (self.variable.sigmoid() * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)

    def regulariser(self, beta: float | Tensor) -> Tensor:
        """Return `sum 1 - |2 h - 1|^beta` (Eq. 24), a scalar: zero once every h is 0 or 1. Large betas spare middle values."""
        return (1 - (2 * self.up() - 1).abs().pow(beta)).sum()

    def step(self) -> Tensor:
        """Return the learned step s, float32, shape of the quantizer's scale."""
        return (self.first_step * self.log_growth.exp()).clamp_min(MIN_SCALE)

    @torch.no_grad()
    def hard(self) -> Tensor:
        """Return the weight with every h rounded to 0 or 1: float32, exactly on the grid of step `step()`."""
        return self._on_grid((self.up() >= 0.5).float())

    def _on_grid(self, up: Tensor) -> Tensor:
        integers = (self.floor + self.zero_point + up).clamp(self.low, self.high)
        return (integers - self.zero_point) * self.step().view(self.shape)


@contextmanager
def learned_rounding(layers: Mapping[str, QuantConv2d | QuantLinear]) -> Iterator[dict[str, LearnedRounding]]:
    """Let each layer round by a `LearnedRounding` within the block. Afterwards it has its own quantizer again.

    Leaving without an error fixes the rounding. The weights are then the chosen grid points, the scales are the learned steps, and
    the quantizer's `forward` and `to_int` give exactly those points and integers.

    Args:
        layers: layers by name; each has a calibrated weight quantizer.
    """
    quantizers = {name: layer.weight_quantizer for name, layer in layers.items()}
    roundings: dict[str, LearnedRounding] = {}
    try:
        for name, layer in layers.items():
            quantizer = quantizers[name]
            assert quantizer is not None
            roundings[name] = LearnedRounding(layer.weight, quantizer)
            layer.register_module("weight_quantizer", roundings[name])
        yield roundings
        for name, layer in layers.items():
            quantizer = quantizers[name]
            assert quantizer is not None
            with torch.no_grad():
                layer.weight.copy_(roundings[name].hard())
                quantizer.scale.copy_(roundings[name].step())
    finally:
        for name, layer in layers.items():
            layer.register_module("weight_quantizer", quantizers[name])
