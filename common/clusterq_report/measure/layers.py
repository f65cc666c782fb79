"""Quantization errors layer by layer: of weights, of activations, and of outputs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.capture import Call, capture, submodules
from clusterq_common.quant.convert import activation_sites
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.modules import QuantConv2d, QuantLinear
from clusterq_common.quant.structure import quantizable_layers

# Approximate number of bins of a weight histogram; each grid point has as many bins as fit.
BINS = 96


@dataclass
class _Ratio:
    """Signal and noise power, summed over batches."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Tensor, other: Tensor) -> None:
        self.signal += float(reference.double().square().sum())
        self.noise += float((reference.double() - other.double()).square().sum())

    @property
    def decibel(self) -> float | None:
        """Signal-to-quantization-noise ratio, 10 log10(signal / noise); None without noise or signal."""
        return 10 * math.log10(self.signal / self.noise) if self.noise > 0 and self.signal > 0 else None


@dataclass
class _Site:
    """Statistics of one activation quantizer over the batches."""

    ratio: _Ratio
    low: float = math.inf
    high: float = -math.inf
    clipped: int = 0
    values: int = 0

    def add(self, quantizer: FakeQuantizer, x: Tensor, quantized: Tensor) -> None:
        low, high = grid_ends(quantizer)
        half = quantizer.scale.detach().abs() / 2
        self.ratio.add(x, quantized)
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self.clipped += int(((x < low - half) | (x > high + half)).sum())
        self.values += x.numel()


def quantized_layers(teacher: nn.Module, student: nn.Module, batches: Iterator[Tensor], example: Tensor) -> dict[str, Any]:
    """Return `outputs`, `activations` and `weights`, each a list in order of execution.

    `outputs`: SQNR in dB of a layer's output against the teacher's, including the errors of all layers before it.
    `activations`: for each quantizer, and for each layer that reads one that is not its own, the bits, the range of the grid, the
    observed range, the share beyond the grid, and the SQNR of rounding and clipping at this place alone.
    `weights`: for each layer its bits, the SQNR of rounding the student's own float weights (None where they lie on the grid), the
    SQNR of its integers against the teacher's weights, the share beyond the grid, and histograms over [low - 1, high + 1] in steps.

    Args:
        teacher: in eval mode; student: its copy by `convert`, calibrated.
        batches: normalised images.
        example: (1, C, H, W), any values.
    """
    order = quantizable_layers(teacher, example)
    outputs = {name: _Ratio() for name in order}
    sites: dict[str, _Site] = {}

    quantizers = activation_sites(student)

    def see(call: Call, output: Tensor) -> None:
        sites.setdefault(call.name, _Site(_Ratio())).add(quantizers[call.name], call.args[0].float(), output)

    expected: dict[str, list[Tensor]] = {name: [] for name in order}

    def keep(call: Call, output: Tensor) -> None:
        # Copied, because the next layer may work in place.
        expected[call.name].append(output.clone())

    def compare(call: Call, output: Tensor) -> None:
        outputs[call.name].add(expected[call.name].pop(0), output)

    with (
        capture(submodules(teacher, order), after=keep),
        capture(submodules(student, order), after=compare),
        capture(quantizers, after=see),
    ):
        for batch in batches:
            teacher(batch)
            student(batch)
    modules = dict(student.named_modules())
    # The quantizer that a layer's input comes from, where it is not its own: it describes both.
    shared = [(name, getattr(modules[name], "reads", "")) for name in order]
    rows = {name: _site(name, site, modules[name]) for name, site in sites.items()}
    return {
        "outputs": [{"layer": name, "sqnr": ratio.decibel} for name, ratio in outputs.items()],
        "activations": [*rows.values(), *({**rows[source], "site": name} for name, source in shared if source in rows)],
        "weights": [
            _weights(name, modules[name], teacher.get_submodule(name)) for name in order if _has_weights(modules[name])
        ],
    }


def grid_ends(quantizer: FakeQuantizer) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of a quantizer's grid, (1,) or (channels,)."""
    scale, zero = quantizer.scale.detach(), quantizer.zero_point
    return (quantizer.grid.low - zero) * scale, (quantizer.grid.high - zero) * scale


def _site(name: str, site: _Site, quantizer: nn.Module) -> dict[str, Any]:
    assert isinstance(quantizer, FakeQuantizer)
    low, high = grid_ends(quantizer)
    return {
        "site": name.removesuffix(".input_quantizer"),
        "bits": quantizer.bits,
        "low": float(low),
        "high": float(high),
        "seen_low": site.low,
        "seen_high": site.high,
        "clipped": site.clipped / max(1, site.values),
        "sqnr": site.ratio.decibel,
    }


def _has_weights(layer: nn.Module) -> bool:
    return isinstance(layer, QuantConv2d | QuantLinear) and layer.weight_quantizer is not None


def _weights(name: str, layer: nn.Module, original: nn.Module) -> dict[str, Any]:
    assert isinstance(layer, QuantConv2d | QuantLinear)
    assert isinstance(original, nn.Conv2d | nn.Linear)
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    grid, weight = quantizer.grid, layer.weight.detach()
    quantized = quantizer(weight).detach()
    own, to_teacher = _Ratio(), _Ratio()
    own.add(weight, quantized)
    to_teacher.add(original.weight, quantized)

    def steps(values: Tensor) -> Tensor:
        shape = [-1] + [1] * (values.dim() - 1)
        return values / quantizer.scale.detach().view(shape) + quantizer.zero_point.view(shape)

    mine = steps(weight)
    bins = (grid.high - grid.low + 2) * max(1, BINS // (grid.high - grid.low + 2))
    return {
        "layer": name,
        "bits": quantizer.bits,
        "low": grid.low,
        "high": grid.high,
        "zero": int(quantizer.zero_point.float().median()),
        "clipped": float(((mine < grid.low - 0.5) | (mine > grid.high + 0.5)).float().mean()),
        "sqnr": own.decibel,
        "sqnr_teacher": to_teacher.decibel,
        "student": _shares(mine, grid.low - 1, grid.high + 1, bins),
        "teacher": _shares(steps(original.weight.detach()), grid.low - 1, grid.high + 1, bins),
    }


def _shares(values: Tensor, low: float, high: float, bins: int) -> list[float]:
    """Return the shares of values by bin; values outside are counted in the outermost bins."""
    # A value on the edge of two bins belongs to the upper one, despite float32 rounding.
    place = ((values.double() - low) * (bins / (high - low)) + 1e-6).floor().long().clamp(0, bins - 1)
    counts: list[float] = (torch.bincount(place.flatten().cpu(), minlength=bins).double() / values.numel()).tolist()
    return counts
