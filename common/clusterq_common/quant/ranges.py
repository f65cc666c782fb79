"""Estimation of the range of real values that a grid covers.

Observers see activations batch by batch; weights are available all at once. Every estimator returns the same kind of
`(grid, low, high)`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.fake_quantize import PIECE, fake_quantize
from clusterq_common.quant.grid import Grid
from clusterq_common.run.seeding import stream

EMA_RATE = 0.1
SAMPLES_PER_BATCH = 1 << 15
SAMPLES_KEPT = 1 << 18
# Shares of the full range in the search for the least squared error.
SHARES = torch.linspace(0.02, 1.0, 99)


class Range(NamedTuple):
    """A grid and the range that it covers, float32, (1,) or (channels,)."""

    grid: Grid
    low: Tensor
    high: Tensor


class ActivationObserver:
    """Observer of one activation over the calibration batches.

    It stores each batch's minimum and maximum, and a random sample of its values, by the batch's number. So the result depends
    neither on which process saw a batch nor on the order.

    Attributes:
        batch: number of the next batch; set by the caller.
    """

    def __init__(self, seed: int = 0) -> None:
        self.batch = 0
        self._seed = seed
        self._ends: dict[int, Tensor] = {}
        self._samples: dict[int, Tensor] = {}

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add the activation of batch number `batch`, any shape and float dtype."""
        values = x.detach().float().flatten()
        ends = torch.stack(torch.aminmax(values)).cpu()
        if values.numel() > SAMPLES_PER_BATCH:
            random = stream(self._seed, "observer", self.batch)
            values = values[torch.randint(values.numel(), (SAMPLES_PER_BATCH,), generator=random).to(values.device)]
        if self.batch in self._ends:  # a layer that runs twice in a forward pass
            before = self._ends[self.batch]
            ends = torch.stack([torch.minimum(before[0], ends[0]), torch.maximum(before[1], ends[1])])
            values = torch.cat([self._samples[self.batch], values.cpu()])
        self._ends[self.batch], self._samples[self.batch] = ends, values.cpu()

    def merge(self, ranks: Ranks) -> None:
        """Add the data of other processes' observers of the same activation."""
        for ends, samples in ranks.gather((self._ends, self._samples)):
            self._ends |= ends
            self._samples |= samples

    def range(self, bits: int, config: QuantConfig) -> Range:
        """Return the range by `config.range`; `minmax` is a bias-corrected exponential mean over the batches, in their order.

        Raises:
            RuntimeError: no batch was seen.
        """
        if not self._ends:
            raise RuntimeError("no activation was observed: the calibration saw no batch, or the layer was not reached")
        # All values decide whether a sign is needed: a ReLU gives no negative ones, a rare tail may.
        ends = torch.stack([self._ends[number] for number in sorted(self._ends)])
        extremes = torch.stack([ends[:, 0].min(), ends[:, 1].max()])
        grid = Grid.choose(bits, config.quantizer, minimum=float(extremes[0]), always_signed=config.signed)
        if config.range == "minmax":
            low, high = _exponential_mean(ends)
            return Range(grid, low[None], high[None])
        return _estimate(torch.cat([self._sample(), extremes])[None], grid, config)

    def _sample(self) -> Tensor:
        values = torch.cat([self._samples[number] for number in sorted(self._samples)])
        if values.numel() > SAMPLES_KEPT:
            values = values[torch.randperm(values.numel(), generator=stream(self._seed, "sample"))[:SAMPLES_KEPT]]
        return values


def _exponential_mean(rows: Tensor) -> Tensor:
    """Return the exponential mean over rows, with the last one weighted most: (B, 2) -> (2,)."""
    mean, weight = torch.zeros_like(rows[0]), 0.0
    for row in rows:
        # Adam's bias correction: the running value starts at zero, and only the result is divided.
        mean = (1 - EMA_RATE) * mean + EMA_RATE * row
        weight = (1 - EMA_RATE) * weight + EMA_RATE
    return mean / weight


def weight_range(weight: Tensor, bits: int, config: QuantConfig) -> Range:
    """Return the range of a weight (out, ...), per output channel or per tensor as `config` says."""
    rows = weight.detach().float().reshape(weight.shape[0] if config.weight_granularity == "channel" else 1, -1)
    grid = Grid.choose(bits, config.quantizer, minimum=-1.0, always_signed=config.signed, narrow=config.narrow_weights)
    if config.range == "minmax":
        return Range(grid, rows.amin(1), rows.amax(1))
    return _estimate(rows, grid, config)


def _estimate(rows: Tensor, grid: Grid, config: QuantConfig) -> Range:
    if config.range == "percentile":
        return Range(grid, *_percentile(rows, config.percentile / 100))
    return Range(grid, *least_squares_range(rows, grid))


def _percentile(rows: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return, for each row, the values below and above which a part `1 - share` of the values lies."""
    ordered = rows.sort(1).values
    last = rows.shape[1] - 1
    return ordered[:, round(last * (1 - share))], ordered[:, round(last * share)]


def least_squares_range(rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return, for each row of `rows` (R, K), the range with the least squared quantization error: `(low, high)`, each (R,).

    Both ends shrink together first; on an asymmetric grid each end is then searched separately.
    """
    low, high = rows.amin(1), rows.amax(1)
    both = _best_share(rows, grid, low, high, shrink_low=True, shrink_high=True)
    low, high = low * both, high * both
    if grid.scheme == "asymmetric":
        high = high * _best_share(rows, grid, low, high, shrink_low=False, shrink_high=True)
        low = low * _best_share(rows, grid, low, high, shrink_low=True, shrink_high=False)
    return low, high


def _best_share(rows: Tensor, grid: Grid, low: Tensor, high: Tensor, *, shrink_low: bool, shrink_high: bool) -> Tensor:
    """Return the share of the range with the least squared error for each row (R,); the largest one where several are equal."""
    shares = SHARES.to(rows.device)[:, None]
    # Small tensors are tried with many shares at once, so that the time is not that of starting operations.
    together = max(1, PIECE // rows.numel())
    errors = torch.cat(
        [
            _squared_errors(rows, grid, low * part if shrink_low else low, high * part if shrink_high else high)
            for part in shares.split(together)
        ]
    )
    # The index counts from one: zero, where no error is a number, leaves the range as it is.
    order = torch.arange(1, len(shares) + 1, device=rows.device)[:, None]
    last = ((errors == errors.amin(0)) * order).amax(0)
    return torch.where(last > 0, shares[last - 1, 0], 1.0)


def _squared_errors(rows: Tensor, grid: Grid, low: Tensor, high: Tensor) -> Tensor:
    """Return the mean squared error of each row of `rows` (R, K) on each of several ranges: (S, R), from `low` and `high`, (S, R) or (R,)."""
    scale, zero_point = grid.parameters(*torch.broadcast_tensors(low, high))
    repeated = rows.expand(len(scale), *rows.shape).flatten(0, 1)
    snapped = fake_quantize(repeated, scale.flatten(), zero_point.flatten(), 0, grid)
    return snapped.sub_(repeated).square_().mean(1).view(scale.shape)
