"""BatchNorm taps: the inputs of all BatchNorm layers, as differentiable per-sample moments.

The hooks exist only inside the `with` block. Each layer's input is read once (sum and sum of squares per sample and channel).
Whole-batch and class-wise statistics are reductions of those small (N, C) tables. So class-wise statistics cost almost
nothing, for any number of classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clusterq_common.capture import Call, capture
from clusterq_common.device.reduce import mean_across, sum_across
from clusterq_common.device.setup import at_least_float32

# Values of one tensor that stay in a core's second cache while several operations read them.
CACHED_VALUES = 2**16


@dataclass(frozen=True)
class Statistics:
    """Biased mean and variance per channel over N, H, W; float32, (C,)."""

    mean: Tensor
    var: Tensor

    @classmethod
    def of_moments(cls, first: Tensor, second: Tensor) -> "Statistics":
        """Return the statistics with these first and second moments, of any dtype; where the moments are shifted, so is the mean."""
        return cls(first, (second - first.square()).clamp_min(0))


@dataclass(frozen=True)
class StoredStatistics(Statistics):
    """Running statistics of a BatchNorm layer; `eps` is the layer's own, repeated for each channel, (C,)."""

    eps: Tensor

    @property
    def std(self) -> Tensor:
        """Divisor of the layer, sqrt(running var + eps), (C,); above 0 also in dead channels."""
        return torch.sqrt(self.var + self.eps)

    @classmethod
    def joined(cls, layers: Sequence["StoredStatistics"]) -> "StoredStatistics":
        """Concatenate several layers along the channels, as `Moments.joined` does."""
        mean, var, eps = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("mean", "var", "eps"))
        return cls(mean, var, eps)


@dataclass(frozen=True)
class ClassStatistics:
    """Statistics of each class present in a batch; float32, (K, C), and the number of samples behind each row, (K,).

    A row whose count is zero holds zeros and must not be used.
    """

    mean: Tensor
    var: Tensor
    count: Tensor


@dataclass(frozen=True)
class ClassGroups:
    """The samples of a batch by class.

    `classes` (K,) int64 are the distinct labels; `row` (N,) int64 is each sample's index among them.
    """

    classes: Tensor
    row: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> "ClassGroups":
        """Group a batch by its labels, (N,) int64."""
        classes, row = torch.unique(labels, return_inverse=True)
        return cls(classes, row)


@dataclass(frozen=True)
class Moments:
    """First and second moment per sample of `x - shift`, over the positions of one BatchNorm input.

    Attributes:
        name: the layer's name in the model.
        first: (N, C) float32, mean over positions.
        second: (N, C) float32, mean square over positions.
        shift: (C,) float32; subtracting a typical value first keeps the variance exact where |mean| >> std.
    """

    name: str
    first: Tensor
    second: Tensor
    shift: Tensor

    @classmethod
    def joined(cls, moments: Sequence["Moments"]) -> "Moments":
        """Concatenate several layers along the channels, so that one reduction serves all."""
        return cls(
            ",".join(layer.name for layer in moments),
            torch.cat([layer.first for layer in moments], dim=1),
            torch.cat([layer.second for layer in moments], dim=1),
            torch.cat([layer.shift for layer in moments]),
        )

    def batch(self) -> Statistics:
        """Return the statistics over the whole batch, of all processes."""
        return self._statistics(mean_across(torch.stack([self.first.mean(0), self.second.mean(0)])))

    def own(self) -> Statistics:
        """Return the statistics over this process's images alone, where each process has batches of its own."""
        return self._statistics(torch.stack([self.first.mean(0), self.second.mean(0)]))

    def by_sample(self) -> Statistics:
        """Return the statistics of each sample over its positions, (N, C) both."""
        return self._statistics((self.first, self.second))

    def _statistics(self, moments: Tensor | tuple[Tensor, Tensor]) -> Statistics:
        first, second = moments
        return Statistics(first + self.shift, Statistics.of_moments(first, second).var)

    def by_class(self, groups: ClassGroups, keep: Tensor | None = None) -> ClassStatistics:
        """Return the statistics of each class present, over the samples for which `keep` ((N,) bool) holds; all when None.

        `groups.classes` is the same in every process; `groups.row` and `keep` belong to a process's own samples.
        """
        weight = torch.ones_like(groups.row, dtype=self.first.dtype) if keep is None else keep.to(self.first.dtype)
        rows = groups.classes.numel()
        count = sum_across(weight.new_zeros(rows).index_add(0, groups.row, weight))
        share = (weight / count.clamp_min(1)[groups.row])[:, None]
        own = torch.cat([self.first * share, self.second * share], dim=1)
        summed = sum_across(own.new_zeros(rows, own.shape[1]).index_add(0, groups.row, own))
        first, second = summed.chunk(2, dim=1)
        present = (count > 0)[:, None]
        mean = torch.where(present, first + self.shift, 0.0)
        return ClassStatistics(mean, Statistics.of_moments(first, second).var, count)


class BatchNormTaps:
    """Moments at the BatchNorm layers in the model's latest forward pass, in the order of execution."""

    def __init__(self) -> None:
        self.moments: list[Moments] = []

    def __iter__(self) -> Iterator[Moments]:
        return iter(self.moments)


@contextmanager
def batchnorm_taps(model: nn.Module) -> Iterator[BatchNormTaps]:
    """Record the moments at every BatchNorm layer of `model` within the block. The hooks are removed after it, also after an error.

    A new forward pass of `model` replaces the moments of the previous one. A layer called twice in one pass appears twice. A copy
    of the model made inside the block is not recorded.

    Returns:
        The layers in the order in which they ran. Each has a `name`; `batch()`, `by_sample()` and `by_class(groups)` give `mean` and `var` of each
            channel, over the batch, over each sample, or over each class, with `count`; all with gradient to the images.

    Raises:
        ValueError: the model has no BatchNorm layer.

    Examples:
        >>> import torch
        >>> import clusterq as cq
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)).eval()
        >>> groups = cq.ClassGroups.of(torch.tensor([7, 3, 7]))
        >>> with cq.batchnorm_taps(net) as taps:
        ...     _ = net(torch.randn(3, 1, 8, 8))
        ...     [(layer.name, layer.by_class(groups).mean.shape) for layer in taps]
        [('1', torch.Size([2, 4]))]
    """
    layers = batchnorm_layers(model)
    if not layers:
        raise ValueError("the model has no BatchNorm layer to tap")
    taps = BatchNormTaps()

    def begin(_: Call) -> None:
        taps.moments.clear()

    def tap(call: Call) -> None:
        taps.moments.append(_moments_of(call.name, layers[call.name], call.args[0]))

    with capture({"": model}, before=begin), capture(layers, before=tap):
        yield taps


def batchnorm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, by name, in module order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def negative_variance(model: nn.Module) -> tuple[str, float] | None:
    """Return the first BatchNorm layer that keeps a negative running variance, which no data have, and the smallest value in it."""
    for name, layer in batchnorm_layers(model).items():
        if layer.running_var is not None and layer.running_var.numel() and (least := float(layer.running_var.min())) < 0:
            return name, least
    return None


def stored_statistics(model: nn.Module) -> dict[str, StoredStatistics]:
    """Return the running statistics of each BatchNorm layer, float32."""
    statistics = {}
    for name, layer in batchnorm_layers(model).items():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, var = at_least_float32(layer.running_mean), at_least_float32(layer.running_var)
        statistics[name] = StoredStatistics(mean, var, torch.full_like(var, layer.eps))
    return statistics


def _moments_of(name: str, layer: _BatchNorm, x: Tensor) -> Moments:
    assert layer.running_mean is not None
    shift = at_least_float32(layer.running_mean.detach())
    # Squares of bf16 values have about three digits, so autocast is off before squaring.
    with torch.autocast(x.device.type, enabled=False):
        if x.dim() == 2:
            centred = at_least_float32(x) - shift
            return Moments(name, centred, centred.square(), shift)
        first, second = _ShiftedMoments.apply(x, shift)
    return Moments(name, first, second, shift)


def _samples_at_once(x: Tensor) -> int:
    """Return how many samples of x (N, C, ...) to handle at once: as many as a CPU's caches hold; elsewhere all."""
    # A compiler fuses the operations itself.
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return max(len(x), 1)
    return max(CACHED_VALUES * torch.get_num_threads() // max(x[0].numel(), 1), 1)


class _ShiftedMoments(torch.autograd.Function):
    """Autograd function for mean and mean square over positions of `x - shift`; x (N, C, ...), results (N, C).

    It is written by hand because autograd would keep and read several full-size intermediates for each layer. This one keeps only
    the layer's input, which BatchNorm keeps anyway, and on a CPU its intermediates stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, shift)
        positions = tuple(range(2, x.dim()))
        means, squares = [], []
        for part in x.split(_samples_at_once(x)):
            centred = part - shift.view(1, -1, *[1] * len(positions))  # in shift's type, where x is narrower
            means.append(centred.mean(positions))
            # torch's own norms and variances over positions take several times as long on a CPU.
            squares.append(centred.square_().mean(positions))
        return torch.cat(means), torch.cat(squares)

    @staticmethod
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> tuple[Tensor, None]:
        x, shift = ctx.saved_tensors
        slope = grad_second * (2 / x[0, 0].numel())
        constant = grad_first / x[0, 0].numel() - slope * shift
        gradient, count = torch.empty_like(x), _samples_at_once(x)
        for out, part, *rows in zip(*(tensor.split(count) for tensor in (gradient, x, constant, slope)), strict=True):
            begin, growth = (row.view(*row.shape, *[1] * (x.dim() - 2)) for row in rows)
            out.copy_(torch.addcmul(begin, part, growth))
        return gradient, None
