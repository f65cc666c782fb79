"""Range estimation: which real values a grid should cover.

Observers see activations batch by batch; weights are at hand all at once. Every estimator ends in the same
`(grid, low, high)`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.grid import Grid

EMA_RATE = 0.1
SAMPLES_PER_BATCH = 1 << 15
SAMPLES_KEPT = 1 << 18
# Shares of the full range that the search for the least squared error tries.
SHARES = torch.linspace(0.02, 1.0, 99)


class Range(NamedTuple):
    """A grid and the values it should cover, float32, (1,) or (channels,)."""

    grid: Grid
    low: Tensor
    high: Tensor


class ActivationObserver:
    """Watches one activation over the calibration batches.

    Keeps a bias-corrected exponential mean of each batch's minimum and maximum, the extremes over all batches, and a
    random sample of values (at most 2^18) for the percentile and squared-error ranges.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._mean = torch.zeros(2)
        self._weight = 0.0
        self._extremes = torch.tensor([torch.inf, -torch.inf])
        self._samples: list[Tensor] = []

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in one batch, any shape and float dtype."""
        values = x.detach().float().flatten()
        ends = torch.stack(torch.aminmax(values)).cpu()
        # Adam's correction: the running value starts at zero and stays raw; only what is read is divided.
        self._mean = (1 - EMA_RATE) * self._mean + EMA_RATE * ends
        self._weight = (1 - EMA_RATE) * self._weight + EMA_RATE
        self._extremes = torch.stack([torch.minimum(self._extremes[0], ends[0]), torch.maximum(self._extremes[1], ends[1])])
        if values.numel() > SAMPLES_PER_BATCH:
            picked = torch.randint(values.numel(), (SAMPLES_PER_BATCH,), generator=self._random)
            values = values[picked.to(values.device)]
        self._samples.append(values.cpu())

    def range(self, bits: int, config: QuantConfig) -> Range:
        """The range by `config.range`.

        Raises:
            RuntimeError: no batch was seen.
        """
        if not self._samples:
            raise RuntimeError("no activation was observed: the calibration saw no batch, or the layer was not reached")
        # Whether a sign is needed is decided by every value seen; a ReLU never gives one, a rare tail does.
        grid = Grid.choose(bits, config.quantizer, minimum=float(self._extremes[0]), always_signed=config.signed)
        if config.range == "minmax":
            low, high = self._mean / self._weight
            return Range(grid, low[None], high[None])
        return _estimate(self._sample()[None], grid, config)

    def _sample(self) -> Tensor:
        values = torch.cat(self._samples)
        if values.numel() > SAMPLES_KEPT:
            values = values[torch.randperm(values.numel(), generator=self._random)[:SAMPLES_KEPT]]
        return torch.cat([values, self._extremes])


def weight_range(weight: Tensor, bits: int, config: QuantConfig) -> Range:
    """The range of a weight (out, ...), per output channel or per tensor as `config` says."""
    rows = weight.detach().float().reshape(weight.shape[0] if config.weight_granularity == "channel" else 1, -1)
    grid = Grid.choose(bits, config.quantizer, minimum=-1.0, always_signed=config.signed)
    if config.range == "minmax":
        return Range(grid, rows.amin(1), rows.amax(1))
    return _estimate(rows, grid, config)


def _estimate(rows: Tensor, grid: Grid, config: QuantConfig) -> Range:
    if config.range == "percentile":
        return Range(grid, *_percentile(rows, config.percentile / 100))
    return Range(grid, *least_squares_range(rows, grid))


def _percentile(rows: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Per row, the values below and above which a part `1 - share` of the values lies."""
    ordered = rows.sort(1).values
    last = rows.shape[1] - 1
    return ordered[:, round(last * (1 - share))], ordered[:, round(last * share)]


def least_squares_range(rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Per row of `rows` (R, K), the range with the least squared quantization error: `(low, high)`, each (R,).

    Both ends shrink together first; on an asymmetric grid each end is then searched by itself.
    """
    low, high = rows.amin(1), rows.amax(1)
    both = _best_share(rows, grid, low, high, shrink_low=True, shrink_high=True)
    low, high = low * both, high * both
    if grid.scheme == "asymmetric":
        high = high * _best_share(rows, grid, low, high, shrink_low=False, shrink_high=True)
        low = low * _best_share(rows, grid, low, high, shrink_low=True, shrink_high=False)
    return low, high


def _best_share(rows: Tensor, grid: Grid, low: Tensor, high: Tensor, *, shrink_low: bool, shrink_high: bool) -> Tensor:
    best_error = torch.full_like(low, torch.inf)
    best = torch.ones_like(low)
    for share in SHARES.tolist():
        scale, zero_point = grid.parameters(low * share if shrink_low else low, high * share if shrink_high else high)
        snapped = torch.fake_quantize_per_channel_affine(rows, scale, zero_point, 0, grid.low, grid.high)
        error = (snapped - rows).square().mean(1)
        better = error <= best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, share, best)
    return best
