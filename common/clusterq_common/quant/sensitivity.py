"""Sensitivity of a classifier to the bits of each layer, measured on images without labels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterq_common.capture import Call, capture, submodules
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.fake_quantize import fake_quantize
from clusterq_common.quant.ranges import ActivationObserver, Range, weight_range

# Bit-widths that a layer may be given.
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


@dataclass
class LayerSensitivity:
    """Errors of a classifier's answers when only one layer is rounded.

    Attributes:
        name: the layer.
        weights: number of its weights.
        inputs: number of values of its input, for one image.
        weight_kl: bits of its weights -> mean KL(float || rounded) of the class probabilities, in nats; only widths that were measured.
        input_kl: likewise for bits of its input; empty for the image, which keeps 8 bits.
    """

    name: str
    weights: int
    inputs: int
    weight_kl: dict[int, float] = field(default_factory=dict)
    input_kl: dict[int, float] = field(default_factory=dict)


@torch.no_grad()
def measure_sensitivity(
    model: nn.Module,
    layers: Sequence[str],
    batches: Sequence[Tensor],
    config: QuantConfig,
    *,
    weights: bool = True,
    inputs: bool = False,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> list[LayerSensitivity]:
    """Measure, for each layer and bit-width, the KL divergence of the answers when only that tensor is rounded.

    All other layers stay in float, as in HAWQ-V2 and NNCF: errors of single layers are then added up. Rounding is that of
    `convert` before any training, with ranges by `config`.

    Args:
        model: a float classifier in eval mode; unchanged afterwards.
        layers: names of its quantizable layers, in order of execution; the first one's input is the image.
        batches: images as the network takes them, (N, C, H, W) float32 on the model's device.
        config: conventions of the grids and ranges; its bits do not count.
        weights: whether to measure the weights.
        inputs: whether to measure the inputs of all layers but the first.
        seed: seed of the random samples that ranges are found on.
        advance: called with the number of finished forward passes over the batches.

    Raises:
        ClusterqError: an activation is not finite.
    """
    expected, observers, counts = _observe(model, layers, batches, seed)
    result = []
    for position, name in enumerate(layers):
        layer = model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        sensitivity = LayerSensitivity(name, layer.weight.numel(), counts[name])
        if weights:
            for bits in WIDTHS:
                with _rounded_weight(layer, weight_range(layer.weight, bits, config)):
                    sensitivity.weight_kl[bits] = _mean_kl(model, batches, expected)
                _tell(advance)
        if inputs and position > 0:
            for bits in WIDTHS:
                with _rounded_input(layer, observers[name].range(bits, config)):
                    sensitivity.input_kl[bits] = _mean_kl(model, batches, expected)
                _tell(advance)
        result.append(sensitivity)
    return result


def passes(layers: int, *, weights: bool, inputs: bool) -> int:
    """Return the number of times that `measure_sensitivity` calls `advance`.

    Examples:
        >>> passes(3, weights=True, inputs=True)
        35
    """
    return len(WIDTHS) * (weights * layers + inputs * (layers - 1))


def _observe(
    model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor], seed: int
) -> tuple[list[Tensor], dict[str, ActivationObserver], dict[str, int]]:
    """Run the float model once; return its log-probabilities, and each layer's observed input and number of input values an image."""
    observers = {name: ActivationObserver(seed + number) for number, name in enumerate(layers)}
    counts: dict[str, int] = {}

    def observe(call: Call) -> None:
        observers[call.name].update(call.args[0])
        counts[call.name] = call.args[0][0].numel()

    with capture(submodules(model, list(layers)), before=observe):
        expected = []
        for number, batch in enumerate(batches):
            for observer in observers.values():
                observer.batch = number
            expected.append(F.log_softmax(model(batch).double(), dim=1))
    return expected, observers, counts


def _mean_kl(model: nn.Module, batches: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    total = sum(
        float(F.kl_div(F.log_softmax(model(batch).double(), dim=1), wanted, reduction="sum", log_target=True))
        for batch, wanted in zip(batches, expected, strict=True)
    )
    return total / sum(map(len, batches))


@contextmanager
def _rounded_weight(layer: nn.Module, chosen_range: Range) -> Iterator[None]:
    """Round a layer's weight within the block."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    kept = weight.data
    scale, zero_point = chosen_range.grid.parameters(chosen_range.low, chosen_range.high)
    axis = 0 if scale.numel() > 1 else None
    weight.data = fake_quantize(kept.float(), scale, zero_point, axis, chosen_range.grid).to(kept.dtype)
    try:
        yield
    finally:
        weight.data = kept


@contextmanager
def _rounded_input(layer: nn.Module, chosen_range: Range) -> Iterator[None]:
    """Round a layer's input within the block."""
    device = next(layer.parameters()).device
    scale, zero_point = chosen_range.grid.parameters(chosen_range.low.to(device), chosen_range.high.to(device))

    def rounded(call: Call) -> tuple[Tensor, ...]:
        x, *others = call.args
        return (fake_quantize(x.float(), scale, zero_point, None, chosen_range.grid).to(x.dtype), *others)

    with capture({"layer": layer}, before=rounded):
        yield


def _tell(advance: Callable[[int], None] | None) -> None:
    if advance is not None:
        advance(1)
