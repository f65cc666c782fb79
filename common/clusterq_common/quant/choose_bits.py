"""Choice of each layer's bits from measured sensitivities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.quant.allocation import allocate
from clusterq_common.quant.bits import FLOAT, Bits
from clusterq_common.quant.choice_config import BitChoice
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.layer_bits import bits_of, matches
from clusterq_common.quant.sensitivity import LayerSensitivity
from clusterq_common.setting_names import setting_name

FLOAT_BYTES = 4
# A scale and a zero-point.
RANGE_BYTES = 8


@dataclass(frozen=True)
class LayerChoice:
    """Bits of one layer, and why.

    Attributes:
        name: the layer.
        weights: number of weights.
        inputs: number of values of its input, for one image.
        weight_bits: bits of the weights.
        input_bits: bits of the input.
        fixed: whether the bits were given, by a pattern or as those of the first and last layer.
        weight_kl: measured KL divergence by bits of the weights; empty where it was not measured.
        input_kl: likewise for the input.
    """

    name: str
    weights: int
    inputs: int
    weight_bits: int
    input_bits: int
    fixed: bool
    weight_kl: dict[int, float]
    input_kl: dict[int, float]

    @property
    def entry(self) -> str:
        """The choice as an entry of `layer_bits`."""
        return f"{self.name}={Bits(self.weight_bits, self.input_bits)}"


def starting_point(config: QuantConfig, measured: Sequence[LayerSensitivity]) -> list[LayerChoice]:
    """Return the layers with the bits that `config` gives them, before any choice."""
    last = len(measured) - 1
    layers = []
    for position, one in enumerate(measured):
        bits = bits_of(one.name, config, end=position in (0, last))
        given = any(matches(one.name, pattern) for pattern, _ in config.layer_rules)
        fixed = given or (config.first_last_bits is not None and position in (0, last))
        layers.append(
            LayerChoice(one.name, one.weights, one.inputs, bits.weights, bits.activations, fixed, one.weight_kl, one.input_kl)
        )
    return layers


def choose_weight_bits(layers: Sequence[LayerChoice], average: float, setting: str) -> list[LayerChoice]:
    """Choose the weights' bits for the least sum of measured divergences, with a mean over all weights of at most `average`.

    Layers whose bits are fixed keep them and count; layers left in float do not count.

    Raises:
        ClusterqError: the fixed layers leave too few bits for the others; `setting` is named.
    """
    counted = [layer for layer in layers if layer.weight_bits != FLOAT]
    sizes = [layer.weights for layer in counted]
    options = [{layer.weight_bits: 0.0} if layer.fixed else layer.weight_kl for layer in counted]
    allocation = allocate(sizes, options, int(average * sum(sizes)))
    if allocation is None:
        least = sum(size * min(choices) for size, choices in zip(sizes, options, strict=True)) / sum(sizes)
        raise ClusterqError(
            f"weights cannot have {average:.2f} bits on average, because layers with given bits leave at least {least:.2f}; give a larger "
            f"value, or fewer layers in {setting_name('layer_bits')} and {setting_name('first_last_bits')}.",
            setting=setting,
        )
    chosen = dict(zip((layer.name for layer in counted), allocation, strict=True))
    return [replace(layer, weight_bits=chosen.get(layer.name, layer.weight_bits)) for layer in layers]


def choose_input_bits(layers: Sequence[LayerChoice], average: float) -> list[LayerChoice]:
    """Choose the inputs' bits for the least sum of measured divergences, with a mean over all input values of at most `average`.

    The first layer's input is the image: it keeps 8 bits and does not count. Nor do inputs left in float.

    Raises:
        ClusterqError: the fixed layers leave too few bits for the others.
    """
    counted = [layer for layer in layers[1:] if layer.input_bits != FLOAT]
    sizes = [layer.inputs for layer in counted]
    options = [{layer.input_bits: 0.0} if layer.fixed else layer.input_kl for layer in counted]
    allocation = allocate(sizes, options, int(average * sum(sizes)))
    if allocation is None:
        raise ClusterqError(
            f"layers with given bits leave too few for a mean of {average:g}; give a larger value, or fewer layers in "
            f"{setting_name('layer_bits')} and {setting_name('first_last_bits')}.",
            setting="average_input_bits",
        )
    chosen = dict(zip((layer.name for layer in counted), allocation, strict=True))
    return [replace(layer, input_bits=chosen.get(layer.name, layer.input_bits)) for layer in layers]


def with_choice(config: QuantConfig, layers: Sequence[LayerChoice]) -> QuantConfig:
    """Return `config` with the layers' bits in front of its own patterns, which still win."""
    entries = tuple(layer.entry for layer in layers if not layer.fixed)
    return QuantConfig.validated({**config.model_dump(), "layer_bits": (*entries, *config.layer_bits)})


def average_weight_bits(layers: Sequence[LayerChoice]) -> float | None:
    """Return the mean bits of all weights that are quantized; None where none are."""
    counted = [layer for layer in layers if layer.weight_bits != FLOAT]
    if not counted:
        return None
    return sum(layer.weights * layer.weight_bits for layer in counted) / sum(layer.weights for layer in counted)


def fixed_bytes(model: nn.Module, layers: Sequence[LayerChoice], config: QuantConfig) -> int:
    """Return the bytes of a student that do not depend on its weights' bits: scales, and parameters and buffers in float."""
    quantized = {f"{layer.name}.weight" for layer in layers if layer.weight_bits != FLOAT}
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    plain = sum(value.numel() for name, value in state.items() if name not in quantized) * FLOAT_BYTES
    per_channel = config.weight_granularity == "channel"
    ranges = sum(state[name].shape[0] if per_channel else 1 for name in quantized)
    ranges += sum(layer.input_bits != FLOAT for layer in layers)
    return plain + ranges * RANGE_BYTES


def student_bytes(model: nn.Module, layers: Sequence[LayerChoice], config: QuantConfig) -> int:
    """Return the bytes of a student's packed weights, scales and float parameters, without a file's description."""
    packed = sum(-(-layer.weights * layer.weight_bits // 8) for layer in layers if layer.weight_bits != FLOAT)
    return packed + fixed_bytes(model, layers, config)


def average_for_size(model: nn.Module, layers: Sequence[LayerChoice], config: QuantConfig, choice: BitChoice) -> float:
    """Return the mean bits of weights that `target_size` allows, at most 8.

    Raises:
        ClusterqError: not even two bits fit.
    """
    assert choice.target_bytes is not None
    counted = [layer for layer in layers if layer.weight_bits != FLOAT]
    weights, rest = sum(layer.weights for layer in counted), fixed_bytes(model, layers, config)
    # Each weight tensor ends at a whole byte.
    room = choice.target_bytes - rest - len(counted)
    average = 8 * room / weights
    if average < 2:
        smallest = rest + len(counted) + -(-2 * weights // 8)
        raise ClusterqError(
            f"{choice.target_size} is too small, because scales and float parameters take {rest} bytes and the weights at 2 bits as much as "
            f"makes {smallest} altogether; give at least that.",
            setting="target_size",
        )
    return min(average, 8.0)


def as_result(layers: Sequence[LayerChoice]) -> list[dict[str, Any]]:
    """Return the layers for `result.json`."""
    return [
        {
            "name": layer.name,
            "weights": layer.weights,
            "inputs": layer.inputs,
            "weight_bits": layer.weight_bits,
            "input_bits": layer.input_bits,
            "given": layer.fixed,
            "weight_kl": _rounded(layer.weight_kl),
            "input_kl": _rounded(layer.input_kl),
        }
        for layer in layers
    ]


def _rounded(errors: Mapping[int, float]) -> dict[str, float]:
    return {str(bits): float(f"{error:.3g}") for bits, error in errors.items()}
